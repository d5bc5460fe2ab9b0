"""What all judges share: which pairs, in which order shown, and how verdicts enter the record."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

from blendkit.records import Record, candidates_of
from blendkit.running import seeded
from blendkit.stage import Stage

VERDICTS = ("A", "B", "tie-good", "tie-bad")
SWAPPED = {"A": "B", "B": "A"}


class Judging(Stage):
    """Writes `verdicts[name]` for every unordered pair of candidates, a fused one included.

    `a` and `b` are candidate indices with a < b, and the verdict `A` means that candidate a is better, in
    whichever order the judge saw them (`shown`).
    """

    name = "judge"
    judge_name: str

    def pairs(self, record: Record) -> list[tuple[int, int]]:
        """All (a, b), a < b."""
        return list(combinations(range(len(candidates_of(record))), 2))

    def add(self, record: Record, verdicts: list[dict[str, Any]]) -> None:
        """Puts the verdicts into the record, in place of earlier ones of the same judge."""
        record.setdefault("verdicts", {})[self.judge_name] = verdicts


def orders_shown(orders: str, pair: tuple[int, int], seed: int, record_id: str) -> list[tuple[int, int]]:
    """`both` orders, or one at `random` that depends on the seed, the record and the pair alone."""
    a, b = pair
    if orders == "both":
        return [(a, b), (b, a)]
    return [(a, b) if random.Random(seeded(seed, record_id, str(a), str(b))).random() < 0.5 else (b, a)]


def as_shown(verdict: str, pair: tuple[int, int], shown: tuple[int, int]) -> str:
    """What the judge said of first and second, as a verdict on a and b."""
    return verdict if shown == pair else SWAPPED.get(verdict, verdict)
