"""Panels whose judges are weighed by how reliable each is: the model of Dawid and Skene 1979, by EM, with ties as a class of their own.

Each judge has a confusion matrix: how often it says A, tie or B where the truth is each of them. Nobody knows the truth; EM finds what makes all
verdicts most likely, from the majority on. It takes the judges' errors as independent: of judges that err together it trusts all too much, and how
far that is so the number of effective judges says. Of two judges who differ, their verdicts cannot say which one is right: it takes three.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import Settled, settled
from blendkit.errors import DataError
from blendkit.evaluation.audit.labels import Pair, labels_of
from blendkit.evaluation.examples import rounded
from blendkit.judges.agreement import VALUES, ordinal_alpha
from blendkit.records import Record
from blendkit.terminal_text import listed

Values = NDArray[np.float64]
Votes = NDArray[np.int8]
# A judge's vote: B, a tie, A (a sign plus 1); and no vote.
CLASSES, NONE = 3, -1
# Invented verdicts in each cell of a confusion matrix and for each class: nothing is impossible because it was never seen.
SMOOTH = 0.1
STEPS, CLOSE = 1000, 1e-6
# Fewer judges cannot be told apart, and of more nobody asks a panel.
LEAST_JUDGES, MOST_JUDGES = 3, 100


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """`shares` [3] of the classes, `confusion` [judges, 3, 3] (truth by vote), and the `posterior` [items, 3] of each item's truth."""

    shares: Values
    confusion: Values
    posterior: Values

    def truth_of(self, votes: Votes) -> Values:
        """[items, 3]: how likely each class is by votes [items, judges]."""
        return _likely(_said(votes), self.shares, self.confusion)

    @property
    def accuracy(self) -> Values:
        """[judges]: how often each is right, of pairs as the stream has them."""
        return np.asarray(np.einsum("k,jkk->j", self.shares, self.confusion))

    @property
    def weights(self) -> Values:
        """[judges]: by how many logits a judge's word for an answer, rather than for the other, moves the panel; the mean of both answers."""
        logs = np.log(self.confusion)
        return np.asarray((logs[:, 2, 2] - logs[:, 0, 2] + logs[:, 0, 0] - logs[:, 2, 0]) / 2)


def dawid_skene(votes: Votes, counts: Values) -> DawidSkene:
    """Fits the model to votes [items, judges], each from 0 to 2 or NONE; `counts` [items] says how often each row of votes occurs."""
    said = _said(votes)
    posterior = said.reshape(len(votes), -1, CLASSES).sum(axis=1)
    posterior = posterior / posterior.sum(axis=1, keepdims=True)
    fit = None
    for _ in range(STEPS):
        weighed = posterior * counts[:, None]
        shares = weighed.sum(axis=0) + SMOOTH
        confusion = (weighed.T @ said).reshape(CLASSES, -1, CLASSES).transpose(1, 0, 2) + SMOOTH
        fit = DawidSkene(shares / shares.sum(), confusion / confusion.sum(axis=2, keepdims=True), posterior)
        before, posterior = posterior, _likely(said, fit.shares, fit.confusion)
        if np.abs(posterior - before).max(initial=0.0) < CLOSE:
            break
    assert fit is not None
    return DawidSkene(fit.shares, fit.confusion, posterior)


def _said(votes: Votes) -> Values:
    """[items, judges × 3]: 1 where a judge's vote is that class."""
    return np.stack([votes == vote for vote in range(CLASSES)], axis=2).astype(np.float64).reshape(len(votes), -1)


def _likely(said: Values, shares: Values, confusion: Values) -> Values:
    logs = np.log(shares) + said @ np.log(confusion).transpose(0, 2, 1).reshape(-1, CLASSES)
    likely = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(likely / likely.sum(axis=1, keepdims=True))


