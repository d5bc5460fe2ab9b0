"""blendkit score"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage


@with_run_options()
def score(
    run: RunOptions,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="NAME or NAME:MODEL; may be given several times.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="The encoder of model-based metrics.", show_default="embedded")] = None,
    list_metrics: Annotated[bool, typer.Option("--list", help="Show the metrics and what each needs.")] = False,
) -> None:
    """Score every candidate, against the reference (`output`) or without one.

    Writes `candidates[].scores`. Several metrics take one pass.

    Example: blendkit score --metric bleu --metric rouge2 --metric bertscore < records.jsonl
    """
    if list_metrics:
        from blendkit.scorers import SCORERS, scorer_class

        for name in SCORERS:
            kind = scorer_class(name)
            print(f"{name:10}  {'needs the reference' if kind.needs_reference else 'needs no reference ':19}  {kind.about}")
        return
    if not metric:
        raise UsageError("no --metric given; `blendkit score --list` shows them")

    def make() -> Stage:
        from blendkit.scorers.scoring import Scoring

        stage = Scoring(metric, model, run.device, run.dtype, run.seed)
        if not run.quiet and sys.stderr.isatty():
            for signature in stage.describe()["signatures"]:
                print(f"blendkit score: {signature}", file=sys.stderr)
        return stage

    run_stage(make, run)
