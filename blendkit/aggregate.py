"""Turns comparisons, all of them or some, into ranks (LLM-Blender, section 3.3). A new aggregation is a function and a line in AGGREGATIONS."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Comparison = tuple[int, int, float]

# The standard deviations of a logit around the difference of two strengths, and of strengths around 0, in logits. For the
# embedded ranker's first edition on 105 records they are 0.1 and 1.0; another ranker may be less consistent.
NOISE, SPREAD = 0.5, 1.0


def matrix(comparisons: Iterable[Sequence[Any]], n: int) -> Matrix:
    """M, [n, n]: M[i, j] is the logit of candidate i (shown first) over j; NaN where a pair was not compared, 0 on the diagonal."""
    # A flat list, as setting one element of an array after the other is slow.
    values = [math.nan] * (n * n)
    values[:: n + 1] = [0.0] * n
    for i, j, logit in comparisons:
        values[i * n + j] = logit
    return np.array(values, dtype=np.float64).reshape(n, n)


def pairs_among(comparisons: Mapping[str, Any], n: int) -> list[Sequence[Any]]:
    """Those of a record's comparisons that are of its first n candidates."""
    return [pair for pair in comparisons["pairs"] if pair[0] < n and pair[1] < n]


def summed(parts: Iterable[tuple[Matrix, float]]) -> Matrix:
    """Σ w·M, [n, n], of several M and their w."""
    return np.asarray(sum(weight * m for m, weight in parts))


def weighed(text: str, names: Container[str] = ()) -> tuple[str, float]:
    """A name and its weight, of NAME=WEIGHT; what ends with no number, or is one of `names` as it stands, is a name of weight 1."""
    if text in names:
        return text, 1.0
    name, equals, number = text.rpartition("=")
    try:
        return (name, float(number)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0


def max_logits(m: Matrix) -> Matrix:
    """Scores [n]: the mean over all n of M[i, :] - M[:, i] (the paper writes a sum; the ranks are the same).

    For a partial matrix, the same scores of the least-squares fit M[i, j] ≈ θ_i - θ_j + b to the pairs that were
    compared, b being the favour of the first place. On a full matrix the fit gives the mean itself.
    """
    # Rounded, because the same sum taken in another order must stay a tie.
    if not np.isnan(m).any():
        return np.asarray((m - m.T).mean(axis=-1).round(9))
    return np.asarray((2 * StrengthPosterior(_comparisons(m), len(m), noise=1e-3).strengths).round(9))


def max_wins(m: Matrix) -> Matrix:
    """Scores [n]: comparisons won, shown first or second; of a partial matrix, as if each had been in all 2(n-1). A logit of 0 is nobody's win."""
    wins = np.nansum(m > 0, axis=-1) + np.nansum(m < 0, axis=-2)
    played = _played(m)
    if (played == 2 * (len(m) - 1)).all():
        return np.asarray(wins, dtype=np.float64)
    return np.asarray(wins * 2 * (len(m) - 1) / np.maximum(played, 1)).round(9)


def copeland(m: Matrix) -> Matrix:
    """Scores [n]: opponents beaten minus opponents lost to, in the margin of the orders that were compared (Copeland 1951).

    Of a partial matrix, the mean over the opponents met, times n - 1.
    """
    margin = np.nan_to_num(m) - np.nan_to_num(m.T)
    met = ~(np.isnan(m) & np.isnan(m.T)) & ~np.eye(len(m), dtype=bool)
    return np.asarray(np.sign(margin).sum(axis=-1) * (len(m) - 1) / np.maximum(met.sum(axis=-1), 1)).round(9)


def bradley_terry(wins: Matrix) -> Matrix:
    """Scores [n]: strengths of the Bradley-Terry model, in logits; a probability counts as that share of a win, and the rest as a win of the other."""
    games = np.zeros(wins.shape)
    for i, j, won in _comparisons(wins):
        games[i, j] += won
        games[j, i] += 1 - won
    return bradley_terry_strengths(games, prior=0.01).round(6)


def bradley_terry_strengths(wins: Matrix, prior: float) -> Matrix:
    """Strengths θ [..., n], mean 0, such that i beats j with probability σ(θ_i - θ_j) (Bradley and Terry 1952), the most likely ones by Newton's method.

    `wins[..., i, j]` says how often i beat j; a tie is half a win for each. `prior`, above 0, is added to every pair's wins:
    so a model that won always has a finite strength, and models that never met have comparable ones.
    """
    n = wins.shape[-1]
    wins = wins + prior * (1 - np.eye(n))
    played = wins + wins.swapaxes(-1, -2)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(200):
        expected = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (wins - played * expected).sum(axis=-1)
        weights = played * expected * (1 - expected)
        # The likelihood does not change when all strengths grow by the same; 1/n keeps their sum at 0.
        curvature = weights.sum(axis=-1)[..., None] * np.eye(n) - weights + 1 / n
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=-1, keepdims=True)
        # Far from the optimum a whole step of Newton's would overshoot.
        strengths += step / np.maximum(largest, 1.0)
        if largest.max() < 1e-9:
            break
    return np.asarray(strengths - strengths.mean(axis=-1, keepdims=True))


