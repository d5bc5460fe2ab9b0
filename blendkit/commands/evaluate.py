"""blendkit evaluate"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.streams.files import Role, one_role_each
from blendkit.terminal_text import say

PAGE = "Page and figures"
CHECKS = "Checks"
TRUST = "Judges one can trust (docs/trust.md)"


@with_run_options(
    "device", "dtype", "batch_tokens", "resume", "window",
    reads={
        "manifests": "--manifests", "compare": "--compare", "fail_if_worse": "--fail-if-worse", "families": "--families", "forms": "--forms",
        "prices": "--prices",
    },
    writes={"plot": "--plot", "label_next": "--label-next"},
)  # fmt: skip
def evaluate(
    run: RunOptions,
    versus: Annotated[
        list[str] | None,
        typer.Option(
            "--versus",
            help="Adds a column: % of examples not worse than this model; of several candidates MODEL · DECODING or MODEL#2. May be given several times.",
        ),
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(help="Compare each score and ranking with labels A, B or tie in this field, of records of two candidates; such as human."),
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="What counts as the true ranking: judge:NAME, or the NAME of a score.", show_default="the stream's judge")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Test every method (a row of Table 2, or GROUP.METHOD) against this one: paired, corrected for so many comparisons; no oracles."),
    ] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="Show bootstrap 95 % intervals in the tables (the JSON lines always have them).")] = False,
    ratings: Annotated[
        bool,
        typer.Option(
            "--ratings",
            help="Add Bradley-Terry and Elo ratings with intervals, win rates, the judges' position bias and agreement, and their weights in a panel.",
        ),
    ] = False,
    length_controlled: Annotated[
        str | None,
        typer.Option(
            help="Add win rates against this model at equal length, by our own regression: not AlpacaEval 2's estimator. Needs blendkit[stats].",
            show_default=False,
        ),
    ] = None,
    aggregations: Annotated[
        bool, typer.Option("--aggregations", help="Add each ranker's full comparisons by MaxLogits, MaxWins and one bubble run (the paper's appendix).")
    ] = False,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Hold every judge against people's labels in this field, such as human (A, B or tie, or a list of {a, b, verdict}), or against judge:NAME.",
            rich_help_panel=TRUST,
        ),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="TOML or JSON: a name, or the beginning of one, and its family; for --audit, which looks whether judges prefer their own.",
            show_default="the first letters of a name",
            rich_help_panel=TRUST,
        ),
    ] = None,
    correct_with: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Add the judge's win rates, corrected by people's labels of some pairs, drawn at random, in this field.",
            rich_help_panel=TRUST,
        ),
    ] = None,
    label_next: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write forms of the pairs that people should label next: .csv for spreadsheets, else JSON lines.", rich_help_panel=TRUST
        ),
    ] = None,
    label_count: Annotated[int, typer.Option(min=1, help="How many pairs --label-next draws: as many as will be labelled.", rich_help_panel=TRUST)] = 100,
    forms: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The forms of --label-next, filled in: their labels join the records by id, in the field of --correct-with, of --audit, or human.",
            rich_help_panel=TRUST,
        ),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Add ratings at equal length, markdown, or length,markdown.", metavar="STYLE", rich_help_panel=TRUST)
    ] = None,
    frontier: Annotated[
        str | None,
        typer.Option(
            metavar="RANKING",
            help="Set quality (by the oracle, of what this ranking puts first) against price, for every subset of models.",
            rich_help_panel=TRUST,
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For --frontier: TOML or JSON, a table a model with price_in and price_out in $ a million tokens, such as a --models-file.",
            show_default="usage.cost of each candidate",
            rich_help_panel=TRUST,
        ),
    ] = None,
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
            "--format",
            help="Write the tables on stdout as table, markdown, latex, csv or json; or the checks as junit (XML).",
            show_default="JSON lines on stdout, tables on stderr",
        ),
    ] = None,
    checks: Annotated[
        list[str] | None,
        typer.Option(
            "--assert",
            help="End with 3 unless this holds, such as 'rankers.pairrm.gpt_rank < llms.best.gpt_rank', 'llms.best.bleu.low >= 20' or "
            "'fused.blend.bleu >= earlier.fused.blend.bleu within noise' (> … beyond noise). May be given several times.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    list_columns: Annotated[
        bool, typer.Option("--list-columns", help="Write on stdout all that can be asserted, as GROUP.METHOD.COLUMN and its value.", rich_help_panel=CHECKS)
    ] = False,
    expect: Annotated[int | None, typer.Option(min=1, help="End with 3 unless there are so many records.", rich_help_panel=CHECKS)] = None,
    compare: Annotated[str | None, typer.Option(help="The JSON lines of an earlier evaluate: shows what moved beyond noise.", rich_help_panel=CHECKS)] = None,
    fail_if_worse: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="As --compare; end with 3 if a figure got worse beyond noise, or is gone.", rich_help_panel=CHECKS),
    ] = None,
) -> None:
    """Print the paper's tables from what the stream holds.

    First stands the answer: which LLM and which method are best by the oracle, by how much, and how sure that is.
    Table 2: every model, oracle, ranking and fused answer, with each metric's mean, the mean rank under the judge (called
    GPT-Rank where that is an LLM), and Top-3. Table 3: how each ranking agrees with the oracle. Above what a judge feeds
    stands a line on its worth; below the floor it is marked (at chance). All go to stderr for people and to stdout as
    JSON lines, unless --format asks for one form on stdout. Exit code 3: an --assert, --expect or --fail-if-worse does not
    hold. --report and --plot need the extra: pip install 'blendkit[plots]'.

    Example: blendkit evaluate --baseline pairrm --report out/ < judged.jsonl > tables.jsonl
    """
    if report:
        one_role_each([*run.roles(), Role("--report", f"{report}/index.html", writes=True)])

    if list_columns and form:
        raise UsageError("--list-columns and --format both say what stdout gets: give one of them")

    def make() -> Stage:
        from blendkit.evaluation.evaluating import Evaluating

        return Evaluating(
            versus=versus or (), oracle=oracle, agreement=agreement, baseline=baseline, seed=run.seed, ratings=ratings,
            length_controlled=length_controlled, aggregations=aggregations, manifests=manifests or (), compare=compare, checks=checks or (),
            expect=expect, fail_if_worse=fail_if_worse, report=report, report_records=report_records, plot=plot, audit=audit, families=families,
            correct_with=correct_with, label_next=label_next, label_count=label_count, forms=forms, control=control, frontier=frontier, prices=prices,
            form="columns" if list_columns else form or "json", intervals=intervals,
        )  # fmt: skip

    stage = run_stage(make, run)
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.evaluation.terminal import print_tables

    assert isinstance(stage, Evaluating)
    if form == "table" or (form is None and not run.quiet and not list_columns):
        print_tables(stage.rows(), stage.all_signatures(), intervals, to_stdout=form == "table")
    if page := stage.write_page(Path(run.input).name if run.input and run.input != "-" else "standard input", shlex.join(["blendkit", *sys.argv[1:]])):
        say(f"the page is {page}", "evaluate")
    stage.draw()
    for line in stage.write_forms():
        say(line, "evaluate")
    stage.check()
