"""blendkit rank"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.rankers import REFERENCES


@with_run_options("device", "dtype", "batch_tokens", "seed")
def rank(
    run: RunOptions,
    by: Annotated[
        list[str],
        typer.Option(
            help="pairrm (or another name of comparisons), score:NAME, judge:NAME, or oracle:FIELD, a number in each candidate. "
            "Given several times, for comparisons of the same pairs: their logits are summed, each times its WEIGHT (NAME=WEIGHT).",
        ),
    ] = ("pairrm",),  # type: ignore[assignment]
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="From comparisons to ranks: max-logits, max-wins, copeland, bradley-terry or elo; all of them take partial matrices.",
            show_default="the order that a bubble or sort schedule found, else max-logits",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help=f"Rank by the margin over one candidate: {', '.join(REFERENCES)}, or a candidate's model (MODEL · DECODING or MODEL#2 of several)."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the best `top` holds; fuse reads these.")] = 3,
    name: Annotated[str | None, typer.Option(help="The name of this ranking in `ranks`.", show_default="as --by")] = None,
) -> None:
    """Turn comparisons, scores or verdicts into ranks and the top K.

    Writes `ranks` (1 is best; ties share the lowest rank) and `top` (indices, best first).

    Example: blendkit rank --by score:bleu --top 1 < scored.jsonl
    """

    def make() -> Stage:
        from blendkit.rankers.ranking import Ranking

        return Ranking(by, aggregate, top, name, reference)

    run_stage(make, run)
