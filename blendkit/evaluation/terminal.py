"""The tables as a person reads them."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from blendkit.evaluation.checks import NEUTRAL, lower_is_better
from blendkit.evaluation.formats import text_of
from blendkit.evaluation.tables import FIGURES, JUDGE_RANK, KINDS, LINES, TABLES, Row, answer_of, by_table, judge_of, line_above, mark, note_under, title_of
from blendkit.judges.base import LLM, OTHER, STAND_IN
from blendkit.terminal_text import one_line, shown, standing

FIXED = ("table", "method", "kind", "examples", "intervals")
Best = dict[tuple[Any, str], Any]
TITLES = {
    JUDGE_RANK[LLM]: "GPT-Rank ↓",
    JUDGE_RANK[STAND_IN]: "Stand-in rank ↓",
    JUDGE_RANK[OTHER]: "Judge rank ↓",
    "top3": "Top-3 % ↑",
    "pearson": "Pearson ↑",
    "spearman": "Spearman ↑",
    "footrule": "Footrule ↓",
    "pearson_per_example": "Pearson per example ↑",
    "spearman_per_example": "Spearman per example ↑",
    "characters": "Characters",
    "examples": "Examples",
    "judged": "Judged",
}


def print_tables(rows: list[dict[str, Any]], signatures: list[str], intervals: bool = False, to_stdout: bool = False) -> None:
    """Prints all tables on stderr (or stdout), the best of each column and kind in bold, and under them the signatures."""
    # A table cut off at 80 columns is no use in a log, so only a real terminal's width counts.
    stream = sys.stdout if to_stdout else sys.stderr
    console = Console(stderr=not to_stdout, width=None if stream.isatty() else 160, highlight=False)
    judge = judge_of(rows)
    if said := answer_of(rows):
        console.print(Text(standing(one_line(said)), style="bold"), soft_wrap=True)
    for name, chosen in by_table(rows).items():
        if name in FIGURES or name in LINES:
            continue
        kind, title = TABLES[name], title_of(name, judge)
        if judge and (line := line_above(name, chosen, judge)):
            console.print(Text(standing(one_line(line)), style="bold" if judge["at_chance"] else ""), soft_wrap=True)
        if name in (2, 3):
            console.print(_table(chosen, title, intervals, judge))
        elif name == "agreement":
            console.print(_agreement_table(chosen, title))
        else:
            console.print(_plain_table(chosen, title, kind.columns or tuple(dict.fromkeys(key for row in chosen for key in row if key != "table"))))
        if note := note_under(name, chosen):
            console.print(Text(shown(note), style="dim"))
    for signature in signatures:
        console.print(_note(signature), soft_wrap=True)


def name_text(name: object) -> Text:
    """A name from the stream in a table or under it: nothing in it is markup, an emoji's code, or a command to the terminal."""
    return Text(shown(name))


def _note(text: str) -> Text:
    return Text(standing(one_line(shown(text))), style="dim")


def _plain_table(rows: list[dict[str, Any]], title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(name_text(column), justify="left" if column in ("method", "column") else "right")
    for row in rows:
        table.add_row(*(name_text(text_of(row.get(column))) for column in columns))
    return table


def _agreement_table(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("Method", "Pairs", "Agrees ↑", "Over longest ↑", "By length", "Longer is right ↑", "Shorter is right ↑"):
        table.add_column(column, justify="left" if column == "Method" else "right")
    for row in rows:
        agrees = f"{row['accuracy']:.1f} ({row['accuracy_low']:.1f} to {row['accuracy_high']:.1f})"
        over = f"{row['over_longest']:+.1f} ({row['over_longest_low']:+.1f} to {row['over_longest_high']:+.1f})"
        rest = ("explained_by_length", "right_when_longer_is", "right_when_shorter_is")
        cells = ("–" if row[key] is None else f"{row[key]:.0f}" if key == rest[0] else f"{row[key]:.1f}" for key in rest)
        table.add_row(name_text(row["method"]), f"{row['pairs']:,}", agrees, over, *cells)
    return table


def _table(rows: list[dict[str, Any]], title: str, intervals: bool, judge: Row | None) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in FIXED))
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("Method", overflow="fold")
    for column in columns:
        table.add_column(name_text(column_title(column, judge)), justify="right")
    kind, best = None, best_figures(rows)
    for row in rows:
        if row.get("kind") != kind:
            kind = row.get("kind")
            if table.row_count:
                table.add_section()
            table.add_row(f"[bold cyan]{KINDS[kind]}[/]") if kind else None
        table.add_row(name_text(row["method"]), *(_cell(row, column, best, intervals) for column in columns))
    return table


def column_title(column: str, judge: Row | None = None) -> str:
    """A column of Tables 2 and 3, with the way that is better, whose it is, and the mark of a judge below the floor."""
    return _plain_title(column, judge) + mark(column, judge)


def _plain_title(column: str, judge: Row | None) -> str:
    if column.startswith("not_worse_than_"):
        return f"≥ {column.removeprefix('not_worse_than_')} % ↑"
    if column.startswith("rank_by_"):
        return f"Rank by {column.removeprefix('rank_by_')} ↓"
    if judge and column == judge["column"] != JUDGE_RANK[LLM]:
        return f"{TITLES[column].removesuffix(' ↓')} ({judge['method']}) ↓"
    return TITLES.get(column, f"{column} {'↓' if lower_is_better(column) else '↑'}")


def _cell(row: dict[str, Any], column: str, best: Best, intervals: bool) -> str:
    value = row.get(column)
    if value is None:
        return "–"
    text = figure_text(column, value)
    text = f"[bold]{text}[/]" if is_best(row, column, best) else text
    if intervals and column in row.get("intervals", {}):
        low, high = row["intervals"][column]
        text += f"\n[dim]{figure_text(column, low)}–{figure_text(column, high)}[/]"
    return text


def best_figures(rows: list[dict[str, Any]]) -> Best:
    """The best figure of each kind's column, where several rows have one."""
    figures: dict[tuple[Any, str], list[Any]] = {}
    for row in rows:
        for column, value in row.items():
            if column not in (*FIXED, *NEUTRAL) and value is not None:
                figures.setdefault((row.get("kind"), column), []).append(value)
    return {key: min(values) if lower_is_better(key[1]) else max(values) for key, values in figures.items() if len(values) > 1}


def is_best(row: dict[str, Any], column: str, best: Best) -> bool:
    """Whether a row has the best figure of its column, among several of its kind."""
    key = row.get("kind"), column
    return key in best and bool(row[column] == best[key])


def figure_text(column: str, value: float) -> str:
    """A figure of Tables 2 and 3."""
    if column in NEUTRAL:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 and column not in TITLES else f"{value:.2f}"
