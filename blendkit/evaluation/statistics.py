"""How sure a number is: bootstrap intervals, paired tests, and a correction for asking many questions.

All of it works on columns of values, one an example, NaN where there is none, a block at a time: a stream may be long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from blendkit.evaluation.spilled_columns import Column, Computed, Values, blocks, counted

RESAMPLES = 1000
PERMUTATIONS = 10_000
MOST_PERMUTED = 2000
# Resamples or permutations at a time: some 8 MB.
CHUNK = 250


def bootstrap(values: Values | Sequence[Column], seed: int, resamples: int = RESAMPLES) -> Values:
    """95 % percentile intervals of each cell's mean, [cells, 2], over resampled examples (Efron and Tibshirani 1993).

    `values` is [examples, cells] or a list of columns. The same resamples serve all cells, as the same examples do. NaN
    where a cell has no value. Beside the values, a few MB are needed, however many examples there are.
    """
    columns = list(values.T) if isinstance(values, np.ndarray) else values
    if not columns:
        return np.empty((0, 2))
    generator = np.random.default_rng(seed)
    sums, drawn = np.zeros((resamples, len(columns))), np.zeros((resamples, len(columns)))
    # How many of the drawings are still to come, and from how many examples.
    left, rest = np.full(resamples, len(columns[0])), len(columns[0])
    for block in _together(columns):
        size = len(block)
        present = ~np.isnan(block)
        filled = np.where(present, block, 0.0)
        here = left if size == rest else generator.binomial(left, size / rest)
        left, rest = left - here, rest - size
        for start in range(0, resamples, CHUNK):
            part = slice(start, start + CHUNK)
            # How often each example was drawn; a sum over a resample is a product with these counts.
            counts = np.stack([np.bincount(generator.integers(size, size=count), minlength=size).astype(np.float64) for count in here[part]])
            sums[part] += counts @ filled
            drawn[part] += counts.sum(axis=1, keepdims=True) if present.all() else counts @ present
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / drawn
    bounds = np.full((len(columns), 2), np.nan)
    there = ~np.isnan(means).all(axis=0)
    if there.any():
        bounds[there] = np.nanpercentile(means[:, there], (2.5, 97.5), axis=0).T
    return bounds


def _together(columns: Sequence[Column]) -> Iterator[Values]:
    """The columns, [examples of a block, cells] at a time."""
    return (np.stack([column[part] for column in columns], axis=1) for part in blocks(len(columns[0])))


def randomization(differences: Values | Sequence[Column], seed: int, permutations: int = PERMUTATIONS) -> Values:
    """Two-sided p of each cell's mean difference, [cells], by approximate randomization (Noreen 1989; Riezler and Maxwell 2005).

    `differences` is [examples, cells] or a list of columns. Under the null hypothesis each example's difference may as
    well have the other sign. NaN where a cell has no value.
    """
    columns = list(differences.T) if isinstance(differences, np.ndarray) else differences
    generator = np.random.default_rng(seed)
    observed, there = np.zeros(len(columns)), np.zeros(len(columns), bool)
    turned = np.zeros((permutations, len(columns)))
    for block in _together(columns):
        present = ~np.isnan(block)
        filled = np.where(present, block, 0.0)
        observed, there = observed + filled.sum(axis=0), there | present.any(axis=0)
        for start in range(0, permutations, CHUNK):
            size = min(CHUNK, permutations - start)
            turned[start : start + size] += (generator.integers(2, size=(size, len(filled)), dtype=np.int8).astype(np.float64) * 2 - 1) @ filled
    # A little slack, so that a sum taken in another order counts as equal.
    as_large = (np.abs(turned) >= np.abs(observed) - 1e-9).sum(axis=0)
    return np.where(there, (as_large + 1) / (permutations + 1), np.nan)


def paired_p(differences: Sequence[Column], seed: int) -> Values:
    """As `randomization`, [cells]; of more than MOST_PERMUTED examples by its normal limit, as the permutations of a long stream would take minutes."""
    if not differences or len(differences[0]) <= MOST_PERMUTED:
        return randomization(differences, seed)
    found = []
    for column in differences:
        count, mean = counted(column)
        squares = count * counted(Computed(np.square, column))[1]
        found.append(math.nan if not count else math.erfc(abs(count * mean) / math.sqrt(2 * squares)) if squares else 1.0)
    return np.array(found)


def holm(p: Values) -> Values:
    """Corrects the p of many tests by Holm's (1979) steps, so that the chance of even one false alarm stays below the level. NaN stays NaN."""
    corrected = np.full(len(p), np.nan)
    tests = [int(index) for index in np.argsort(p) if not np.isnan(p[index])]
    largest = 0.0
    for place, index in enumerate(tests):
        largest = max(largest, min(1.0, float(p[index]) * (len(tests) - place)))
        corrected[index] = largest
    return corrected
