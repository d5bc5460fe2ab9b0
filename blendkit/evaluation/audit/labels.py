"""Labels that verdicts are held against: people's own, or those of a judge that stands for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from blendkit.aggregate import settled
from blendkit.errors import RecordError
from blendkit.evaluation.pairwise import LABELS
from blendkit.records import Index, Record, generated_only
from blendkit.terminal_text import count_of
from blendkit.untrusted import kind_of, typed

Pair = tuple[int, int]
# What a verdict or label says of a pair (a, b): b is better, a tie, a is better.
SIGNS = {"B": -1, "tie": 0, "tie-good": 0, "tie-bad": 0, "A": 1}
JUDGE = "judge:"


class PairLabel(TypedDict):
    """What a person said of candidates a and b; null where the form is not filled in yet.

    `weight` says for how many pairs drawn evenly this one stands, where pairs were drawn unevenly (`label_next`).
    """

    a: Index
    b: Index
    verdict: Literal["A", "B", "tie", "tie-good", "tie-bad"] | None
    weight: NotRequired[Annotated[float, msgspec.Meta(gt=0, le=1e6)]]


def labels_of(record: Record, name: str, verdicts: dict[str, list[dict[str, Any]]]) -> dict[Pair, tuple[int, float]]:
    """Pair (a, b), a < b → what its label says (1: a is better, 0: a tie, -1: b is better), and the label's weight; empty where there is none.

    `name` is a field of the record, or `judge:NAME` for that judge's verdicts, two orders settled. The field holds A, B or tie on
    a record of two candidates, or a list of labels. Of several labels on one pair, what more than half say counts, otherwise a tie.

    Raises:
        RecordError: the field holds something else.
    """
    if name.startswith(JUDGE):
        found = settled(verdicts.get(name.removeprefix(JUDGE), []))
        return {pair: (verdict.sign, 1.0) for pair, verdict in found.items() if verdict.verdict != "unparsed" and pair[0] != pair[1]}
    value = record.get(name)
    if value is None:
        return {}
    if isinstance(value, str):
        return {_only_pair(record, name): (SIGNS[value], 1.0)} if value in LABELS else _refuse(name, repr(value))
    if not isinstance(value, list):
        return _refuse(name, kind_of(value))
    votes: dict[Pair, list[tuple[int, float]]] = {}
    for place, label in enumerate(value):
        label = typed(label, PairLabel, f"{name}[{place}]")
        a, b, size = label["a"], label["b"], len(record.get("candidates", ()))
        if a == b or max(a, b) >= size:
            raise RecordError(f"{name}[{place}]", f"expected two of {count_of(size, 'candidate')}, got {a} and {b}")
        if label["verdict"] is not None:
            sign = SIGNS[label["verdict"]]
            votes.setdefault((min(a, b), max(a, b)), []).append((sign if a < b else -sign, label.get("weight", 1.0)))
    return {pair: (_majority([sign for sign, _ in given]), given[0][1]) for pair, given in votes.items()}


def _refuse(name: str, got: str) -> dict[Pair, tuple[int, float]]:
    raise RecordError(name, f"expected A, B or tie, or a list of {{a, b, verdict}}, got {got}")


def _only_pair(record: Record, name: str) -> Pair:
    chosen = generated_only(record.get("candidates", ()))
    if len(chosen) != 2:
        raise RecordError(name, f"expected a list of {{a, b, verdict}}: one label speaks of two candidates, and there are {len(chosen)}")
    return chosen[0], chosen[1]


def _majority(signs: list[int]) -> int:
    return next((sign for sign in (1, -1) if 2 * signs.count(sign) > len(signs)), 0)
