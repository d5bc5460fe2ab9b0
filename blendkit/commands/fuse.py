"""blendkit fuse"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blendkit.commands.options import with_run_options
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage

SEQ2SEQ, CHAT = "GenFuser (a seq2seq --model)", "Chat models (openai:MODEL, or a local one)"


@with_run_options(endpoint=True)
def fuse(
    run: RunOptions,
    endpoint: EndpointOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="`consensus` (no generative model), a seq2seq directory or hub id such as llm-blender/gen_fuser_3b, openai:MODEL, or a local chat model. "
            "Chat models may be several.",
            show_default="consensus",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="`model` of the fused candidate.", show_default="as --model")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to write at most.", show_default="512; chat models 1024")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams.", rich_help_panel=SEQ2SEQ)] = 4,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of the whole input at most.", rich_help_panel=SEQ2SEQ)] = 1024,
    candidate_maxlength: Annotated[int, typer.Option(min=1, help="Tokens of each candidate at most.", rich_help_panel=SEQ2SEQ)] = 128,
    layers: Annotated[
        int,
        typer.Option(min=1, help="Rounds: the answers of all models are the candidates of the next; in the last the first model writes.", rich_help_panel=CHAT),
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.", rich_help_panel=CHAT)] = 0.0,
    show_ranks: Annotated[bool, typer.Option("--show-ranks", help="Tell the model each candidate's ranks.", rich_help_panel=CHAT)] = False,
    show_scores: Annotated[bool, typer.Option("--show-scores", help="Tell the model each candidate's scores.", rich_help_panel=CHAT)] = False,
) -> None:
    """Write one better answer from the top candidates.

    Appends a candidate with `sources`, the indices that it was made of. The default, `consensus`, puts it together
    from sentences of the top K: those of the best candidate, less what no other supports, plus what others agree on.

    Example: blendkit rank --top 3 < compared.jsonl | blendkit fuse --model llm-blender/gen_fuser_3b
    """
    models = model or ["consensus"]
    where: dict[str, Any] = {"name": name, "device": run.device, "dtype": run.dtype}
    genfuser = {"num_beams": beams, "max_new_tokens": max_new_tokens or 512, "max_length": max_length, "candidate_maxlength": candidate_maxlength}
    sampling = Sampling(max_new_tokens=max_new_tokens or 1024, temperature=temperature)
    chat = {"endpoint": endpoint, "layers": layers, "show_ranks": show_ranks, "show_scores": show_scores, "sampling": sampling, "seed": run.seed}

    def make() -> Stage:
        from blendkit.fusers import make_fuser

        return make_fuser(models, **where, **genfuser, **chat)

    run_stage(make, run)
