"""blendkit fuse"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage

SEQ2SEQ = "GenFuser (a seq2seq --model)"


@with_run_options("seed")
def fuse(
    run: RunOptions,
    model: Annotated[
        str, typer.Option("-m", "--model", help="`consensus` (no generative model), or a seq2seq directory or hub id such as llm-blender/gen_fuser_3b.")
    ] = "consensus",
    name: Annotated[str | None, typer.Option(help="`model` of the fused candidate.", show_default="as --model")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams.", rich_help_panel=SEQ2SEQ)] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.", rich_help_panel=SEQ2SEQ)] = 512,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of the whole input at most.", rich_help_panel=SEQ2SEQ)] = 1024,
    candidate_maxlength: Annotated[int, typer.Option(min=1, help="Tokens of each candidate at most.", rich_help_panel=SEQ2SEQ)] = 128,
) -> None:
    """Write one better answer from the top candidates.

    Appends a candidate with `sources`, the indices that it was made of. The default, `consensus`, puts it together
    from sentences of the top K: those of the best candidate, less what no other supports, plus what others agree on.

    Example: blendkit rank --top 3 < compared.jsonl | blendkit fuse --model llm-blender/gen_fuser_3b
    """

    where = {"name": name, "device": run.device, "dtype": run.dtype}
    genfuser = {"num_beams": beams, "max_new_tokens": max_new_tokens, "max_length": max_length, "candidate_maxlength": candidate_maxlength}

    def make() -> Stage:
        from blendkit.fusers import make_fuser

        return make_fuser(model, **where) if model == "consensus" else make_fuser(model, **where, **genfuser)

    run_stage(make, run)
