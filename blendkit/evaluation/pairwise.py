"""Agreement with pairwise labels, such as people's: how often a scorer or ranker prefers what they prefer, and what length alone would give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.errors import RecordError
from blendkit.records import Record, generated_only
from blendkit.scorers import better_when_lower

RESAMPLES, SEED = 2000, 0
LENGTH = "longest candidate"
LABELS = ("A", "B", "tie")


@dataclass
class Answers:
    """One method's outcomes: 1 where it agrees with the label, 0 where not, 0.5 where it sees no difference."""

    right: list[float] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)


class PairwiseAgreement:
    """Takes records of two candidates that LLMs wrote and a label A, B or tie; pairs that people call a tie are left out."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ties = 0
        self._labels: list[str] = []
        self._lengths: list[int] = []
        self._methods: dict[str, Answers] = {}

    def add(self, record: Record) -> None:
        """Notes what each ranking and score of the record prefers.

        Raises:
            RecordError: the label is missing or none of A, B and tie, or there are not two candidates.
        """
        label = record.get(self.name)
        if label not in LABELS:
            raise RecordError(self.name, f"expected A, B or tie, as --agreement {self.name} needs, got {label!r}")
        chosen = generated_only(record["candidates"])
        if len(chosen) != 2:
            raise RecordError("candidates", f"expected two, A and B, as --agreement {self.name} needs, got {len(chosen)}")
        if label == "tie":
            self.ties += 1
            return
        first, second = (record["candidates"][index] for index in chosen)
        lengths = len(first["text"]) - len(second["text"])
        number = len(self._labels)
        self._labels.append(label)
        self._lengths.append(lengths)
        preferred: dict[str, float] = {LENGTH: lengths}
        for name, ranks in record.get("ranks", {}).items():
            if len(ranks) == 2:
                preferred[name] = ranks[1] - ranks[0]
        for name in first.get("scores", {}):
            values = first["scores"][name], second.get("scores", {}).get(name)
            if None not in values:
                preferred[f"score:{name}"] = (values[1] - values[0]) if better_when_lower(name) else (values[0] - values[1])
        for name, difference in preferred.items():
            answers = self._methods.setdefault(name, Answers())
            answers.right.append(0.5 if difference == 0 else float((difference > 0) == (label == "A")))
            answers.pairs.append(number)

    def rows(self) -> list[dict[str, Any]]:
        """One row a method, the best first: percentages, with bootstrap 95 % intervals over pairs."""
        longest = np.array(self._methods[LENGTH].right) if self._labels else np.zeros(0)
        rows = [self._row(name, answers, longest) for name, answers in self._methods.items()]
        return sorted(rows, key=lambda row: -row["accuracy"])

    def _row(self, name: str, answers: Answers, longest: NDArray[np.float64]) -> dict[str, Any]:
        right = np.array(answers.right)
        same = longest[answers.pairs]
        drawn = np.random.default_rng(SEED).integers(len(right), size=(RESAMPLES, len(right)))
        row: dict[str, Any] = {"table": "agreement", "method": name, "pairs": len(right)}
        row["accuracy"] = _percent(right.mean())
        row["accuracy_low"], row["accuracy_high"] = (_percent(value) for value in np.percentile(right[drawn].mean(1), (2.5, 97.5)))
        row["longest"] = _percent(same.mean())
        over = right - same
        row["over_longest"] = _percent(over.mean())
        row["over_longest_low"], row["over_longest_high"] = (_percent(value) for value in np.percentile(over[drawn].mean(1), (2.5, 97.5)))
        gain = row["accuracy"] - 50
        # Of what the method is right about beyond chance, how much a guess by length would have had.
        row["explained_by_length"] = _percent((row["longest"] - 50) / gain) if gain > 0 else None
        for key, value in (("right_when_longer_is", 1.0), ("right_when_shorter_is", 0.0)):
            row[key] = _percent(right[same == value].mean()) if (same == value).any() else None
        return row


def _percent(share: Any) -> float:
    return round(100 * float(share), 2)
