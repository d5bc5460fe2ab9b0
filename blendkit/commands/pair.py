"""blendkit pair"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage


@with_run_options()
def pair(
    run: RunOptions,
    model: Annotated[
        str, typer.Option("-m", "--model", help="`embedded`, a directory, or a hub id such as llm-blender/PairRM or llm-blender/PairRM-hf.")
    ] = "embedded",
    name: Annotated[str, typer.Option(help="The name of these comparisons in the record.")] = "pairrm",
) -> None:
    """Compare all candidates of a record in pairs with PairRanker.

    Writes `comparisons`: for every ordered pair [i, j, logit], where a logit above 0 says that candidate i,
    shown first, beats candidate j.

    Example: zcat dev.jsonl.gz | blendkit pair | blendkit rank --top 3 > ranked.jsonl
    """

    def make() -> Stage:
        from blendkit.rankers.pairranker import PairRanker

        return PairRanker(model, name, run.device, run.dtype)

    run_stage(make, run)
