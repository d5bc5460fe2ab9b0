"""What tables there are: their order, titles, notes and columns, for the terminal, the page and every other form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TableKind:
    """A table's title, the line under it, and the columns that a terminal has room for (None: all)."""

    title: str
    note: str = ""
    columns: tuple[str, ...] | None = None


# A row's `table` → what it is, in the order in which tables are shown.
TABLES: dict[int | str, TableKind] = {
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
        "Bootstrap 95 % interval of the mean difference; p by approximate randomization; p_holm corrected for all of them together.",
        ("method", "column", "examples", "difference", "low", "high", "p", "p_holm"),
    ),
    "ratings": TableKind(
        "Ratings over all verdicts (Bradley-Terry on Elo's scale; Elo online)",
        "Each with 95 % intervals over the examples; a tie is half a win.",
        ("method", "verdicts", "win_rate", "rating", "rating_low", "rating_high", "elo", "elo_low", "elo_high"),
    ),
    "wins": TableKind("Win rates: row over column, %"),
    "length": TableKind(
        "Win rates at equal length (our regression, not AlpacaEval 2's estimator)",
        "What the judge would prefer of answers of equal length, after Dubois et al. 2024; bootstrap 95 %. Not comparable with AlpacaEval 2's leaderboard.",
        ("method", "examples", "win_rate", "length_controlled", "low", "high", "length_effect", "characters"),
    ),
    "judges": TableKind(
        "Judges: rate of the first place, agreement of both orders, %",
        columns=("method", "verdicts", "ties", "unparsed", "first_place_rate", "consistency", "alpha"),
    ),
    "firsts": TableKind("Who ranks first, % of examples (Figure 1)"),
    "distribution": TableKind("Share of each rank, % of examples"),
    "stages": TableKind("Stages, from their manifests"),
    "compare": TableKind("Changes since the earlier run", columns=("method", "column", "old", "new", "change", "noise", "beyond_noise")),
}
# Two tables that are seen as figures: a terminal does not show them, nor does the page beside the figures.
FIGURES = ("firsts", "distribution")

# The kinds of methods in Table 2, in its order, with their headings.
KINDS = {"model": "LLMs", "oracle": "Oracles", "ranker": "Rankers", "fused": "Fused"}


def by_table(rows: Rows) -> dict[int | str, Rows]:
    """The tables that have rows, in the order in which they are shown."""
    found: dict[int | str, Rows] = {table: [] for table in TABLES}
    for row in rows:
        found[row["table"]].append(row)
    return {table: chosen for table, chosen in found.items() if chosen}


def note_under(table: int | str, rows: Rows) -> str:
    """The line under a table, with the method that its rows are compared with; may be empty."""
    note = TABLES[table].note
    return f"Against {rows[0]['baseline']}. {note}" if "baseline" in rows[0] else note
