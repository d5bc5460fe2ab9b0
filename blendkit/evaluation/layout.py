"""A table as it is shown: headings, groups, cells with their rounding, intervals and the best. The terminal, Markdown, LaTeX and the page draw it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from blendkit.evaluation.columns import BOUNDS, HIDDEN, SIGNED, best_figures, digits_of, heading, is_best, text_of
from blendkit.evaluation.tables import FIGURES, HEADINGS, LINES, TABLES, Row, Rows, by_table, judge_of, line_above, note_under, title_of
from blendkit.terminal_text import count_of

# Columns of words, which stand on the left.
WORDS = ("method", "column", "models", "result", "means", "effect", "label", "over", "by")
# Tables whose intervals are shown without being asked for, as the figures say little without them.
WITH_INTERVALS = ("audit", "effects", "reliability", "corrected", "style", "style effects", "frontier")


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table: a figure's `value` is for sorting and colours; `low` and `high` are its interval's bounds, which may be empty."""

    text: str
    value: Any = None
    best: bool = False
    low: str = ""
    high: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A table: `groups` are rows under a heading that may be empty; `always` says that intervals are shown without being asked for.

    `rest` are rows that are folded away, which `folded` says in a line.
    """

    table: int | str
    title: str
    above: str
    note: str
    columns: list[str]
    headings: list[str]
    groups: list[tuple[str, list[list[Cell]]]]
    always: bool
    folded: str = ""
    rest: Layout | None = None

    @property
    def rows(self) -> list[list[Cell]]:
        """The rows of all groups."""
        return [row for _, rows in self.groups for row in rows]


def laid_out(rows: Rows, figures: bool = False) -> list[Layout]:
    """All tables that have rows, in their order; those that are seen as figures only where `figures` says so."""
    judge = judge_of(rows)
    return [_layout(table, part, judge) for table, part in by_table(rows).items() if table not in LINES and (figures or table not in FIGURES)]


def _layout(table: int | str, rows: Rows, judge: Row | None) -> Layout:
    kept, rest, folded = _folded(table, rows)
    if not rest:
        return _whole(table, rows, judge)
    shown, hidden = _whole(table, kept, judge), _whole(table, rest, judge)
    head = shown if kept else hidden
    return Layout(table, shown.title, line_above(table, rows, judge), shown.note, head.columns, head.headings, shown.groups, shown.always, folded, hidden)


def _folded(table: int | str, rows: Rows) -> tuple[Rows, Rows, str]:
    """What is shown of a table, what is folded away, and the line that says so."""
    if table == "compare":
        kept, rest = ([row for row in rows if bool(row["beyond_noise"]) is wanted] for wanted in (True, False))
        unknown = sum(row["beyond_noise"] is None for row in rest)
        which = f"{len(rest):,}{' other' if kept else ''} figure{'s' if len(rest) > 1 else ''}"
        return kept, rest, f"{which} did not move beyond noise" + (f"; of {unknown:,} of them an interval is missing" if unknown else "")
    if table == "effects":
        kept, rest = ([row for row in rows if sways(row) is wanted] for wanted in (True, False))
        return kept, rest, f"{count_of(len(rest), 'other odds ratio') if kept else 'All'}: the label's own, and what may be chance"
    if table in ("confusion", "reliability"):
        return [], rows, count_of(len(rows), "row")
    if table == "corrected":
        # Each model over all others; and two by two.
        kept, rest = ([row for row in rows if (row["over"] is None) is wanted] for wanted in (True, False))
        return [{key: value for key, value in row.items() if key != "over"} for row in kept], rest, count_of(len(rest), "pair") + " of models"
    return rows, [], ""


def sways(row: Row) -> bool:
    """Whether a row of the table `effects` is of something beside the label that sways a judge beyond chance."""
    bounds = row["intervals"].get("odds_ratio")
    return row["effect"] != "label" and bounds is not None and None not in bounds and not bounds[0] <= 1 <= bounds[1]


def _whole(table: int | str, rows: Rows, judge: Row | None) -> Layout:
    keys = dict.fromkeys(key for row in rows for key in row if key not in HIDDEN)
    bounds = {key: pair for key in keys for pair in [BOUNDS.get(key, (f"{key}_low", f"{key}_high"))] if pair[0] in keys and pair[1] in keys}
    beside = {bound for pair in bounds.values() for bound in pair}
    columns = [key for key in TABLES[table].columns or keys if key in keys and key not in beside]
    if table in (2, 3) and len({row.get("examples") for row in rows}) == 1:
        columns.remove("examples")
    digits = {column: digits_of(table, column, (row.get(column) for row in rows)) for column in columns}
    best = best_figures(rows) if table in (2, 3) else {}

    def cell(row: Row, column: str) -> Cell:
        value = row.get(column)
        if column == "column":
            return Cell(heading(2, str(value), judge))
        low, high = (row.get(bound) for bound in bounds[column]) if column in bounds else row.get("intervals", {}).get(column, (None, None))
        texts = ["" if bound is None else text_of(bound, digits[column], column in SIGNED) for bound in (low, high)]
        figure = value if isinstance(value, int | float) and not isinstance(value, bool) else None
        return Cell(text_of(value, digits[column], column in SIGNED), figure, table in (2, 3) and value is not None and is_best(row, column, best), *texts)

    groups = [
        (HEADINGS.get(kind, ""), [[cell(row, column) for column in columns] for row in part]) for kind, part in groupby(rows, lambda row: row.get("kind"))
    ]
    headings = [heading(table, column, judge) for column in columns]
    note = note_under(table, rows) if rows else TABLES[table].note
    return Layout(table, title_of(table, judge), line_above(table, rows, judge), note, columns, headings, groups, bool(bounds) or table in WITH_INTERVALS)
