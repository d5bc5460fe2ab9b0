"""How sure a number is: bootstrap intervals, paired tests, and a correction for asking many questions.

All of it works on a matrix of values [examples, cells], NaN where a cell has no value for an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 1000
PERMUTATIONS = 10_000
# Rows of signs at a time, so that 10,000 permutations of 5,000 examples fit into a few MB.
CHUNK = 250
# Drawings at a time (8 MB), and examples at a time, so that a stream may be long.
COUNTS, BLOCK = 1 << 22, 4096


class Column(Protocol):
    """One cell's values over the examples, which may be put together only where they are looked at."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Values: ...


def bootstrap(values: Values | Sequence[Column], seed: int, resamples: int = RESAMPLES) -> Values:
    """95 % percentile intervals of each cell's mean, [cells, 2], over resampled examples (Efron and Tibshirani 1993).

    `values` is [examples, cells] or a list of columns. The same resamples serve all cells, as the same examples do. NaN
    where a cell has no value. Beside the values, a few MB are needed, however many examples there are.
    """
    columns = list(values.T) if isinstance(values, np.ndarray) else values
    if not columns:
        return np.empty((0, 2))
    n = len(columns[0])
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(columns)))
    at_once = max(1, min(CHUNK, COUNTS // n))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        # How often each example was drawn; a mean over resamples is a product with these counts.
        counts = np.stack([np.bincount(generator.integers(n, size=n), minlength=n).astype(np.uint16) for _ in range(size)])
        sums, drawn = np.zeros((size, len(columns))), np.zeros((size, len(columns)))
        for first in range(0, n, BLOCK):
            block = np.stack([column[first : first + BLOCK] for column in columns], axis=1)
            present = ~np.isnan(block)
            part = counts[:, first : first + BLOCK].astype(np.float64)
            sums += part @ np.where(present, block, 0.0)
            drawn += part.sum(axis=1, keepdims=True) if present.all() else part @ present
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + size] = sums / drawn
    bounds = np.full((len(columns), 2), np.nan)
    there = ~np.isnan(means).all(axis=0)
    if there.any():
        bounds[there] = np.nanpercentile(means[:, there], (2.5, 97.5), axis=0).T
    return bounds


def randomization(differences: Values, seed: int, permutations: int = PERMUTATIONS) -> Values:
    """Two-sided p of each cell's mean difference, [cells], by approximate randomization (Noreen 1989; Riezler and Maxwell 2005).

    Under the null hypothesis each example's difference may as well have the other sign. NaN where a cell has no value.
    """
    generator = np.random.default_rng(seed)
    present = ~np.isnan(differences)
    filled = np.where(present, differences, 0.0)
    observed = np.abs(filled.sum(axis=0))
    as_large = np.zeros(differences.shape[1])
    for start in range(0, permutations, CHUNK):
        size = min(CHUNK, permutations - start)
        signs = generator.integers(2, size=(size, len(differences)), dtype=np.int8).astype(np.float64) * 2 - 1
        # A little slack, so that a sum taken in another order counts as equal.
        as_large += (np.abs(signs @ filled) >= observed - 1e-9).sum(axis=0)
    p = (as_large + 1) / (permutations + 1)
    return np.where(present.any(axis=0), p, np.nan)


def holm(p: Values) -> Values:
    """Holm's (1979) step-down correction: p of many tests such that any false alarm at all is as unlikely as a level says. NaN stays."""
    corrected = np.full(len(p), np.nan)
    tests = [int(index) for index in np.argsort(p) if not np.isnan(p[index])]
    largest = 0.0
    for place, index in enumerate(tests):
        largest = max(largest, min(1.0, float(p[index]) * (len(tests) - place)))
        corrected[index] = largest
    return corrected
