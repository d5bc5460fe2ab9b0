"""Agreement with pairwise labels, such as people's: how often a scorer or ranker prefers what they prefer, and what length alone would give."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

from blendkit.errors import RecordError
from blendkit.evaluation.spilled_columns import Column, ColumnFile, Computed, SpilledColumns, counted
from blendkit.evaluation.statistics import bootstrap
from blendkit.records import Record, generated_only
from blendkit.scorers import better_when_lower
from blendkit.terminal_text import shown

RESAMPLES, SEED = 2000, 0
LENGTH = "longest candidate"
LABELS = ("A", "B", "tie")


class PairwiseAgreement:
    """Takes records of two candidates that LLMs wrote and a label A, B or tie; pairs that people call a tie are left out.

    It keeps the outcomes of each method: 1 where it agrees with the label, 0 where not, 0.5 where it sees no difference.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ties = 0
        self._pairs = 0
        self._answers = SpilledColumns(ColumnFile())
        self._places: dict[str, int] = {}

    def add(self, record: Record) -> None:
        """Notes what each ranking and score of the record prefers.

        Raises:
            RecordError: the label is missing or none of A, B and tie, or there are not two candidates.
        """
        label = record.get(self.name)
        if label not in LABELS:
            raise RecordError(self.name, f"expected A, B or tie, as --agreement {shown(self.name)} needs, got {label!r}")
        chosen = generated_only(record["candidates"])
        if len(chosen) != 2:
            raise RecordError("candidates", f"expected two, A and B, as --agreement {shown(self.name)} needs, got {len(chosen)}")
        if label == "tie":
            self.ties += 1
            return
        first, second = (record["candidates"][index] for index in chosen)
        lengths = len(first["text"]) - len(second["text"])
        preferred: dict[str, float] = {LENGTH: lengths}
        for name, ranks in record.get("ranks", {}).items():
            if len(ranks) == 2:
                preferred[name] = ranks[1] - ranks[0]
        for name in first.get("scores", {}):
            values = first["scores"][name], second.get("scores", {}).get(name)
            if None not in values:
                preferred[f"score:{name}"] = (values[1] - values[0]) if better_when_lower(name) else (values[0] - values[1])
        row = array("d", [math.nan]) * (len(self._places) + len(preferred))
        for name, difference in preferred.items():
            row[self._places.setdefault(name, len(self._places))] = 0.5 if difference == 0 else float((difference > 0) == (label == "A"))
        self._answers.put(self._pairs, row[: len(self._places)])
        self._pairs += 1

    def rows(self) -> list[dict[str, Any]]:
        """One row a method, the best first: percentages, with bootstrap 95 % intervals over pairs."""
        if not self._pairs:
            return []
        right = [self._answers.column(place, self._pairs) for place in self._places.values()]
        longest = right[self._places[LENGTH]]
        over = [Computed(np.subtract, answers, longest) for answers in right]
        bounds = bootstrap([*right, *over], SEED, RESAMPLES).tolist()
        cells = zip(self._places, right, bounds[: len(right)], over, bounds[len(right) :], strict=True)
        rows = [self._row(name, found, interval, better, margin, longest) for name, found, interval, better, margin in cells]
        return sorted(rows, key=lambda row: -row["accuracy"])

    def _row(self, name: str, right: Column, bounds: list[float], over: Column, bounds_over: list[float], longest: Column) -> dict[str, Any]:
        count, accuracy = counted(right)
        same = counted(Computed(lambda longest, right: np.where(np.isnan(right), np.nan, longest), longest, right))[1]
        row: dict[str, Any] = {"table": "agreement", "method": name, "pairs": count, "accuracy": _percent(accuracy)}
        row["accuracy_low"], row["accuracy_high"] = map(_percent, bounds)
        row["longest"] = _percent(same)
        row["over_longest"] = _percent(counted(over)[1])
        row["over_longest_low"], row["over_longest_high"] = map(_percent, bounds_over)
        gain = row["accuracy"] - 50
        # Which share of the method's gain over chance a guess by length has, too.
        row["explained_by_length"] = _percent((row["longest"] - 50) / gain) if gain > 0 else None
        for key, value in (("right_when_longer_is", 1.0), ("right_when_shorter_is", 0.0)):
            there, share = counted(Computed(lambda longest, right, value=value: np.where(longest == value, right, np.nan), longest, right))
            row[key] = _percent(share) if there else None
        return row


def _percent(share: Any) -> float:
    return round(100 * float(share), 2)
