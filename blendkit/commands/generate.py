"""blendkit generate"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.models.loading import EMBEDDED_GENERATORS
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage

DECODING = "Decoding"


@with_run_options(endpoint=True)
def generate(
    run: RunOptions,
    endpoint: EndpointOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="NAME=SPEC or SPEC: a hub id, a directory, openai:MODEL, a preset or an embedded model (--list), or PRESET:MODEL. May be given several times.",
        ),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="Show the presets: the paper's eleven LLMs, and the embedded models.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message before every prompt.", rich_help_panel=DECODING)] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to write at most.", show_default="512, or the model's own", rich_help_panel=DECODING)
    ] = None,
    num_return: Annotated[int, typer.Option(min=1, help="Candidates a model and decoding.", rich_help_panel=DECODING)] = 1,
    decoding: Annotated[
        list[str] | None,
        typer.Option(
            help="greedy, beam[:4], diverse-beam[:4], top-k[:50], top-p[:0.9], typical[:0.95], min-p[:0.05] or temperature[:0.7]. "
            "May be given several times: candidates by each.",
            rich_help_panel=DECODING,
            show_default="by the flags below",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default="0.7, or the model's own", rich_help_panel=DECODING)] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.", show_default="1, or the model's own", rich_help_panel=DECODING)
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest; 0 is all.", rich_help_panel=DECODING)] = 0,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1 discourages repetition (local models).", show_default="1, or the model's own", rich_help_panel=DECODING),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text. May be given several times.", rich_help_panel=DECODING)] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Add scores.logprobs: the mean over an answer's tokens.", rich_help_panel=DECODING)] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings (local models).")] = False,
) -> None:
    """Let every model answer every record.

    Appends candidates: one a model, or as many as --num-return and --decoding ask for. A chat model gets its chat
    template, a preset its own format; `messages` are continued. OPENAI_API_KEY holds the key, if the server asks for one.
    With -o, answers of endpoints are kept beside the output, and a second run asks nothing twice.

    Example: blendkit generate -m vicuna -m gpt=openai:gpt-4o-mini -o candidates.jsonl --resume < prompts.jsonl
    """
    if list_presets:
        from blendkit.generators.presets import PRESETS

        for name, preset in PRESETS.items():
            code = "  needs --trust-remote-code" if preset.code else ""
            print(f"{name:9}  {preset.model:47}  {preset.source}{code}")
        for name in EMBEDDED_GENERATORS:
            print(f"embedded:{name}  a tiny language model inside the package, for trying the pipe out; its answers make no sense")
        return
    if not model:
        raise UsageError("no model given: -m NAME=SPEC, where SPEC is a hub id, a directory, openai:MODEL, a preset or embedded:a (`blendkit generate --list`)")
    asked: dict[str, Any] = {
        "temperature": temperature, "top_p": top_p, "repetition_penalty": repetition_penalty, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    sampling = Sampling(top_k=top_k, stop=tuple(stop or ()), logprobs=logprobs, **asked)
    settings: dict[str, Any] = {"decodings": decoding or (), "num_return": num_return, "trust_remote_code": trust_remote_code, "given": tuple(asked)}

    def make() -> Stage:
        from blendkit.generators.generating import Generating

        return Generating(model, sampling, endpoint, system, run.seed, run.device, run.dtype, **settings)

    run_stage(make, run)
