"""blendkit evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.streams.files import Role, one_role_each
from blendkit.terminal_text import say

PAGE = "Page and figures"


@with_run_options(
    "device", "dtype", "batch_tokens", "resume", "window",
    reads={"manifests": "--manifests", "compared": "--compare"}, writes={"plot": "--plot"},
)  # fmt: skip
def evaluate(
    run: RunOptions,
    versus: Annotated[
        list[str] | None, typer.Option("--versus", help="Adds a column: % of examples not worse than this model. May be given several times.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(help="Compare each score and ranking with labels A, B or tie in this field, of records of two candidates; such as human."),
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="What counts as the true ranking: judge:NAME, or the NAME of a score.", show_default="the stream's judge")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Test every method against this one: paired, corrected for many comparisons.")] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="Show bootstrap 95 % intervals in the tables (the JSON lines always have them).")] = False,
    ratings: Annotated[
        bool, typer.Option("--ratings", help="Add Bradley-Terry and Elo ratings with intervals, win rates, and the judges' position bias and agreement.")
    ] = False,
    controlled: Annotated[
        str | None, typer.Option("--length-controlled", help="Add length-controlled win rates (AlpacaEval 2) against this model.", show_default=False)
    ] = None,
    aggregations: Annotated[
        bool, typer.Option("--aggregations", help="Add each ranker's full comparisons by MaxLogits, MaxWins and one bubble run (the paper's appendix).")
    ] = False,
    report: Annotated[str | None, typer.Option(help="Write one self-contained HTML page, DIR/index.html.", rich_help_panel=PAGE, metavar="DIR")] = None,
    report_records: Annotated[int, typer.Option(min=0, help="Records that can be looked at in the page.", rich_help_panel=PAGE)] = 500,
    plot: Annotated[str | None, typer.Option(help="Draw the figures into this .png, .svg or .pdf.", rich_help_panel=PAGE, metavar="FILE")] = None,
    manifests: Annotated[
        list[str] | None,
        typer.Option(help="A file that an earlier stage's --manifest wrote: adds its time and cost. May be given several times.", rich_help_panel=PAGE),
    ] = None,
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
    JSON lines, unless --format asks for one form on stdout. Exit code 3: an --assert does not hold. --report and --plot
    need the extra: pip install 'blendkit[plots]'.

    Example: blendkit evaluate --baseline pairrm --report out/ < judged.jsonl > tables.jsonl
    """
    from blendkit.evaluation.checks import check_all, parsed, read_rows
    from blendkit.evaluation.formats import FORMATS
    from blendkit.evaluation.report.browser import Browser
    from blendkit.evaluation.report.page import make_folder
    from blendkit.evaluation.report.plots import check_plot, need_matplotlib
    from blendkit.evaluation.stages import read_stages

    if form is not None and form not in FORMATS:
        raise UsageError(f"--format {form}: expected one of {', '.join(FORMATS)}")
    for check in checks or ():
        parsed(check)
    if report:
        one_role_each([*run.roles(), Role("--report", f"{report}/index.html", writes=True)])
        need_matplotlib("--report")
        make_folder(report)
    if plot:
        check_plot(plot)
    earlier = read_rows(compared) if compared else None
    stages = read_stages(manifests or [])
    browser = Browser(report_records) if report else None
    # The page shows all there is.
    everything = ratings or bool(report)

    def make() -> Stage:
        from blendkit.evaluation.evaluating import Evaluating

        return Evaluating(
            versus or [], oracle, agreement, baseline=baseline, seed=run.seed, earlier=earlier, form=form or "json", intervals=intervals,
            ratings=everything, aggregations=aggregations, controlled=controlled, stages=stages, browser=browser,
        )  # fmt: skip

    stage = run_stage(make, run)
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.evaluation.terminal import print_tables

    assert isinstance(stage, Evaluating)
    rows = stage.rows()
    if form == "table" or (form is None and not run.quiet):
        print_tables(rows, stage.all_signatures(), intervals, to_stdout=form == "table")
    if report and browser is not None:
        from blendkit.evaluation.report.page import write_page

        path = write_page(report, rows, stage.all_signatures(), stage.warnings(), browser, stage.count)
        say(f"the page is {path}", "evaluate")
    if plot:
        from blendkit.evaluation.report.plots import save_plot

        save_plot(rows, plot)
    check_all(checks or [], rows)
