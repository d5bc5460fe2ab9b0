"""Bootstrap intervals over records of figures that are no means: they are computed from sums over the resampled records."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES = 1000
# Counts of one part of the resamples: some 8 MB.
AT_ONCE = 1 << 20


def resampled_sums(sums: Values, seed: int, resamples: int = RESAMPLES) -> Values:
    """[resamples, cells]: the sums over records drawn with replacement; `sums`, [records, cells], are those of each record."""
    generator = np.random.default_rng(seed)
    # Records with the same sums are drawn together: the figures of many streams are few small counts.
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    size = len(sums)
    if len(kinds) < size / 10:
        return np.asarray(generator.multinomial(size, counts / size, size=resamples) @ kinds)
    found = np.empty((resamples, sums.shape[1]))
    step = max(1, AT_ONCE // size)
    for start in range(0, resamples, step):
        drawn = [np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(min(step, resamples - start))]
        found[start : start + step] = np.stack(drawn).astype(np.float64) @ sums
    return found


def by_record(records: NDArray[np.int64], cells: Values) -> Values:
    """[records, cells]: the sums of the rows `cells` of each record, of those that have rows; `records`, [rows], ascend."""
    starts = np.flatnonzero(np.diff(records, prepend=-1))
    return np.add.reduceat(cells, starts, axis=0) if len(records) else cells


def intervals_of(sums: Values, figures: Callable[[Values], dict[str, Values]], seed: int, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of `figures`, a function from sums [..., cells] to figures by name, each [...], NaN where there is none.

    A figure that has no value in more than half of the resamples has no interval.
    """
    return bounds_of(figures(resampled_sums(sums, seed, resamples)))


def bounds_of(figures: dict[str, Values]) -> dict[str, tuple[float, float]]:
    """As `intervals_of`, of figures of each resample, [resamples]."""
    found = {}
    for name, values in figures.items():
        there = values[~np.isnan(values)]
        if 2 * len(there) > len(values):
            low, high = np.percentile(there, (2.5, 97.5))
            found[name] = float(low), float(high)
    return found
