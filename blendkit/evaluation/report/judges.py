"""The page's section on judges that people's labels are there for: how good each is, and where it is biased, at a glance."""

from __future__ import annotations

from html import escape
from typing import Any

from blendkit.evaluation.columns import digits_of, text_of
from blendkit.evaluation.layout import sways
from blendkit.evaluation.pairwise import LENGTH
from blendkit.evaluation.tables import AUDITED, Row, Rows
from blendkit.terminal_text import count_of, shown

# Judges with a card; the table has all.
MOST = 12
# What an odds ratio is of, for a person.
WORDS = {
    "first place": "the first place", "length": "twice the length", "headers": "more headers", "lists": "more list items", "bold": "more bold",
    "own family": "its own family",
}  # fmt: skip


def cards(rows: Rows) -> str:
    """A card for each judge of the audit, as HTML; nothing where there is no audit."""
    judges = [row for row in rows if row["table"] == "audit" and row["kind"] == AUDITED]
    longest = next((row for row in rows if row["table"] == "audit" and row["method"] == LENGTH and row["kind"] != AUDITED), None)
    found = [_card(row, longest, [effect for effect in rows if effect["table"] == "effects" and effect["method"] == row["method"]]) for row in judges[:MOST]]
    return f'<div class="cards judges">{"".join(found)}</div>' if found else ""


def _card(row: Row, longest: Row | None, effects: Rows) -> str:
    said = [f"agrees with the labels on <b>{_figure(row, 'accuracy')} %</b> {_bounds(row, 'accuracy')} of {count_of(row['pairs'], 'pair')}"]
    if longest is not None:
        said.append(f"{_beside(row, longest)} the longest candidate, which has {_figure(longest, 'accuracy')} %")
    if row["consistency"] is not None:
        said.append(f"says the same in both orders on {_figure(row, 'consistency')} %")
    swayed = [f"<li>{_swayed(effect)}</li>" for effect in effects if sways(effect)]
    known = any(effect["odds_ratio"] is not None for effect in effects if effect["effect"] != "label")
    biased = f"<ul>{''.join(swayed)}</ul>" if swayed else f"<p>{'No bias beyond chance was found.' if known else 'The verdicts do not tell what sways it.'}</p>"
    sure = "gives no probabilities" if row["ece"] is None else f"probabilities are wrong by {100 * row['ece']:.1f} points on average"
    name = escape(shown(row["method"]))
    return (
        f'<div class="card"><h3><bdi>{name}</bdi></h3><p class="worth">kappa {_figure(row, "kappa")} <small>{_bounds(row, "kappa")}</small></p>'
        f"<p>{'; '.join(said)}; {sure}.</p>{biased}</div>"
    )


def _beside(row: Row, longest: Row) -> str:
    """How it compares with a judge that only looks at lengths, where intervals say so."""
    (low, high), (least, most) = (one["intervals"].get("kappa", (None, None)) for one in (row, longest))
    if None in (low, high, least, most):
        return "not known to be better than"
    return "<b>better</b> than" if low > most else "<b>worse</b> than" if high < least else "<b>not clearly better</b> than"


def _swayed(effect: Row) -> str:
    odds = effect["odds_ratio"]
    low, high = effect["intervals"]["odds_ratio"]
    way = "leans to" if odds > 1 else "leans away from"
    if odds < 1:
        odds, low, high = 1 / odds, 1 / high, 1 / low
    return f"{way} <b>{WORDS[effect['effect']]}</b>: odds × {odds:.2f} <small>{low:.2f} to {high:.2f}</small>"


def _figure(row: Row, column: str) -> str:
    value: Any = row[column]
    return escape(text_of(value, digits_of("audit", column, [value])))


def _bounds(row: Row, column: str) -> str:
    low, high = row["intervals"].get(column, (None, None))
    digits = digits_of("audit", column, [low])
    return "" if low is None else f"({text_of(low, digits)} to {text_of(high, digits)})"
