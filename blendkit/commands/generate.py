"""blendkit generate"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.generators.base import EndpointOptions, Sampling
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage

DECODING, ENDPOINT = "Decoding", "Endpoints (openai:MODEL)"


@with_run_options()
def generate(
    run: RunOptions,
    model: Annotated[
        list[str] | None, typer.Option("-m", "--model", help="NAME=SPEC or SPEC: a hub id, a directory, or openai:MODEL. May be given several times.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before every prompt.", rich_help_panel=DECODING)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.", rich_help_panel=DECODING)] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=DECODING)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.", rich_help_panel=DECODING)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest; 0 is all.", rich_help_panel=DECODING)] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition (local models).", rich_help_panel=DECODING)] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text. May be given several times.", rich_help_panel=DECODING)] = None,
    base_url: Annotated[str | None, typer.Option(help="The server; OPENAI_BASE_URL otherwise.", rich_help_panel=ENDPOINT)] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.", rich_help_panel=ENDPOINT)] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Retries with backoff before the server counts as gone.", rich_help_panel=ENDPOINT)] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.", rich_help_panel=ENDPOINT)] = 120.0,
) -> None:
    """Let every model answer every record.

    Appends one candidate a model. A chat model gets its chat template. OPENAI_API_KEY holds the key, if the server asks for one.

    Example: blendkit generate -m qwen=Qwen/Qwen2.5-0.5B-Instruct -m gpt=openai:gpt-4o-mini < prompts.jsonl
    """
    if not model:
        raise UsageError("no model given: -m NAME=SPEC, where SPEC is a hub id, a directory or openai:MODEL")
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, tuple(stop or ()))

    def make() -> Stage:
        from blendkit.generators.generating import Generating

        return Generating(model, sampling, EndpointOptions(base_url, concurrency, retries, timeout), system, run.seed, run.device, run.dtype)

    run_stage(make, run)
