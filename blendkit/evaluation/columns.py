"""How columns are called, which way is better, how figures are rounded, and which is the best: one place for every form of the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blendkit.evaluation.tables import JUDGE_RANK, Row, Rows, mark
from blendkit.judges.base import LLM, OTHER, STAND_IN
from blendkit.scorers import better_when_lower

LOWER_IS_BETTER = (*JUDGE_RANK.values(), "footrule", "rank_by_")
# Of judges' probabilities.
ERRORS = ("brier", "ece")
# Columns that describe a method without saying how good it is.
NEUTRAL = ("characters", "examples", "judged")
# Keys of rows whose values are lists or objects, and so no cells.
NO_CELLS = ("intervals", "missing")
# What is no column of a table: its rows stand in groups by `kind`, a figure's interval beside it.
HIDDEN = ("table", "kind", *NO_CELLS)
# Columns of Tables 2 and 3 that are no score's.
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
# Columns of the other tables, where another name says more than their own without its underscores.
OTHERS = {
    "accuracy": "Agrees ↑",
    "over_longest": "Over longest ↑",
    "longest": "Longest candidate agrees",
    "explained_by_length": "By length",
    "right_when_longer_is": "Longer is right ↑",
    "right_when_shorter_is": "Shorter is right ↑",
    "p": "p",
    "p_holm": "p (Holm)",
    "win_rate": "Win rate % ↑",
    "rating": "Bradley-Terry ↑",
    "elo": "Elo ↑",
    "length_controlled": "At equal length % ↑",
    "ties": "Ties %",
    "first_place_rate": "First place wins %",
    "consistency": "Both orders agree %",
    "alpha": "Krippendorff's alpha",
    "share": "Ranks first % ↑",
    "records_per_second": "Records/s",
    "peak_memory_mb": "Peak memory, MB",
    "beyond_noise": "Beyond noise",
    "means": "Check",
    "kappa": "Kappa ↑",
    "first_place": "By place, points",
    "ece": "ECE ↓",
    "odds_ratio": "Odds ×",
    "human": "Labels alone",
    "judge": "Judge alone",
    "corrected": "Both",
    "styled": "At equal style ↑",
    "price": "$ for 1,000",
    "front": "On the front",
}
OF_TABLE: dict[tuple[int | str, str], str] = {
    ("panel", "accuracy"): "Right by all ↑",
    ("confusion", "label"): "Label \\ verdict",
    ("reliability", "preferred"): "People agree",
}
FIRST = dict.fromkeys(("judges", "audit", "effects", "confusion", "reliability", "panel"), "Judge") | {"stages": "Stage", "style effects": "Style"}
FIRST |= {"frontier": "Models asked"}
# The bounds of an interval that are columns, where their names are not those of the figure with _low and _high.
BOUNDS = {"difference": ("low", "high"), "length_controlled": ("low", "high"), "share": ("low", "high")}
# Decimals, where the size of the figures does not decide them.
DIGITS = {"win_rate": 1, "rating": 1, "elo": 1, "share": 1, "length_controlled": 1, "ties": 2, "first_place_rate": 2, "consistency": 2, "seconds": 1}
DIGITS |= {"accuracy": 1, "over_longest": 1, "longest": 1, "explained_by_length": 0, "right_when_longer_is": 1, "right_when_shorter_is": 1}
DIGITS |= dict.fromkeys(("difference", "p", "p_holm", "old", "new", "change", "noise", "cost"), 4)
DIGITS |= dict.fromkeys(("kappa", "odds_ratio", "power", "weight"), 2) | dict.fromkeys(("ece", "brier"), 3)
DIGITS |= dict.fromkeys(("accuracy_decided", "label_ties", "first_place", "human", "judge", "corrected", "styled", "preferred", "probability"), 1)
DIGITS |= dict.fromkeys(("from", "to", "labels_worth"), 0) | {"effective_judges": 1}
SIGNED = ("over_longest", "first_place", "coefficient")
Best = dict[tuple[Any, str], Any]


def lower_is_better(column: str) -> bool:
    """Whether the least of a column's figures is the best."""
    return column.startswith(LOWER_IS_BETTER) or column in ERRORS or better_when_lower(column)


def heading(table: int | str, column: str, judge: Row | None = None) -> str:
    """A column's name for a person, with the way that is better, whose it is, and the mark of a judge below the floor."""
    if column == "method":
        return FIRST.get(table, "Method") if isinstance(table, str) else "Method"
    if table in (2, 3):
        return _plain_heading(column, judge) + mark(column, judge)
    if table == "wins":
        return column.removeprefix("over ")
    if (table, column) in OF_TABLE:
        return OF_TABLE[table, column]
    name = OTHERS.get(column, column.replace("_", " "))
    return name if column in OTHERS else name[:1].upper() + name[1:]


def _plain_heading(column: str, judge: Row | None) -> str:
    if column.startswith("not_worse_than_"):
        return f"≥ {column.removeprefix('not_worse_than_')} % ↑"
    if column.startswith("rank_by_"):
        return f"Rank by {column.removeprefix('rank_by_')} ↓"
    if judge and column == judge["column"] != JUDGE_RANK[LLM]:
        return f"{TITLES[column].removesuffix(' ↓')} ({judge['method']}) ↓"
    return TITLES.get(column, f"{column} {'↓' if lower_is_better(column) else '↑'}")


def digits_of(table: int | str, column: str, values: Iterable[Any]) -> int:
    """How many decimals all figures of a column have."""
    if table in (2, 3):
        if column in NEUTRAL:
            return 0
        if column in TITLES or column.startswith(("not_worse_than_", "rank_by_")):
            return 2
    elif table in ("wins", "distribution") or (table, column) == ("style", "change"):
        return 1
    elif column in DIGITS:
        return DIGITS[column]
    figures = [abs(value) for value in values if isinstance(value, float)]
    return 4 if figures and max(figures) <= 1 else 2


def text_of(value: Any, digits: int, signed: bool = False) -> str:
    """A figure or a name, as every form but CSV and JSON shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # No minus before a figure that is shown as 0.
        return f"{round(value, digits) + 0.0:{'+' if signed else ''},.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def best_figures(rows: Rows) -> Best:
    """The best figure of each kind's column of Table 2 or 3, where several rows have one."""
    figures: dict[tuple[Any, str], list[Any]] = {}
    for row in rows:
        for column, value in row.items():
            if column not in ("method", *HIDDEN, *NEUTRAL) and value is not None:
                figures.setdefault((row.get("kind"), column), []).append(value)
    return {key: min(values) if lower_is_better(key[1]) else max(values) for key, values in figures.items() if len(values) > 1}


def is_best(row: Row, column: str, best: Best) -> bool:
    """Whether a row has the best figure of its column, among several of its kind."""
    key = row.get("kind"), column
    return key in best and bool(row[column] == best[key])
