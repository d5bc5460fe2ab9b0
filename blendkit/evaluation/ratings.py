"""Models against each other: who ranks first (the paper's Figure 1), win rates, Bradley-Terry and Elo ratings with intervals."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import ELO_SCALE, bradley_terry_strengths
from blendkit.evaluation.elo import online_elo
from blendkit.evaluation.examples import JudgedExample, rounded
from blendkit.evaluation.spilled_columns import ColumnFile, Computed, SpilledColumns, counted
from blendkit.evaluation.statistics import bootstrap

Wins = NDArray[np.float64]
RESAMPLES = 200
# Elo's points for one logit, and the mean of all ratings.
SCALE, MEAN = ELO_SCALE / math.log(10), 1500.0
# Invented wins of every model, spread over all the others: ratings stay finite where a model never won.
PRIOR = 0.5
# Every pair of them is a cell, and every fit goes through all pairs.
MOST_MODELS = 200


class Firsts:
    """Fills the tables `firsts` (Figure 1: % of examples in which each LLM ranks first, ties shared) and `distribution` (% at each rank)."""

    def __init__(self) -> None:
        self.judged = 0
        # The share of the first place that each LLM has in each example, for the intervals.
        self._places: dict[str, int] = {}
        self._shares = SpilledColumns(ColumnFile())
        self._at_rank: dict[str, dict[int, int]] = {}

    def add(self, example: JudgedExample) -> None:
        """Counts the example's ranks by the oracle, where there are some."""
        if example.oracle is None:
            return
        self.judged += 1
        best = example.oracle.ranks.count(1)
        shares = array("d", [0.0]) * len(self._places)
        for index, rank in example.oracle.generated.items():
            model = example.methods[index]
            at_rank = self._at_rank.setdefault(model, {})
            at_rank[rank] = at_rank.get(rank, 0) + 1
            place = self._places.setdefault(model, len(self._places))
            if place == len(shares):
                shares.append(0.0)
            shares[place] += (rank == 1) / best
        self._shares.put(self.judged - 1, shares)

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Both tables, the most frequent winner first; shares of the first place with bootstrap 95 % intervals."""
        # An LLM that comes late had no share before.
        columns = {
            model: Computed(lambda shares: 100 * np.nan_to_num(shares), self._shares.column(place, self.judged)) for model, place in self._places.items()
        }
        # Sums of the same shares in another order are equal.
        shares_of = {model: rounded(counted(column)[1]) for model, column in columns.items()}
        order = sorted(columns, key=lambda model: -(shares_of[model] or 0.0))
        most = max((rank for ranks in self._at_rank.values() for rank in ranks), default=0)
        rows: list[dict[str, Any]] = []
        for model, bounds in zip(order, bootstrap([columns[model] for model in order], seed).tolist(), strict=True):
            low, high = map(rounded, bounds)
            rows.append({"table": "firsts", "method": model, "share": shares_of[model], "low": low, "high": high})
        for model in order:
            found = self._at_rank[model]
            seen = sum(found.values())
            shares = {f"rank {rank}": rounded(100 * found.get(rank, 0) / seen) for rank in range(1, most + 1)}
            rows.append({"table": "distribution", "method": model, **shares})
        return rows


def ratings_of(examples: list[JudgedExample], seed: int, notes: list[str]) -> list[dict[str, Any]]:
    """The tables `ratings` (best first) and `wins` (a row a model), over all verdicts of the judge; a tie is half a win for each.

    Of more than MOST_MODELS models there is none, and `notes` says so.
    """
    judged = [example for example in examples if example.margin is not None]
    names = list(dict.fromkeys(model for example in judged for model in example.methods))
    place = {name: number for number, name in enumerate(names)}
    size = len(names)
    if size < 2:
        return []
    if size > MOST_MODELS:
        notes.append(f"no ratings and no win rates: they are computed of at most {MOST_MODELS} models, and there are {size:,}")
        return []
    owners: list[NDArray[np.int64]] = []
    cells: list[NDArray[np.int64]] = []
    values: list[Wins] = []
    games: list[tuple[int, int, float, int]] = []
    for number, example in enumerate(judged):
        assert example.margin is not None
        places = np.array([place[model] for model in example.methods])
        results = (example.margin + 1) / 2
        there = ~np.isnan(results) & (places[:, None] != places)  # a model does not play against itself
        rows, columns = np.nonzero(there)
        owners.append(np.full(len(rows), number))
        cells.append(places[rows] * size + places[columns])
        values.append(results[rows, columns])
        upper = rows < columns
        games += zip(
            places[rows[upper]].tolist(),
            places[columns[upper]].tolist(),
            results[rows[upper], columns[upper]].tolist(),
            [number] * int(upper.sum()),
            strict=True,
        )
    if not games:
        return []
    example_of, cell, result = np.concatenate(owners), np.concatenate(cells), np.concatenate(values)
    total = np.bincount(cell, result, size * size).astype(np.float64).reshape(size, size)
    played = total + total.T
    strengths = rating(total)
    generator = np.random.default_rng(seed)
    n = len(judged)
    counts = (np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    resampled = np.array([np.bincount(cell, result * count[example_of], size * size) for count in counts], dtype=np.float64).reshape(-1, size, size)
    low, high = np.percentile(rating(resampled), (2.5, 97.5), axis=0)
    first, second, won, owner = (np.array(column) for column in zip(*games, strict=True))
    online, online_low, online_high = online_elo(first, second, won, owner, size, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = 100 * total / played
    order = [int(number) for number in np.argsort(-strengths, kind="stable")]
    rows_out: list[dict[str, Any]] = []
    for number in order:
        won_by, of = float(total[number].sum()), float(played[number].sum())
        row = {"table": "ratings", "method": names[number], "verdicts": round(of), "win_rate": round(100 * won_by / of, 2) if of else None}
        figures = {"rating": strengths, "rating_low": low, "rating_high": high, "elo": online, "elo_low": online_low, "elo_high": online_high}
        rows_out.append({**row, **{key: round(float(values[number]), 1) for key, values in figures.items()}})
    for number in order:
        against = {f"over {names[other]}": None if np.isnan(rates[number, other]) else round(float(rates[number, other]), 1) for other in order}
        rows_out.append({"table": "wins", "method": names[number], **against})
    return rows_out


def rating(wins: Wins) -> NDArray[np.float64]:
    """Bradley-Terry strengths on Elo's scale, [..., models]; `wins[..., i, j]` is how often i beat j, a tie half a win for each."""
    return np.asarray(bradley_terry_strengths(wins, PRIOR / wins.shape[-1]) * SCALE + MEAN)