ELO_SCALE = 400.0  # so many points are a factor of ten in the odds


def elo_change(ahead: Any, won: Any, step: float) -> Any:
    """What the first player's rating gains by a game, and the second's loses (Elo 1978): `ahead` is by how much the first is rated higher, `won` 0 to 1."""
    return step * (won - 1 / (1 + 10 ** (-ahead / ELO_SCALE)))


def elo(wins: Matrix) -> Matrix:
    """Scores [n]: Elo ratings around 1,500 (K = 32); a probability counts as that share of a win.

    Elo depends on the order of games and moves slowly. Therefore the games are gone through 20 times, forwards and
    backwards in turn, and the rating is the mean of the last two ways.
    """
    ratings = np.full(len(wins), 1500.0)
    games = _comparisons(wins)
    before = ratings.copy()
    for turn in range(20):
        before = ratings.copy()
        for i, j, won in games[:: -1 if turn % 2 else 1]:
            change = elo_change(ratings[i] - ratings[j], won, 32)
            ratings[i] += change
            ratings[j] -= change
    return np.asarray((before + ratings) / 2).round(6)


def logit_wins(m: Matrix) -> Matrix:
    """W [n, n] from logits: the probability σ(M[i, j]) that candidate i beats j where i is shown first."""
    return np.asarray(1 / (1 + np.exp(-np.clip(m, -30, 30))))


def verdict_wins(m: Matrix) -> Matrix:
    """W [n, n] from `verdict_matrix`: 1 where candidate i beat j, 0.5 where they tied, p where the verdict came with a probability p."""
    return np.asarray((1 + (m - m.T) / 2) / 2)


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A row of the table: a function from a matrix [n, n] to scores [n], higher is better.

    It takes the matrix as it is or, if it is `of_wins`, the probabilities that the matrix stands for.
    """

    scores: Callable[[Matrix], Matrix]
    of_wins: bool = False

    def __call__(self, m: Matrix, wins: Callable[[Matrix], Matrix] = logit_wins) -> Matrix:
        """Scores [n]; `wins` says how the numbers of `m` are read: `logit_wins` for a ranker's logits, `verdict_wins` for verdicts."""
        return self.scores(wins(m) if self.of_wins else m)


AGGREGATIONS: dict[str, Aggregation] = {
    "max-logits": Aggregation(max_logits),
    "max-wins": Aggregation(max_wins),
    "copeland": Aggregation(copeland),
    "bradley-terry": Aggregation(bradley_terry, of_wins=True),
    "elo": Aggregation(elo, of_wins=True),
}


class StrengthPosterior:
    """What logits say of strengths θ: a linear model s_ij = θ_i - θ_j + b + noise, whose posterior is Gaussian and exact.

    It is the least-squares sister of the Bradley-Terry model, which knows only who won. The first place has the favour b.
    Prior: N(0, SPREAD²) for θ and for b, so that b cannot explain all where there is a single comparison. `noise` is in logits.
    """

    def __init__(self, comparisons: Sequence[Comparison], n: int, noise: float = NOISE) -> None:
        design = np.zeros((len(comparisons), n + 1))
        rows = np.arange(len(comparisons))
        design[rows, [i for i, _, _ in comparisons]] = 1.0
        design[rows, [j for _, j, _ in comparisons]] = -1.0
        design[:, n] = 1.0
        precision = design.T @ design / noise**2 + np.eye(n + 1) / SPREAD**2
        self.covariance = np.linalg.inv(precision)
        logits = np.array([logit for _, _, logit in comparisons])
        self.strengths: Matrix = (self.covariance @ design.T @ logits / noise**2)[:n]
        self.n, self.noise = n, noise

    def doubt(self) -> Matrix:
        """[n, n]: how unsure it is who wins a pair: the standard deviation of the margin over its mean."""
        c = self.covariance[: self.n, : self.n]
        variance = np.maximum(np.diag(c)[:, None] + np.diag(c) - 2 * c, 0.0)
        margin = np.abs(self.strengths[:, None] - self.strengths)
        return np.asarray(np.sqrt(variance) / (margin + 1e-6))


def _comparisons(m: Matrix) -> list[Comparison]:
    """The pairs of a matrix that were compared, row after row."""
    return [(int(i), int(j), float(m[i, j])) for i, j in np.argwhere(~np.isnan(m)) if i != j]


