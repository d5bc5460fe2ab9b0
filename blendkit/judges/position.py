"""Whether a judge prefers a place rather than an answer: how often the first one shown wins, and whether both orders agree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from blendkit.aggregate import SWAPPED
from blendkit.judges.base import Shown
from blendkit.terminal_text import count_of

# The normal distribution's bound of 95 %.
Z = 1.959964
# What a verdict says of the two places.
FIRST, SECOND, TIE = range(3)
PLACES = {"A": FIRST, "B": SECOND}
AGREE = {(FIRST, SECOND), (SECOND, FIRST), (TIE, TIE)}


@dataclass
class PositionBias:
    """Counts over a run, which do not grow with it; may be fed from several threads.

    The floor of a judge: both orders of a pair must agree more often than chance would have it. Chance is a judge that does not
    look at the answers and calls the first place, the second place and ties as often as this one does: one verdict by place alone,
    or at random. With shares f, s and t it agrees with itself on t² + 2fs of the pairs: 0 for who always takes the first, 0.5 at most
    where there are no ties, 1 for who always says tie.
    """

    decided: int = 0
    first: int = 0
    pairs: int = 0
    agreeing: int = 0
    # Of the pairs seen in both orders, how many verdicts were for FIRST, SECOND and TIE.
    both: list[int] = field(default_factory=lambda: [0, 0, 0])
    # Over the records with such pairs: their number, and the sums of pairs², agreeing² and pairs × agreeing.
    records: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, verdicts: Iterable[tuple[Shown, str]]) -> None:
        """Takes a record's verdicts on the answers as they were shown, A for the first; `unparsed` counts for nothing."""
        by_pair: dict[Shown, dict[Shown, int]] = {}
        counts = [0, 0, 0]
        for shown, verdict in verdicts:
            if verdict != "unparsed":
                # All ties are one: whether both answers are good is not a question of their places.
                place = PLACES.get(verdict, TIE)
                counts[place] += 1
                first, second = shown
                by_pair.setdefault(shown if first < second else (second, first), {})[shown] = place
        pairs = [tuple(found.values()) for found in by_pair.values() if len(found) == 2]
        # The same answer won where it stood first the one time and second the other.
        agreeing = sum(pair in AGREE for pair in pairs)
        with self._lock:
            self.first += counts[FIRST]
            self.decided += counts[FIRST] + counts[SECOND]
            if pairs:
                for pair in pairs:
                    for place in pair:
                        self.both[place] += 1
                self.pairs += len(pairs)
                self.agreeing += agreeing
                self.records = [sum(both) for both in zip(self.records, (1, len(pairs) ** 2, agreeing**2, len(pairs) * agreeing), strict=True)]

    @property
    def agreement(self) -> float | None:
        """The share of pairs on which both orders agree."""
        return self.agreeing / self.pairs if self.pairs else None

    @property
    def by_chance(self) -> float | None:
        """The share of pairs on which verdicts that do not depend on the answers would agree."""
        if not self.pairs:
            return None
        first, second, tie = (count / (2 * self.pairs) for count in self.both)
        return tie**2 + 2 * first * second

    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the agreement (Wilson 1927); pairs count for less where those of a record hang together."""
        if not self.pairs:
            return None
        share, size = self.agreeing / self.pairs, float(self.pairs)
        count, pairs_squared, agreeing_squared, product = self.records
        if 0 < share < 1 and count > 1:
            # The variance over records, beside that of independent pairs: the design effect (Kish 1965).
            spread = (agreeing_squared - 2 * share * product + share**2 * pairs_squared) * count / (count - 1) / size**2
            size /= max(1.0, spread / (share * (1 - share) / size))
        middle, half = share + Z**2 / (2 * size), Z * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
        whole = 1 + Z**2 / size
        return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)

    @property
    def at_chance(self) -> bool | None:
        """Whether the judge is below the floor: the interval of its order agreement is not all above chance. None where no pair was seen in both orders."""
        bounds, chance = self.interval(), self.by_chance
        # A little slack: Wilson's bound of no agreement is 0 but for rounding.
        return None if bounds is None or chance is None else bounds[0] <= chance + 1e-9

    def describe(self) -> dict[str, Any]:
        """For the manifest: shares of 1, None where there is nothing to count."""
        low, high = self.interval() or (None, None)
        return {
            "first_place_rate": _rounded(self.first / self.decided if self.decided else None),
            "decided": self.decided,
            "consistency": _rounded(self.agreement),
            "consistency_low": _rounded(low),
            "consistency_high": _rounded(high),
            "consistency_by_chance": _rounded(self.by_chance),
            "at_chance": self.at_chance,
            "pairs_in_both_orders": self.pairs,
        }

    def orders(self) -> str:
        """How far both orders agree, in words; nothing where no pair was seen in both."""
        bounds = self.interval()
        if bounds is None:
            return ""
        known = f"95 % {bounds[0]:.1%} to {bounds[1]:.1%}, by chance {self.by_chance:.1%}"
        return f"both orders agree on {self.agreement:.1%} of {count_of(self.pairs, 'pair')} ({known})"

    def message(self) -> list[str]:
        """One line for a person, or none."""
        if not self.decided and not self.pairs:
            return []
        first = (
            f"the answer shown first won {self.first / self.decided:.1%} of {count_of(self.decided, 'decided verdict')} (50 % is no bias)"
            if self.decided
            else ""
        )
        line = "; ".join(filter(None, (first, self.orders())))
        return [f"{line}: not above chance, so its verdicts may tell places or guesses, not answers" if self.at_chance else line]


def as_shown(row: dict[str, Any]) -> tuple[Shown, str]:
    """The order in which candidates were shown, and the verdict on them in that order, of a row that has `shown`."""
    first, second = row["shown"]
    verdict: str = row["verdict"]
    return (first, second), verdict if first == row["a"] else SWAPPED.get(verdict, verdict)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
