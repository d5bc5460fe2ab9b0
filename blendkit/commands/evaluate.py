"""blendkit evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage


@with_run_options("device", "dtype", "batch_tokens", "resume", "window")
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
    baseline: Annotated[str | None, typer.Option(help="Test every method against this one: paired, corrected for many comparisons.")] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="Show bootstrap 95 % intervals in the tables (the JSON lines always have them).")] = False,
    ratings: Annotated[
        bool, typer.Option("--ratings", help="Add Bradley-Terry ratings with intervals, win rates and first places over the judge's verdicts.")
    ] = False,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="Write the tables on stdout as table, markdown, latex, csv or json.", show_default="JSON lines on stdout, tables on stderr"
        ),
    ] = None,
    checks: Annotated[
        list[str] | None,
        typer.Option("--assert", help="End with 3 unless this holds, such as 'rankers.pairrm.gpt_rank < llms.best.gpt_rank'. May be given several times."),
    ] = None,
    compared: Annotated[str | None, typer.Option("--compare", help="The JSON lines of an earlier evaluate: shows what moved beyond noise.")] = None,
) -> None:
    """Print the paper's tables from what the stream holds.

    Table 2: every model, oracle, ranking and fused answer, with each metric's mean, GPT-Rank (the mean rank under the
    judge), and Top-3. Table 3: how each ranking agrees with the oracle. Both go to stderr for people and to stdout as
    JSON lines, unless --format asks for one form on stdout. Exit code 3: an --assert does not hold.

    Example: blendkit evaluate --baseline pairrm --intervals < judged.jsonl > tables.jsonl
    """
    from blendkit.evaluation.checks import check_all, parsed, read_rows
    from blendkit.evaluation.formats import FORMATS

    if form is not None and form not in FORMATS:
        raise UsageError(f"--format {form}: expected one of {', '.join(FORMATS)}")
    for check in checks or ():
        parsed(check)
    earlier = read_rows(compared) if compared else None

    def make() -> Stage:
        from blendkit.evaluation.evaluating import Evaluating

        return Evaluating(
            versus or [], oracle, agreement, baseline=baseline, seed=run.seed, earlier=earlier, form=form or "json", intervals=intervals, ratings=ratings
        )

    stage = run_stage(make, run)
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.evaluation.terminal import print_tables
    from blendkit.scorers import LOWER_IS_BETTER

    assert isinstance(stage, Evaluating)
    if form == "table" or (form is None and not run.quiet):
        print_tables(stage.rows(), stage.all_signatures(), intervals, to_stdout=form == "table")
    check_all(checks or [], stage.rows(), LOWER_IS_BETTER)
