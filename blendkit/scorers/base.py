"""The whole contract of a scorer: one number for one candidate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Item:
    """One candidate to be scored; `reference` is empty for scorers that need none."""

    source: str
    candidate: str
    reference: str
    record_id: str
    index: int


class Scorer(ABC):
    """Writes `scores[name]` of each candidate. Higher is better for all of them.

    A signature tells all that decided a score; a score without it is not a result.
    """

    needs_reference: ClassVar[bool] = True
    about: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def score(self, items: list[Item]) -> list[float]:
        """One number an item."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Such as `bleu|eff:yes|tok:13a|v:2.6.0`."""

    def key(self, item: Item) -> Hashable:
        """Items with equal keys have equal scores."""
        return (item.candidate, item.reference)
