"""The model of Dawid and Skene 1979, by EM, with ties as a class of their own: how reliable each judge of a panel is, by what all of them say.

Each judge has a confusion matrix: how often it says A, tie or B where the truth is each of them. Nobody knows the truth; EM finds what makes all
verdicts most likely, from the majority on. It takes the judges' errors as independent: of judges that err together it trusts all too much, and how
far that is so the number of effective judges says (`evaluate --ratings`). Of two judges who differ, their verdicts cannot say which one is right: it
takes three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import Settled, settled
from blendkit.errors import DataError
from blendkit.terminal_text import listed

Values = NDArray[np.float64]
Votes = NDArray[np.int8]
Pair = tuple[int, int]
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


class VoteCounts:
    """Counts how often each mix of verdicts occurs, by judge. Memory grows with different mixes, not with the stream."""

    def __init__(self) -> None:
        self._judges: dict[str, int] = {}
        # (label's sign or None, (judge, sign) in the judges' order) → pairs.
        self._mixes: Counter[tuple[int | None, tuple[tuple[int, int], ...]]] = Counter()

    @property
    def judges(self) -> list[str]:
        """Whose verdicts there were."""
        return list(self._judges)

    @property
    def pairs(self) -> int:
        """On how many pairs some judge could be read."""
        return self._mixes.total()

    def add(self, verdicts: Mapping[str, list[dict[str, Any]]], labels: Mapping[Pair, tuple[int, float]] | None = None) -> None:
        """Takes a record's verdicts by judge, and the signs of its `labels` where it has some.

        Raises:
            DataError: there are too many judges.
        """
        found: dict[Pair, list[tuple[int, int]]] = {}
        for name, rows in verdicts.items():
            judge = self._judges.setdefault(name, len(self._judges))
            for pair, verdict in settled(rows).items():
                if verdict.verdict != "unparsed":
                    found.setdefault(pair, []).append((judge, verdict.sign))
        for pair, votes in found.items():
            self._mixes[labels[pair][0] if labels and pair in labels else None, tuple(sorted(votes))] += 1
        if len(self._judges) > MOST_JUDGES:
            raise DataError(f"more than {MOST_JUDGES} judges in a panel, with {next(reversed(self._judges))!r}")

    def table(self) -> tuple[Votes, Values, Values]:
        """The different mixes: votes [mixes, judges], the labels' signs [mixes] (NaN: none), and how often each occurs [mixes]."""
        votes = np.full((len(self._mixes), len(self._judges)), NONE, np.int8)
        for row, (_, given) in enumerate(self._mixes):
            for judge, sign in given:
                votes[row, judge] = sign + 1
        labels = np.array([np.nan if label is None else float(label) for label, _ in self._mixes])
        return votes, labels, np.array(list(self._mixes.values()), np.float64)


def settle(judges: list[str], fit: DawidSkene, verdicts: Mapping[str, list[dict[str, Any]]]) -> dict[Pair, Settled]:
    """The weighed verdict of each pair of a record, with the probability that a is better; of one that no judge could be read on, none.

    Raises:
        DataError: there are fewer judges than LEAST_JUDGES.
    """
    if len(judges) < LEAST_JUDGES:
        raise DataError(f"a panel is weighed from {LEAST_JUDGES} judges on, and there are {listed(judges)}: two cannot say which of them is right")
    pairs: dict[Pair, list[int]] = {}
    for judge, name in enumerate(judges):
        for pair, verdict in settled(verdicts.get(name, ())).items():
            if verdict.verdict != "unparsed":
                pairs.setdefault(pair, [NONE] * len(judges))[judge] = verdict.sign + 1
    if not pairs:
        return {}
    likely = fit.truth_of(np.array(list(pairs.values()), np.int8))
    words = ("B", "tie-good", "A")
    return {pair: Settled(words[int(one.argmax())], float(one[2] + one[1] / 2)) for pair, one in zip(pairs, likely, strict=True)}
