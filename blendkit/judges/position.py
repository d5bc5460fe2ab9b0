"""Whether a judge prefers a place rather than an answer: how often the first one shown wins, and whether both orders agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from blendkit.judges.base import Opinion, Shown


@dataclass
class PositionBias:
    """Counts over a run; may be fed from several threads."""

    decided: int = 0
    first: int = 0
    pairs: int = 0
    agreeing: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, opinions: Iterable[tuple[Shown, Opinion]]) -> None:
        """Takes a record's opinions with the order shown; `unparsed` counts for nothing."""
        by_pair: dict[Shown, list[int]] = {}
        with self._lock:
            for shown, opinion in opinions:
                if opinion.verdict == "unparsed":
                    continue
                self.decided += opinion.verdict in ("A", "B")
                self.first += opinion.verdict == "A"
                # All ties are one: whether both answers are good is not a question of their places.
                sign = {"A": 1, "B": -1}.get(opinion.verdict, 0) * (1 if shown[0] < shown[1] else -1)
                by_pair.setdefault((min(shown), max(shown)), []).append(sign)
            both = [found for found in by_pair.values() if len(found) == 2]
            self.pairs += len(both)
            self.agreeing += sum(one == other for one, other in both)

    def describe(self) -> dict[str, Any]:
        """For the manifest: shares of 1, None where there is nothing to count."""
        return {
            "first_place_rate": round(self.first / self.decided, 4) if self.decided else None,
            "decided": self.decided,
            "consistency": round(self.agreeing / self.pairs, 4) if self.pairs else None,
            "pairs_in_both_orders": self.pairs,
        }

    def message(self) -> list[str]:
        """One line for a person, or none."""
        if not self.decided:
            return []
        line = f"the answer shown first won {self.first / self.decided:.1%} of {self.decided:,} decided verdicts (50 % is no bias)"
        return [f"{line}; both orders agree on {self.agreeing / self.pairs:.1%} of {self.pairs:,} pairs" if self.pairs else line]
