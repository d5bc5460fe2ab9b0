"""blendkit pair"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.rankers import SCHEDULES


@with_run_options()
def pair(
    run: RunOptions,
    model: Annotated[
        str,
        typer.Option(
            "-m", "--model", help="[NAME=]SPEC: `embedded`, `smollm2-ranker`, a directory, or a hub id such as llm-blender/PairRM or llm-blender/PairRM-hf."
        ),
    ] = "embedded",
    name: Annotated[str | None, typer.Option(help="The name of these comparisons in the record.", show_default="NAME; pairrm")] = None,
    schedule: Annotated[
        str,
        typer.Option(help=f"Which pairs: {SCHEDULES.explained()}."),
    ] = "full",
    prefilter: Annotated[
        str | None, typer.Option(help="METRIC:K: only the K candidates with the highest METRIC are compared, the rest rank below; such as length:6.")
    ] = None,
    on_truncate: Annotated[str, typer.Option(help="A text longer than the model reads: `warn` (cut it, say so at the end) or `fail`.")] = "warn",
) -> None:
    """Compare a record's candidates in pairs with PairRanker.

    Writes `comparisons`: for every pair compared [i, j, logit], where a logit above 0 says that candidate i,
    shown first, beats candidate j.

    Example: zcat dev.jsonl.gz | blendkit pair | blendkit rank --top 3 > ranked.jsonl
    """

    def make() -> Stage:
        from blendkit.rankers.pairranker import PairRanker

        return PairRanker(model, name, run.device, run.dtype, schedule=schedule, prefilter=prefilter, on_truncate=on_truncate, seed=run.seed)

    run_stage(make, run)
