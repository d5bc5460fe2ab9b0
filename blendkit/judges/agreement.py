"""How far the judges of a panel agree: Krippendorff's alpha over the pairs (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

import numpy as np

from blendkit.aggregate import Settled
from blendkit.terminal_text import count_of

# B is better, a tie, A is better. The values are ordered: a tie is nearer to either than they are to each other.
VALUES = (-1, 0, 1)

Counts = tuple[int, ...]


class PanelAgreement:
    """Counts how often each mix of verdicts occurs, so that its memory does not grow with the stream; may be fed from several threads."""

    def __init__(self) -> None:
        # How many judges gave each of VALUES → on how many pairs.
        self._patterns: Counter[Counts] = Counter()
        self._lock = Lock()

    def add(self, verdicts: Iterable[dict[tuple[int, int], Settled]]) -> None:
        """Takes a record's settled verdicts, one mapping a judge; `unparsed` counts for nothing, a pair that nobody could be read on neither."""
        found = list(verdicts)
        with self._lock:
            for pair in dict.fromkeys(pair for judge in found for pair in judge):
                given = [judge[pair].sign for judge in found if pair in judge and judge[pair].verdict != "unparsed"]
                if given:
                    self._patterns[tuple(given.count(value) for value in VALUES)] += 1

    @property
    def alpha(self) -> float | None:
        """Ordinal alpha of all pairs so far; see `ordinal_alpha`."""
        return ordinal_alpha(self._patterns)

    @property
    def pairs(self) -> int:
        """How many pairs were judged."""
        return self._patterns.total()

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        alpha = self.alpha
        return {"krippendorff_alpha": None if alpha is None else round(alpha, 4), "pairs": self.pairs}

    def message(self) -> list[str]:
        """One line for a person, or none."""
        alpha = self.alpha
        return (
            [] if alpha is None else [f"the judges agree with Krippendorff's alpha {alpha:.3f} on {count_of(self.pairs, 'pair')} (1 is perfect, 0 is chance)"]
        )


def ordinal_alpha(patterns: Mapping[Counts, int]) -> float | None:
    """Krippendorff's alpha for ordered values: 1 is perfect, 0 is chance. None where it is not defined: all gave one value, or nothing was judged twice.

    `patterns` says how many units have each tuple of counts; the counts say how many raters gave each value, lowest first.
    """
    units = [(np.array(counts, float), times) for counts, times in patterns.items() if sum(counts) > 1]
    if not units:
        return None
    # o[c, k] of the paper: how often the values c and k stand side by side in one unit.
    coincidences = np.sum([times * (np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1) for counts, times in units], axis=0)
    n = coincidences.sum(axis=0)
    if (n > 0).sum() < 2:
        return None
    expected = (np.outer(n, n) - np.diag(n)) / (n.sum() - 1)
    # The distance of two values is the number of ratings from the middle of the one to the middle of the other, squared.
    middles = n.cumsum() - n / 2
    distances = (middles[:, None] - middles) ** 2
    return float(1 - (coincidences * distances).sum() / (expected * distances).sum())
