"""How far the judges of a panel agree: Krippendorff's alpha over the pairs (Krippendorff 2011), by the library of that name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from threading import Lock
from typing import Any

from blendkit.aggregate import Settled

# B is better, a tie, A is better: an order, so that a tie is nearer to either than they are to each other.
VALUES = (-1.0, 0.0, 1.0)


class Agreement:
    """Counts, pair by pair, how many judges gave which verdict; may be fed from several threads."""

    def __init__(self) -> None:
        self._counts: list[list[int]] = []
        self._lock = Lock()

    def add(self, verdicts: Iterable[dict[tuple[int, int], Settled]]) -> None:
        """A record's settled verdicts, one mapping a judge; `unparsed` counts for nothing."""
        found = list(verdicts)
        with self._lock:
            for pair in dict.fromkeys(pair for judge in found for pair in judge):
                given = [judge[pair].sign for judge in found if pair in judge and judge[pair].verdict != "unparsed"]
                self._counts.append([given.count(int(value)) for value in VALUES])

    @property
    def alpha(self) -> float | None:
        """Ordinal alpha: 1 is perfect, 0 is chance; None where it is not defined (one verdict alone, or no pair seen by two)."""
        import krippendorff
        import numpy as np

        counts = np.array([row for row in self._counts if sum(row) > 1])
        if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
            return None
        value = float(krippendorff.alpha(value_counts=counts, value_domain=list(VALUES), level_of_measurement="ordinal"))
        return None if math.isnan(value) else value

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        alpha = self.alpha
        return {"krippendorff_alpha": None if alpha is None else round(alpha, 4), "pairs": len(self._counts)}

    def message(self) -> list[str]:
        """One line for a person, or none."""
        alpha = self.alpha if self._counts else None
        return [] if alpha is None else [f"the judges agree with Krippendorff's alpha {alpha:.3f} on {len(self._counts):,} pairs (1 is perfect, 0 is chance)"]
