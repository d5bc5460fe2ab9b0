"""Win rates by a judge, corrected by a few of people's labels: prediction-powered inference with power tuning.

Angelopoulos, Duchi and Zrnic 2023 ("PPI++"), for a mean. With people's labels Y of some pairs and the judge's verdicts f of all, the
estimate is mean(Y) + λ (mean of f over all pairs - mean of f over the labelled ones), with the λ that makes its variance least. For
λ = 0 the judge counts for nothing; the estimate is right for any λ where the labelled pairs were drawn at random.
Over all pairs, rather than the unlabelled ones, the sum is the same with another λ, and holds for pairs drawn unevenly (Zrnic and Candès
2024, "Active statistical inference"): then each label has a weight. Variances are those of sums over records, whose pairs hang together.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import settled
from blendkit.errors import DataError
from blendkit.evaluation.audit.labels import labels_of
from blendkit.evaluation.examples import rounded
from blendkit.evaluation.ratings import MOST_MODELS
from blendkit.evaluation.tables import Rows
from blendkit.judges.position import Z
from blendkit.names import method_names
from blendkit.records import Record
from blendkit.terminal_text import shown

Values = NDArray[np.float64]
Places = NDArray[np.int64]
# Of fewer labelled records, or of labels that are all alike, there is no interval: a normal one would be far too narrow.
ENOUGH = 20
# The correction gains something where it is worth this many times the labels.
GAIN = 1.05
# Variances below it are those of equal values but for rounding.
NOTHING = 1e-18


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share of 1 with its standard error, which is NaN where there is none, of so many degrees of freedom."""

    share: float
    error: float = math.nan
    degrees: int = 0

    def interval(self) -> tuple[float, float] | None:
        """95 %, with Student's quantile (by its expansion in 1 / degrees, which is right to 0.01 from 10 on)."""
        if math.isnan(self.error):
            return None
        bound = Z + (Z**3 + Z) / (4 * self.degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * self.degrees**2)
        return max(0.0, self.share - bound * self.error), min(1.0, self.share + bound * self.error)


@dataclass(frozen=True, slots=True)
class Corrected:
    """What people alone, the judge alone, and both say, with `power` λ.

    `labels` is how many pairs were labelled, and `effective` how many people would have to label for so narrow an interval without a judge.
    """

    human: Estimate
    judge: Estimate
    corrected: Estimate
    power: float
    labels: int
    effective: float

    @property
    def gains(self) -> bool | None:
        """Whether the judge makes the interval narrower by something that matters; None where that is not known."""
        return None if math.isnan(self.effective) else self.effective >= GAIN * self.labels


def corrected(records: Places, judged: Values, labels: Values, weights: Values) -> Corrected:
    """Corrects the mean of `judged` by `labels`; all [pairs], `records` are the numbers of the pairs' records, and labels NaN where there is none.

    `judged` and `labels` are from 0 to 1. `weights` count where there is a label.
    """
    there, size = ~np.isnan(labels), len(judged)
    all_mean = float(judged.mean())
    _, owner = np.unique(records, return_inverse=True)
    by_all: Values = np.bincount(owner, (judged - all_mean) / size).astype(np.float64)
    judge = _estimate(all_mean, by_all, len(by_all) - 1, len(by_all))
    count = int(there.sum())
    if not count:
        return Corrected(Estimate(math.nan), judge, Estimate(math.nan), 0.0, 0, math.nan)
    shares = weights[there] / weights[there].sum()
    human_mean, judge_mean = float(shares @ labels[there]), float(shares @ judged[there])
    # What each record adds to the error of the mean label, and to that of the difference of the judge's means.
    of_labels: Values = np.bincount(owner[there], shares * (labels[there] - human_mean), len(by_all)).astype(np.float64)
    of_judge = by_all - np.bincount(owner[there], shares * (judged[there] - judge_mean), len(by_all))
    spread = float(of_judge @ of_judge)
    # The judge cannot count for less than nothing (as the authors' code has it); one that hedges counts for more than it says.
    power = max(0.0, -float(of_labels @ of_judge) / spread) if spread > NOTHING else 0.0
    labelled = len(np.unique(owner[there]))
    human = _estimate(human_mean, of_labels, labelled - 1, labelled)
    # λ is estimated from the same labels, which costs a degree of freedom.
    both = _estimate(human_mean + power * (all_mean - judge_mean), of_labels + power * of_judge, labelled - 1 - (power > 0), labelled)
    return Corrected(human, judge, both, power, count, count * (human.error / both.error) ** 2)


