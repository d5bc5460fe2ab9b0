"""What tables there are: their order, titles, notes and columns, for the terminal, the page and every other form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blendkit.judges.base import LLM, OTHER, STAND_IN

Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True, slots=True)
class TableKind:
    """A table's title, the line under it, and the columns that a terminal has room for (None: all)."""

    title: str
    note: str = ""
    columns: tuple[str, ...] | None = None


# A row's `table` → what it is, in the order in which tables are shown.
TABLES: dict[int | str, TableKind] = {
    # One row, whose `line` stands above all.
    "answer": TableKind("The answer"),
    "checks": TableKind("Checks", columns=("means", "result", "left", "right")),
    # One row, whose `line` stands above every table that the judge feeds.
    "judge": TableKind("The judge"),
    2: TableKind("Methods (as Table 2 of the paper)"),
    3: TableKind(
        "Agreement with the oracle ranking (as Table 3)",
        "Pearson, Spearman (× 100): a model's ranks over examples, mean over models (the reference code); and within an example. Footrule: sum of rank gaps.",
    ),
    "agreement": TableKind(
        "Agreement with pairwise labels, % of pairs",
        "Intervals: bootstrap over pairs, 95 %. By length: of what is right beyond 50 %, what the longest candidate would have.",
    ),
    "tests": TableKind(
        "Paired tests, over the examples of both",
        "Bootstrap 95 % interval of the mean difference; p by approximate randomization; p (Holm) by Holm's correction.",
        ("method", "column", "examples", "difference", "p", "p_holm"),
    ),
    "ratings": TableKind(
        "Ratings over all verdicts (Bradley-Terry on Elo's scale; Elo online)",
        "Each with 95 % intervals over the examples; a tie is half a win.",
        ("method", "verdicts", "win_rate", "rating", "elo"),
    ),
    "wins": TableKind("Win rates: row over column, %"),
    "length": TableKind(
        "Win rates at equal length (our regression, not AlpacaEval 2's estimator)",
        "What the judge would prefer of answers of equal length, after Dubois et al. 2024; bootstrap 95 %. Not comparable with AlpacaEval 2's leaderboard.",
        ("method", "examples", "win_rate", "length_controlled", "length_effect", "characters"),
    ),
    "judges": TableKind(
        "Judges: rate of the first place, agreement of both orders, %",
        columns=("method", "verdicts", "ties", "unparsed", "first_place_rate", "consistency", "alpha"),
    ),
    "audit": TableKind(
        "Judges against labels, %",
        "Agrees: of A, tie and B. By place: points by which an answer is preferred for being shown first. ECE: by how much probabilities are wrong.",
        ("method", "pairs", "accuracy", "kappa", "first_place", "consistency", "ece"),
    ),
    "effects": TableKind(
        "What sways a judge (odds ratios)",
        "At equal label, by how much the odds of an answer grow: shown first; twice the length, headers, list items or bold; of the judge's own family.",
        ("method", "effect", "odds_ratio", "verdicts"),
    ),
    "confusion": TableKind("Labels by verdicts"),
    "reliability": TableKind("Probabilities against labels, %", "How often people prefer what the judge prefers, by the probability that it gives."),
    "panel": TableKind(
        "Judges of the panel, weighed",
        "Dawid and Skene 1979: who is how often right by what all say. Effective judges: who err independently and are worth as much.",
    ),
    "corrected": TableKind(
        "Win rates corrected by labels, %",
        "By labels alone, by the judge alone, and by both (PPI++). Labels worth: how many labels alone would say as much.",
        ("method", "over", "pairs", "labels", "human", "judge", "corrected", "labels_worth", "gains"),
    ),
    "style": TableKind(
        "Ratings at equal style", "Bradley-Terry on Elo's scale, without and with the style of answers beside the models, after Li et al. 2024."
    ),
    "style effects": TableKind("Effects of style", "In log-odds and odds of a win, for one standard deviation more."),
    "frontier": TableKind(
        "Quality against price",
        "Of every subset of models, the answer that the ranking puts first: its mean quality, and $ for 1,000 records. What is on the front, singles, and all.",
    ),
    "firsts": TableKind(
        "Who ranks first, % of examples (Figure 1)", "With bootstrap 95 % intervals over the examples; a first place that several share is divided."
    ),
    "distribution": TableKind("Share of each rank, % of examples"),
    "stages": TableKind("Stages, from their manifests"),
    "compare": TableKind(
        "Changes since the earlier run",
        "Noise: the root of the sum of the squared half widths of both 95 % intervals.",
        columns=("method", "column", "old", "new", "change", "noise", "beyond_noise"),
    ),
}
# Two tables that are seen as figures: a terminal does not show them, nor does the page beside the figures.
FIGURES = ("firsts", "distribution")
# Rows that are a line above tables, and no table.
LINES = ("answer", "judge")

