"""Models against each other over all verdicts: win rates, Bradley-Terry ratings with intervals, and who comes first (the paper's Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Wins = NDArray[np.float64]
RESAMPLES = 200
# 400 points are a factor of ten in the odds, as in Elo's ratings; the mean of all is 1,500.
SCALE, MEAN = 400 / math.log(10), 1500.0
# Pretended wins and losses against everybody: ratings stay finite where somebody never won.
PRIOR = 0.5


class Tournament:
    """Verdicts by example and pair of models; a tie is half a win for each."""

    def __init__(self) -> None:
        self._models: dict[str, int] = {}
        self._games: list[tuple[list[int], NDArray[np.float64]]] = []

    def add(self, models: list[str], margin: Wins) -> None:
        """One example: `margin[i, j]`, [n, n], above 0 where candidate i beat candidate j, NaN where nobody judged them."""
        places = [self._models.setdefault(model, len(self._models)) for model in models]
        self._games.append((places, np.where(np.isnan(margin), np.nan, (np.sign(margin) + 1) / 2)))

    def rows(self, firsts: Iterable[tuple[str, float]], seed: int) -> list[dict[str, Any]]:
        """The table `ratings`, best first, and the table `wins`, a row a model. `firsts`: % of examples in which a model ranks first."""
        names = list(self._models)
        size = len(names)
        if size < 2:
            return []
        by_example = np.zeros((len(self._games), size * size))
        for number, (places, results) in enumerate(self._games):
            sums = np.zeros((size, size))
            # A model that gave several candidates plays with each of them, but not against itself.
            np.add.at(sums, np.ix_(places, places), np.nan_to_num(results))
            np.fill_diagonal(sums, 0.0)
            by_example[number] = sums.ravel()
        total = by_example.sum(axis=0).reshape(size, size)
        games = total + total.T
        strengths = rating(total)
        generator = np.random.default_rng(seed)
        n = len(by_example)
        counts = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)]).astype(float)
        resampled = np.stack([rating(wins.reshape(size, size)) for wins in counts @ by_example])
        low, high = np.percentile(resampled, (2.5, 97.5), axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = 100 * total / games
        first = dict(firsts)
        ratings = []
        for place in np.argsort(-strengths, kind="stable"):
            won, played = float(total[place].sum()), float(games[place].sum())
            row = {"table": "ratings", "method": names[place], "verdicts": round(played), "win_rate": round(100 * won / played, 2) if played else None}
            figures = {"rating": strengths[place], "rating_low": low[place], "rating_high": high[place]}
            ratings.append({**row, **{key: round(float(value), 1) for key, value in figures.items()}, "first": first.get(names[place])})
        matrix: list[dict[str, Any]] = []
        for row in ratings:
            against = {
                str(other["method"]): None
                if np.isnan(value := rates[self._models[str(row["method"])], self._models[str(other["method"])]])
                else round(float(value), 1)
                for other in ratings
            }
            matrix.append({"table": "wins", "method": row["method"], **{f"over {name}": share for name, share in against.items()}})
        return [*ratings, *matrix]


def rating(wins: Wins) -> NDArray[np.float64]:
    """Bradley-Terry strengths on Elo's scale, [models], by choix; `wins[i, j]` is how often i beat j, ties halved."""
    import choix

    size = len(wins)
    padded = wins + PRIOR / size * (1 - np.eye(size))
    strengths = choix.ilsr_pairwise_dense(padded, max_iter=1000)
    return np.asarray((strengths - strengths.mean()) * SCALE + MEAN)