def _estimate(share: float, by_record: Values, degrees: int, labelled: int) -> Estimate:
    variance = float(by_record @ by_record)
    if variance <= NOTHING or labelled < ENOUGH:
        return Estimate(share)
    return Estimate(share, math.sqrt(variance * labelled / degrees), degrees)


class CorrectedWinRates:
    """Takes records with a judge's verdicts, some with labels; keeps four numbers a pair. Pairs without a verdict count for nothing."""

    def __init__(self, judge: str, labels: str = "human") -> None:
        """`labels` is a record's field or `judge:NAME` (see `labels_of`)."""
        self.judge, self.labels = judge, labels
        self._models: dict[str, int] = {}
        self._records, self._first, self._second = (array("q") for _ in range(3))
        self._judged, self._labels, self._weights = (array("d") for _ in range(3))
        self._count = 0

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`.

        Raises:
            RecordError: the labels are none.
            DataError: there are too many models.
        """
        number, self._count = self._count, self._count + 1
        labels = labels_of(record, self.labels, verdicts)
        methods = method_names(record.get("candidates", []))
        for (a, b), verdict in settled(verdicts.get(self.judge, ())).items():
            if verdict.verdict == "unparsed" or methods[a] == methods[b]:
                continue
            for place, model in ((self._first, methods[a]), (self._second, methods[b])):
                place.append(self._models.setdefault(model, len(self._models)))
            sign, weight = labels.get((a, b), (math.nan, 1.0))
            self._records.append(number)
            self._judged.append((verdict.margin + 1) / 2)
            self._labels.append((sign + 1) / 2)
            self._weights.append(weight)
        if len(self._models) > MOST_MODELS:
            raise DataError(f"more than {MOST_MODELS} models, with {next(reversed(self._models))!r}: their win rates are not corrected")

    def rows(self, notes: list[str]) -> Rows:
        """The table `corrected`: a row a model over all others, then one for each pair of models with ENOUGH labels, in %.

        `human` is the win rate by labels alone, `judge` by the judge alone, `corrected` by both; ties are half a win. `labels_worth` says how
        many labels alone would tell as much. `gains` says whether that is more than there are; `notes` gets a line where it is not.
        """
        records, first, second = (np.array(column) for column in (self._records, self._first, self._second))
        judged, labels, weights = (np.array(column) for column in (self._judged, self._labels, self._weights))
        names = list(self._models)
        rows, nothing = [], []
        for one, other, there, turned in self._chosen(first, second, labels):
            won, said = (np.where(turned, 1 - values[there], values[there]) for values in (judged, labels))
            found = corrected(records[there], won, said, weights[there])
            name = names[one] if other is None else f"{names[one]} over {names[other]}"
            row = {"table": "corrected", "method": names[one], "over": None if other is None else names[other], "pairs": len(won), "labels": found.labels}
            rows.append(row | _figures(found))
            if found.gains is False and found.labels < len(won):
                nothing.append(shown(name))
        if nothing:
            more = f", and {len(nothing) - 5:,} more" if len(nothing) > 5 else ""
            notes.append(f"judge:{shown(self.judge)} tells nothing beyond the labels on the win rate of {', '.join(nothing[:5])}{more}: more labels would")
        return rows

    def _chosen(self, first: Places, second: Places, labels: Values) -> Iterator[tuple[int, int | None, NDArray[np.bool_], NDArray[np.bool_]]]:
        """Each model's pairs, then those of two models: (model, other, which pairs, which of these have the model second)."""
        for model in range(len(self._models)):
            there = (first == model) | (second == model)
            yield model, None, there, second[there] == model
        if len(self._models) == 2:
            return  # of two models, a row over the other is the same again
        low, high = np.minimum(first, second), np.maximum(first, second)
        pairs, counts = np.unique((low * len(self._models) + high)[~np.isnan(labels)], return_counts=True)
        for pair in pairs[counts >= ENOUGH].tolist():
            one, other = divmod(pair, len(self._models))
            there = (low == one) & (high == other)
            yield one, other, there, second[there] == one


def _figures(found: Corrected) -> dict[str, Any]:
    row: dict[str, Any] = {"human": None, "judge": None, "corrected": None}
    intervals = {}
    for name, estimate in (("human", found.human), ("judge", found.judge), ("corrected", found.corrected)):
        row[name] = rounded(100 * estimate.share)
        if (bounds := estimate.interval()) is not None:
            intervals[name] = [rounded(100 * bound) for bound in bounds]
    row |= {"power": rounded(found.power), "labels_worth": rounded(found.effective), "gains": found.gains}
    return row | {"intervals": intervals}
