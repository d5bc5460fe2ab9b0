"""The table of a panel whose judges are weighed by how reliable each is (`judges.dawid_skene`), and how many independent judges it is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.errors import DataError
from blendkit.evaluation.audit.labels import labels_of
from blendkit.evaluation.examples import rounded
from blendkit.judges.agreement import VALUES, ordinal_alpha
from blendkit.judges.dawid_skene import CLASSES, LEAST_JUDGES, NONE, DawidSkene, Values, VoteCounts, Votes, dawid_skene
from blendkit.records import Record


class Panel:
    """Counts the verdicts of all judges in the stream; `fitted` weighs the judges."""

    def __init__(self, labels: str | None = None) -> None:
        """`labels` are people's, where there are some (see `labels_of`)."""
        self._labels = labels
        self._counts = VoteCounts()

    @property
    def judges(self) -> list[str]:
        """Whose verdicts there were."""
        return self._counts.judges

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`, without those of a panel.

        Raises:
            RecordError: the labels are none.
            DataError: there are too many judges.
        """
        labels = None if self._labels is None else labels_of(record, self._labels, verdicts)
        self._counts.add({name: rows for name, rows in verdicts.items() if f"judge:{name}" != self._labels}, labels)

    def fitted(self) -> FittedPanel:
        """What is known of the judges so far.

        Raises:
            DataError: there is no verdict yet.
        """
        if not self._counts.pairs:
            raise DataError("a panel is weighed by its judges' verdicts, and there are none: `blendkit judge` writes them")
        votes, labels, counts = self._counts.table()
        return FittedPanel(self.judges, votes, labels, counts, dawid_skene(votes, counts))


@dataclass(frozen=True, slots=True)
class FittedPanel:
    """The judges' names, the different rows of `votes` with their `labels` (NaN: none) and `counts`, and the fit."""

    judges: list[str]
    votes: Votes
    labels: Values
    counts: Values
    fit: DawidSkene

    def rows(self) -> list[dict[str, Any]]:
        """The table `panel`: a row a judge, the heaviest first, and a last one of all.

        `accuracy` in % is by the estimated truth, `weight` in logits (see `DawidSkene.weights`); None of fewer than LEAST_JUDGES. With labels,
        `majority` and `weighed` say in how many % of the labelled pairs each is right. `effective_judges` is how many judges who err
        independently would be worth as much, J / (1 + (J - 1) ρ), with the mean correlation ρ of two judges (Kish 1965; Clemen and Winkler
        1985): that of their errors at each label where there are labels (`by`), else that of their votes, which also agree where they are
        right, so that it is a lower bound.
        """
        given = ((self.votes != NONE) * self.counts[:, None]).sum(axis=0)
        order = np.argsort(-self.fit.weights, kind="stable").tolist()
        rows: list[dict[str, Any]] = []
        known = len(self.judges) >= LEAST_JUDGES
        for judge in order:
            row = {"table": "panel", "method": self.judges[judge], "pairs": int(given[judge])}
            figures = {"accuracy": rounded(100 * float(self.fit.accuracy[judge])), "weight": rounded(float(self.fit.weights[judge]))}
            rows.append(row | (figures if known else dict.fromkeys(figures)))
        there = ~np.isnan(self.labels)
        by, number = ("errors", self.effective(self._errors())) if there.any() else ("votes", self.effective(self.votes.astype(np.float64)))
        patterns: Counter[tuple[int, ...]] = Counter()
        for votes, count in zip(self.votes.tolist(), self.counts.tolist(), strict=True):
            patterns[tuple(votes.count(value + 1) for value in VALUES)] += int(count)
        alpha = ordinal_alpha(patterns)
        row = {"table": "panel", "method": "all judges", "pairs": int(self.counts.sum()), "alpha": None if alpha is None else rounded(alpha)}
        row |= {"effective_judges": None if number is None else rounded(number), "by": by}
        if there.any():
            truth, weight = self.labels[there] + 1, self.counts[there]
            for name, said in (("majority", self.majority()), ("weighed", self.fit.posterior.argmax(axis=1))):
                row[name] = rounded(100 * float(weight @ (said[there] == truth)) / float(weight.sum())) if known or name == "majority" else None
        return [*rows, row]

    def _errors(self) -> Values:
        """[rows, judges]: by how much a vote differs from the judge's mean vote at that label, so that nothing correlates for the labels' sake."""
        values = np.where(self.votes == NONE, np.nan, self.votes)
        errors = np.full(values.shape, np.nan)
        for label in VALUES:
            there = self.labels == label
            weight = np.where(np.isnan(values[there]), 0.0, self.counts[there][:, None])
            means = (weight * np.nan_to_num(values[there])).sum(axis=0) / np.maximum(weight.sum(axis=0), 1)
            errors[there] = values[there] - means
        return errors

    def majority(self) -> NDArray[np.int64]:
        """[rows]: the class that more than half of the votes are for, otherwise a tie."""
        said = np.stack([(self.votes == vote).sum(axis=1) for vote in range(CLASSES)], axis=1)
        return np.where(2 * said.max(axis=1) > said.sum(axis=1), said.argmax(axis=1), 1)

    def effective(self, values: Values) -> float | None:
        """How many independent judges the panel is worth by `values` [rows, judges], NaN where there is none; None where nothing correlates."""
        found = []
        for one in range(len(self.judges)):
            for other in range(one):
                there = (self.votes[:, [one, other]] != NONE).all(axis=1) & ~np.isnan(values[:, [one, other]]).any(axis=1)
                weight = self.counts[there]
                if weight.sum() > 1:
                    pair = values[there][:, [one, other]]
                    pair = pair - (weight[:, None] * pair).sum(axis=0) / weight.sum()
                    spread = np.sqrt((weight[:, None] * pair**2).sum(axis=0))
                    if spread.min() > 0:
                        found.append(float((weight * pair[:, 0] * pair[:, 1]).sum() / spread.prod()))
        judges = len(self.judges)
        return judges / (1 + (judges - 1) * max(0.0, sum(found) / len(found))) if found else None