class Panel:
    """Counts how often each mix of verdicts occurs, by judge; `fitted` weighs the judges. Memory grows with different mixes, not with the stream."""

    def __init__(self, judges: Iterable[str] | None = None, labels: str | None = None) -> None:
        """Of `judges`, or of all whose verdicts are in the stream; `labels` are people's, where there are some (see `labels_of`)."""
        self._named = None if judges is None else set(judges)
        self._judges: dict[str, int] = {}
        self._labels = labels
        # (label's sign or None, (judge, sign) in the judges' order) → pairs.
        self._mixes: Counter[tuple[int | None, tuple[tuple[int, int], ...]]] = Counter()

    @property
    def judges(self) -> list[str]:
        """Whose verdicts there were."""
        return list(self._judges)

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`, without those of a panel.

        Raises:
            RecordError: the labels are none.
            DataError: there are too many judges.
        """
        labels = {} if self._labels is None else labels_of(record, self._labels, verdicts)
        for pair, votes in self._votes(verdicts).items():
            self._mixes[labels[pair][0] if pair in labels else None, votes] += 1
        if len(self._judges) > MOST_JUDGES:
            raise DataError(f"more than {MOST_JUDGES} judges in a panel, with {next(reversed(self._judges))!r}")

    def _votes(self, verdicts: dict[str, list[dict[str, Any]]]) -> dict[Pair, tuple[tuple[int, int], ...]]:
        found: dict[Pair, list[tuple[int, int]]] = {}
        for name, rows in verdicts.items():
            if (self._named is None and f"judge:{name}" != self._labels) or (self._named is not None and name in self._named):
                judge = self._judges.setdefault(name, len(self._judges))
                for pair, verdict in settled(rows).items():
                    if verdict.verdict != "unparsed":
                        found.setdefault(pair, []).append((judge, verdict.sign))
        return {pair: tuple(sorted(votes)) for pair, votes in found.items()}

    def fitted(self) -> FittedPanel:
        """What is known of the judges so far.

        Raises:
            DataError: there is no verdict yet.
        """
        if not self._mixes:
            raise DataError("a panel is weighed by its judges' verdicts, and there are none: `blendkit judge` writes them")
        mixes = list(self._mixes)
        votes = np.full((len(mixes), len(self._judges)), NONE, np.int8)
        for row, (_, given) in enumerate(mixes):
            for judge, sign in given:
                votes[row, judge] = sign + 1
        labels = np.array([math.nan if label is None else float(label) for label, _ in mixes])
        counts = np.array(list(self._mixes.values()), np.float64)
        return FittedPanel(list(self._judges), votes, labels, counts, dawid_skene(votes, counts))


@dataclass(frozen=True, slots=True)
class FittedPanel:
    """The judges' names, the different rows of `votes` with their `labels` (NaN: none) and `counts`, and the fit."""

    judges: list[str]
    votes: Votes
    labels: Values
    counts: Values
    fit: DawidSkene

    def settle(self, verdicts: dict[str, list[dict[str, Any]]]) -> dict[Pair, Settled]:
        """The weighed verdict of each pair of a record, with the probability that a is better; of one that no judge could be read on, none.

        Raises:
            DataError: there are fewer than LEAST_JUDGES.
        """
        if len(self.judges) < LEAST_JUDGES:
            raise DataError(f"a panel is weighed from {LEAST_JUDGES} judges on, and there are {listed(self.judges)}: two cannot say which of them is right")
        pairs: dict[Pair, list[int]] = {}
        for judge, name in enumerate(self.judges):
            for pair, verdict in settled(verdicts.get(name, ())).items():
                if verdict.verdict != "unparsed":
                    pairs.setdefault(pair, [NONE] * len(self.judges))[judge] = verdict.sign + 1
        if not pairs:
            return {}
        likely = self.fit.truth_of(np.array(list(pairs.values()), np.int8))
        words = ("B", "tie-good", "A")
        return {pair: Settled(words[int(one.argmax())], float(one[2] + one[1] / 2)) for pair, one in zip(pairs, likely, strict=True)}

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