def compared(m: Matrix) -> NDArray[np.bool_]:
    """[n]: which candidates were in a comparison."""
    return np.asarray(_played(m) > 0)


def _played(m: Matrix) -> NDArray[np.int64]:
    """[n]: in how many comparisons each candidate was."""
    there = ~np.isnan(m) & ~np.eye(len(m), dtype=bool)
    return np.asarray(there.sum(axis=-1) + there.sum(axis=-2))


def ranks_from_scores(scores: Iterable[Any]) -> list[int]:
    """1 is best (the highest score); ties share the lowest rank, as the reference implementation has it."""
    values = list(scores)
    ordered = sorted(values, reverse=True)
    places: dict[Any, int] = {}
    for place, value in enumerate(ordered, 1):
        places.setdefault(value, place)
    return [places[value] for value in values]


@dataclass(frozen=True, slots=True)
class Settled:
    """What all verdicts on a pair (a, b) come to; `probability` that a is better, a tie counting half."""

    verdict: str
    probability: float | None = None

    @property
    def sign(self) -> int:
        """1 where a is better, -1 where b is, else 0."""
        return {"A": 1, "B": -1}.get(self.verdict, 0)

    @property
    def margin(self) -> float:
        """How much a beats b, from -1 to 1."""
        return self.sign if self.probability is None else 2 * self.probability - 1

    def row(self, pair: tuple[int, int]) -> dict[str, Any]:
        """As the record keeps it."""
        probability = {} if self.probability is None else {"probability": round(self.probability, 6)}
        return {"a": pair[0], "b": pair[1], "verdict": self.verdict, **probability}


SWAPPED = {"A": "B", "B": "A"}


def in_order(row: dict[str, Any]) -> dict[str, Any]:
    """The verdict as one on candidates a < b; a record may have it the other way round."""
    if row["a"] <= row["b"]:
        return row
    turned = {**row, "a": row["b"], "b": row["a"], "verdict": SWAPPED.get(row["verdict"], row["verdict"])}
    return turned if row.get("probability") is None else {**turned, "probability": 1 - row["probability"]}


def settled(verdicts: Iterable[dict[str, Any]]) -> dict[tuple[int, int], Settled]:
    """One verdict a pair (a, b), a < b: what more than half of its verdicts say, otherwise a tie; probabilities are averaged where all have one.

    So both orders of a pair count alike: of verdicts without probabilities, one stands where both agree. Where there is a
    probability, it is what counts, not the word. `unparsed` verdicts count for nothing, unless there is no other.
    """
    by_pair: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for verdict in map(in_order, verdicts):
        by_pair.setdefault((verdict["a"], verdict["b"]), []).append(verdict)
    return {pair: _settled(found) for pair, found in by_pair.items()}


def _settled(verdicts: list[dict[str, Any]]) -> Settled:
    verdicts = [verdict for verdict in verdicts if verdict["verdict"] != "unparsed"] or verdicts[:1]
    if len(verdicts) == 1:
        return Settled(verdicts[0]["verdict"], verdicts[0].get("probability"))
    words = [verdict["verdict"] for verdict in verdicts]
    word = next((word for word in dict.fromkeys(words) if 2 * words.count(word) > len(words)), "tie-good")
    known = [value for verdict in verdicts if (value := verdict.get("probability")) is not None]
    return Settled(word, sum(known) / len(known) if len(known) == len(words) else None)


# The reference code's entries: M[a, b] and M[b, a].
VERDICT_LOGITS = {"A": (1.0, -1.0), "B": (-1.0, 1.0), "tie-good": (0.5, 0.5), "tie-bad": (-0.5, -0.5)}


def verdict_matrix(verdicts: Iterable[dict[str, Any]], n: int) -> Matrix:
    """GPT-Rank's matrix [n, n] as the reference code fills it: a win is +1 and -1, a tie is the same on both sides.

    A verdict with a probability p counts 2p - 1 instead. NaN where nobody gave a verdict that can be read.
    """
    values = [math.nan] * (n * n)
    values[:: n + 1] = [0.0] * n
    given = list(map(in_order, verdicts))
    by_pair = {(verdict["a"], verdict["b"]): verdict for verdict in given}
    if len(by_pair) < len(given):
        by_pair = {pair: {"verdict": found.verdict, "probability": found.probability} for pair, found in settled(given).items()}
    for (a, b), verdict in by_pair.items():
        if verdict["verdict"] == "unparsed":
            continue
        if (probability := verdict.get("probability")) is not None:
            values[a * n + b], values[b * n + a] = 2 * probability - 1, 1 - 2 * probability
        elif verdict["verdict"] in VERDICT_LOGITS:
            values[a * n + b], values[b * n + a] = VERDICT_LOGITS[verdict["verdict"]]
    return np.array(values, dtype=np.float64).reshape(n, n)
