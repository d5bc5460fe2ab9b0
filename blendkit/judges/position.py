"""Whether a judge prefers a place rather than an answer: how often the first one shown wins, and whether both orders agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

Shown = tuple[int, int]


@dataclass
class PositionBias:
    """Counts over a run; may be fed from several threads."""

    decided: int = 0
    first: int = 0
    pairs: int = 0
    agreeing: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, verdicts: Iterable[tuple[Shown, str, str]]) -> None:
        """Takes a record's (order shown, verdict on first and second, verdict on a and b); `unparsed` counts for nothing."""
        by_pair: dict[Shown, list[str]] = {}
        with self._lock:
            for shown, raw, verdict in verdicts:
                if raw == "unparsed":
                    continue
                self.decided += raw in ("A", "B")
                self.first += raw == "A"
                by_pair.setdefault((min(shown), max(shown)), []).append(verdict)
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
