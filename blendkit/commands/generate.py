"""blendkit generate"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands import options
from blendkit.commands.options import with_run_options
from blendkit.generators.factory import DEFAULT, GENERATORS
from blendkit.generators.options import EndpointOptions, decoding_forms
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage

DECODING = "Decoding"
SPECS = f"{', '.join(row.form for row in GENERATORS.own.values())}, a preset (--list), or PRESET:MODEL"


@with_run_options("attention", "self_check", endpoint=True)
def generate(
    run: RunOptions,
    endpoint: EndpointOptions,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help=f"[NAME=]SPEC: {SPECS}, or a name in --models-file. May be given several times.",
            show_default=f"all of --models-file, or {DEFAULT}",
        ),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help=f"Show the presets: the paper's eleven LLMs, and {DEFAULT}.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message before every prompt.", rich_help_panel=DECODING)] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to write at most.", show_default="512, or the model's own", rich_help_panel=DECODING)
    ] = None,
    num_return: Annotated[int, typer.Option(min=1, help="Candidates a model and decoding.", rich_help_panel=DECODING)] = 1,
    decoding: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(decoding_forms())}. May be given several times: candidates by each.",
            rich_help_panel=DECODING,
            show_default="by the flags below",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default="0.7, or the model's own", rich_help_panel=DECODING)] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.", show_default="1, or the model's own", rich_help_panel=DECODING)
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Sample among the K likeliest; 0 is all.", show_default="0", rich_help_panel=DECODING)] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1 discourages repetition (local models).", show_default="1, or the model's own", rich_help_panel=DECODING),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text. May be given several times.", rich_help_panel=DECODING)] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Add scores.logprobs: the mean over an answer's tokens.", rich_help_panel=DECODING)] = False,
    reasoning_effort: Annotated[str | None, options.reasoning_effort(DECODING, "the model's own")] = None,
    keep_reasoning: Annotated[
        str,
        typer.Option(help="Where a model's reasoning goes: a `field` of its own, the `text` before the answer, or `none`.", rich_help_panel=DECODING),
    ] = "field",
    on_truncate: Annotated[
        str | None,
        typer.Option(help="A prompt longer than the model reads: `warn` (cut it, say so at the end) or `fail` (local models).", show_default="warn"),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a checkpoint brings (local models).")] = False,
) -> None:
    """Let every model answer every record.

    Appends candidates: one a model, or as many as --num-return and --decoding ask for. A chat model gets its chat
    template, a preset its own format; `messages` are continued. Without a model, smollm2 answers, which is small and often
    wrong, and needs no network. OPENAI_API_KEY holds the key, if the server asks for one.
    With -o, answers of endpoints are kept beside the output, and a second run asks nothing twice.

    Example: blendkit generate -m vicuna -m gpt=openai:gpt-4o-mini -o candidates.jsonl --resume < prompts.jsonl
    """
    if list_presets:
        from blendkit.generators.presets import generator_rows

        for line in generator_rows():
            print(line)
        return

    def make() -> Stage:
        from blendkit.generators.generating import Generating

        return Generating(
            models or None, None, endpoint, system, run.seed, run.device, run.dtype, decodings=decoding or (), num_return=num_return,
            trust_remote_code=trust_remote_code, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, stop=stop, logprobs=logprobs or None,
            reasoning_effort=reasoning_effort, keep_reasoning=keep_reasoning, on_truncate=on_truncate,
        )  # fmt: skip

    run_stage(make, run)
