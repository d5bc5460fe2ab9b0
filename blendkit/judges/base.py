"""What a judge is: opinions on answers in the order in which it is shown them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from blendkit.aggregate import SWAPPED
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Rounds
from blendkit.records import Record
from blendkit.seeding import seeded

Shown = tuple[int, int]
# What stands behind verdicts, as their signature says it: an LLM (GPT-Rank), the offline stand-in, several judges, or something else.
LLM, STAND_IN, PANEL, OTHER = "llm", "stand-in", "panel", "other"
ORDERS = ("both", "random")


@dataclass(frozen=True, slots=True)
class Opinion:
    """A verdict on the answers shown first (A) and second (B); `probability` that the first is better, a tie counting half.

    `waiting`: it is unparsed only until the next batch has been run.
    """

    verdict: str
    probability: float | None = None
    reason: str | None = None
    waiting: bool = False


Opinions = Rounds[list[Opinion]]


class Juror(ABC):
    """A judge, alone or in a panel."""

    name: str
    signature: str
    # LLM or STAND_IN, where it is one of them: only an LLM's ranks are called GPT-Rank.
    kind: str = OTHER
    # Windows of records that it may work on at a time (see Stage).
    overlap: int = 1
    # Padded tokens of a batch (see Stage), where its work is budgeted.
    batch_tokens: int = Stage.batch_tokens
    # It gives the same verdict in either order, so that one is enough.
    indifferent: bool = False

    def known_as(self) -> set[str]:
        """The names by which an answer's `model` may say that it is this judge's own."""
        return {self.name}

    def begin(self, record: Record) -> None:  # noqa: B027
        """Called once a record, right before its first round."""

    @abstractmethod
    def rounds(self, record: Record, shown: list[Shown]) -> Opinions:
        """One opinion for each (first, second), indices of candidates.

        Raises:
            RecordError: the record lacks what the judge is shown.
        """

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {}

    def warnings(self) -> list[str]:
        """What a person should know at the end."""
        return []


def orders_shown(orders: str, pair: Shown, seed: int, record_id: str) -> list[Shown]:
    """`both` orders, or one at `random` that depends on the seed, the record and the pair alone."""
    a, b = pair
    if orders == "both":
        return [(a, b), (b, a)]
    return [(a, b) if random.Random(seeded(seed, record_id, str(a), str(b))).random() < 0.5 else (b, a)]


def as_row(opinion: Opinion, shown: Shown, indifferent: bool = False) -> dict[str, Any]:
    """The opinion as the record keeps it: on candidates a < b, whichever was shown first. An `indifferent` judge saw no order."""
    a, b = min(shown), max(shown)
    turned = shown != (a, b)
    row: dict[str, Any] = {"a": a, "b": b, "verdict": SWAPPED.get(opinion.verdict, opinion.verdict) if turned else opinion.verdict}
    if not indifferent:
        row["shown"] = list(shown)
    if opinion.probability is not None:
        row["probability"] = round(1 - opinion.probability if turned else opinion.probability, 6)
    if opinion.reason:
        row["reason"] = opinion.reason
    return row
