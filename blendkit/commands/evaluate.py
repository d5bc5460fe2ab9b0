"""blendkit evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage


@with_run_options("device", "dtype", "batch_tokens", "seed", "resume", "window")
def evaluate(
    run: RunOptions,
    versus: Annotated[
        list[str] | None, typer.Option("--versus", help="Adds a column: % of examples not worse than this model. May be given several times.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(help="Compare each score and ranking with labels A, B or tie in this field, of records of two candidates; such as human."),
    ] = None,
    oracle: Annotated[str | None, typer.Option(help="What counts as the true ranking: judge:NAME or score:NAME.", show_default="the stream's judge")] = None,
) -> None:
    """Print the paper's tables from what the stream holds.

    Table 2: every model, oracle, ranking and fused answer, with each metric's mean, GPT-Rank (the mean rank under the
    judge), and Top-3. Table 3: how each ranking agrees with the oracle. Both go to stderr for people and to stdout as
    JSON lines.

    Example: blendkit evaluate --versus vicuna-13b < judged.jsonl > tables.jsonl
    """

    def make() -> Stage:
        from blendkit.evaluation.evaluating import Evaluating

        return Evaluating(versus or [], oracle, agreement)

    stage = run_stage(make, run)
    if not run.quiet:
        from blendkit.evaluation.evaluating import Evaluating
        from blendkit.evaluation.report import print_tables

        assert isinstance(stage, Evaluating)
        print_tables(stage.rows(), [stage.signature(), *stage.score_signatures()])
