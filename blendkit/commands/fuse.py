"""blendkit fuse"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands import options
from blendkit.commands.options import named_forms, with_run_options
from blendkit.fusers import FUSERS
from blendkit.generators.options import EndpointOptions
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage

GENFUSER, CHAT = (f"{name} (--model: {FUSERS[name].form})" for name in ("GenFuser", "ChatFuser"))


@with_run_options(endpoint=True)
def fuse(
    run: RunOptions,
    endpoint: EndpointOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help=f"[NAME=]SPEC: {named_forms(FUSERS)}.",
            show_default="consensus",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="`model` of the fused candidate.", show_default="NAME; as --model")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to write at most.", show_default="512; chat models 1024")] = None,
    num_beams: Annotated[int | None, typer.Option("--num-beams", "--beams", min=1, help="Beams.", show_default="4", rich_help_panel=GENFUSER)] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of the whole input at most.", show_default="1024", rich_help_panel=GENFUSER)] = None,
    candidate_maxlength: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each candidate at most.", show_default="128", rich_help_panel=GENFUSER)
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rounds: the answers of all models are the candidates of the next; in the last the first model writes.",
            show_default="1",
            rich_help_panel=CHAT,
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default="0", rich_help_panel=CHAT)] = None,
    on_truncate: Annotated[str | None, options.on_truncate(None)] = None,
    analysis: Annotated[
        bool | None,
        typer.Option(
            "--analysis",
            help="First write where the candidates agree, contradict each other and stand alone (the fused candidate's `analysis`); "
            "then answer with it in view. Twice the calls.",
            rich_help_panel=CHAT,
        ),
    ] = None,
    show_ranks: Annotated[bool | None, typer.Option("--show-ranks", help="Tell the model each candidate's ranks.", rich_help_panel=CHAT)] = None,
    show_scores: Annotated[bool | None, typer.Option("--show-scores", help="Tell the model each candidate's scores.", rich_help_panel=CHAT)] = None,
    reasoning_effort: Annotated[str | None, options.reasoning_effort(CHAT)] = None,
    keep_reasoning: Annotated[
        str | None,
        typer.Option(
            help="What a model thought before it answered: in a `field` of its own, in the `text` before the answer, or `none`.",
            show_default="field",
            rich_help_panel=CHAT,
        ),
    ] = None,
) -> None:
    """Write one better answer from the top candidates.

    Appends a candidate with `sources`, the indices that it was made of. The default, `consensus`, puts it together
    from sentences of the top K: those of the best candidate, less what no other supports, plus what others agree on.

    Example: blendkit rank --top 3 < compared.jsonl | blendkit fuse --model llm-blender/gen_fuser_3b
    """

    def make() -> Stage:
        from blendkit.fusers import make_fuser

        return make_fuser(
            model or "consensus", name=name, max_new_tokens=max_new_tokens, num_beams=num_beams, max_length=max_length,
            candidate_maxlength=candidate_maxlength, layers=layers, temperature=temperature, analysis=analysis, show_ranks=show_ranks, show_scores=show_scores,
            reasoning_effort=reasoning_effort, keep_reasoning=keep_reasoning, on_truncate=on_truncate, endpoint=endpoint,
            device=run.device, dtype=run.dtype, seed=run.seed,
        )  # fmt: skip

    run_stage(make, run)
