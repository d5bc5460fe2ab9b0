"""Elo ratings over all verdicts, as chat arenas publish them: online updates in random order, in many orders at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import elo_change

Values = NDArray[np.float64]
Places = NDArray[np.int64]
ORDERS = 200
STEP, START = 4.0, 1500.0
# Elo forgets: with a step of 4 a rating rests on its last few hundred games, so that longer runs change nothing.
GAMES_EACH = 2000


def online_elo(first: Places, second: Places, won: Values, example: Places, models: int, seed: int) -> tuple[Values, Values, Values]:
    """Returns (median, low, high), each [models], of ORDERS runs, each on its own bootstrap sample of the examples; the bounds are those of 95 %.

    Games are in the order of their `example`; `won` is 1 where the first model won, 0.5 for a tie.
    """
    generator = np.random.default_rng(seed)
    _, starts, counts = np.unique(example, return_index=True, return_counts=True)
    samples = generator.integers(len(starts), size=(ORDERS, len(starts)))
    ratings = np.full((ORDERS, models), START)
    rows = np.arange(ORDERS)
    for _ in range(models * GAMES_EACH // 2):
        chosen = samples[rows, generator.integers(len(starts), size=ORDERS)]
        games = starts[chosen] + (generator.random(ORDERS) * counts[chosen]).astype(np.int64)
        a, b = first[games], second[games]
        change = elo_change(ratings[rows, a] - ratings[rows, b], won[games], STEP)
        ratings[rows, a] += change
        ratings[rows, b] -= change
    low, middle, high = np.percentile(ratings, (2.5, 50, 97.5), axis=0)
    return middle, low, high