# What the judge's ranks are called in Table 2, by what the judge is: only an LLM's are GPT-Rank.
JUDGE_RANK = {LLM: "gpt_rank", STAND_IN: "stand_in_rank", OTHER: "judge_rank"}
# What is the judge's alone, and what is the oracle's, which may be the judge.
OF_JUDGE, OF_ORACLE = ("ratings", "wins", "length", "style", "style effects"), (3, "firsts", "distribution", "frontier")
AT_CHANCE = " (at chance)"

# The kinds of methods in Table 2, in its order, with their headings.
KINDS = {"model": "LLMs", "oracle": "Oracles", "ranker": "Rankers", "fused": "Fused"}
# Rows of the audit: judges, and what nobody chose, beside them.
AUDITED, NOBODY = "judge", "nobody"
# All kinds with their headings.
HEADINGS = {**KINDS, AUDITED: "Judges", NOBODY: "For comparison"}
# What checks call the audit's judges.
JUDGES = "judges"
# What checks call the kinds.
GROUPS = {title.lower(): kind for kind, title in KINDS.items()}


def group_of(row: Row) -> str:
    """What checks call a row's group."""
    if row.get("kind") in (AUDITED, NOBODY):
        return JUDGES
    return next((group for group, kind in GROUPS.items() if kind == row.get("kind")), "agreement")


def by_table(rows: Rows) -> dict[int | str, Rows]:
    """The tables that have rows, in the order in which they are shown."""
    found: dict[int | str, Rows] = {table: [] for table in TABLES}
    for row in rows:
        found[row["table"]].append(row)
    return {table: chosen for table, chosen in found.items() if chosen}


def note_under(table: int | str, rows: Rows) -> str:
    """The line under a table, with the method that its rows are compared with; may be empty."""
    note = TABLES[table].note
    if table == "tests":
        count = rows[0]["comparisons"]
        note = f"{note.removesuffix('.')} over {count:,} comparison{'s' if count > 1 else ''}: no oracles, no columns that never vary."
    return f"Against {rows[0]['baseline']}. {note}" if "baseline" in rows[0] else note


def answer_of(rows: Rows) -> str:
    """The sentence that stands above all tables; nothing where an earlier version wrote the rows."""
    return next((str(row["line"]) for row in rows if row["table"] == "answer"), "")


def judge_of(rows: Rows) -> Row | None:
    """The row on the judge that feeds the tables, where there is one."""
    return next((row for row in rows if row["table"] == "judge"), None)


def line_above(table: int | str, rows: Rows, judge: Row | None) -> str:
    """What the judge is worth, where it feeds something of the table; else nothing."""
    if judge is None:
        return ""
    named = f"judge:{judge['method']}"
    some = any(is_judges(row.get("column", ""), judge) or (table == 3 and row["method"] == named) for row in rows)
    return str(judge["line"]) if table == 2 or some or _is_judges_table(table, judge) else ""


def title_of(table: int | str, judge: Row | None) -> str:
    """A table's title, marked where all of it comes from a judge below the floor."""
    return TABLES[table].title + (AT_CHANCE if judge and judge["at_chance"] and _is_judges_table(table, judge) else "")


def mark(column: str, judge: Row | None) -> str:
    """What stands behind a heading of Table 2 whose column comes from a judge below the floor."""
    return AT_CHANCE if judge and judge["at_chance"] and is_judges(column, judge) else ""


def is_judges(column: str, judge: Row) -> bool:
    """Whether a column of Table 2 comes from the judge's verdicts."""
    return column == judge["column"] or column.startswith("not_worse_than_") or (column == "top3" and judge["is_oracle"])


def _is_judges_table(table: int | str, judge: Row) -> bool:
    return table in OF_JUDGE or (table in OF_ORACLE and judge["is_oracle"])


def key_heading(column: str, judge: Row | None) -> str:
    """A column of Table 2 under its own name, for Markdown, LaTeX and CSV; the stand-in's also says whose it is."""
    name = f" ({judge['method']})" if judge and column == judge["column"] == JUDGE_RANK[STAND_IN] else ""
    return f"{column}{name}{mark(column, judge)}"
