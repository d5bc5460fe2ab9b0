"""Counts of what a run has done so far."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field

_counting = threading.Lock()


def _add(counts: object, more: dict[str, int]) -> None:
    with _counting:
        for name, number in more.items():
            setattr(counts, name, getattr(counts, name) + number)


@dataclass
class InHand:
    """What this process works on now: records of windows that are not done, their works, and how many of these are done; a later round adds works."""

    records: int = 0
    input_bytes: int = 0
    works: int = 0
    computed: int = 0

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return self.computed / self.works if self.works else 0.0


@dataclass
class Counts:
    """`works` were asked for by the stage, `computed` were run, as equal works run once; `tokens` and `input_bytes` are of those that were run and read."""

    records: int = 0
    skipped: int = 0
    input_bytes: int = 0
    works: int = 0
    computed: int = 0
    tokens: int = 0
    budget_halvings: int = 0
    in_hand: InHand = field(default_factory=InHand)

    def add(self, **more: int) -> None:
        """Adds to the counts of these names, under a lock: several threads may work on windows."""
        _add(self, more)

    def take(self, **more: int) -> None:
        """Adds to what is in hand (below 0: takes away), under the same lock."""
        _add(self.in_hand, more)

    def described(self) -> dict[str, int]:
        """The counts of the whole run."""
        return {name: number for name, number in asdict(self).items() if name != "in_hand"}
