"""Whether a judge's probabilities are what they say: Brier's score (1950), expected calibration error (Naeini et al. 2015), and the bins behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.evaluation.audit.resampling import bounds_of, by_record, resampled_sums
from blendkit.evaluation.examples import rounded

Values = NDArray[np.float64]
# From 0.5 to 1: which of two candidates is `a` says nothing, so that a probability below 0.5 is that of the other one.
BINS = 10
# Multiples of the observed errors that are tried, for each whole one; the interval ends at the first that is not possible.
STEPS = 20


def calibration(records: NDArray[np.int64], probabilities: Values, outcomes: Values, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(`brier`, `ece` and their `intervals`; a row a bin), of pairs [pairs] whose outcome is 1 where a is better by the label, 0.5 for a tie.

    A bin's `probability` is the mean of the judge's for the candidate that it prefers, and `preferred` how often people prefer that
    one, a tie counting half, both in %. Errors are shares of 1.
    """
    turned = probabilities < 0.5
    sure, right = np.where(turned, 1 - probabilities, probabilities), np.where(turned, 1 - outcomes, outcomes)
    # A little is added, so that a probability on a bound is in the bin above it whatever its rounding.
    bins = np.minimum(((sure - 0.5) * 2 * BINS + 1e-9).astype(np.int64), BINS - 1)
    cells = np.zeros((len(records), 3 * BINS + 1))
    rows = np.arange(len(records))
    cells[rows, bins], cells[rows, BINS + bins], cells[rows, 2 * BINS + bins] = 1.0, sure, right
    cells[:, -1] = (probabilities - outcomes) ** 2
    sums = by_record(records, cells)
    total = sums.sum(axis=0)
    figures = {name: float(value) for name, value in _figures(total).items()}
    resampled = resampled_sums(sums, seed)
    bounds = bounds_of(_figures(resampled))
    bounds["ece"] = _interval_of_ece(total, resampled, figures["ece"])
    found = {name: rounded(figures[name]) for name in ("brier", "ece")}
    reliability = []
    for place in range(BINS):
        if total[place]:
            name = f"bin {place}"
            row: dict[str, Any] = {"from": round(50 + 50 * place / BINS, 1), "to": round(50 + 50 * (place + 1) / BINS, 1), "pairs": int(total[place])}
            row |= {"probability": rounded(100 * float(total[BINS + place] / total[place])), "preferred": rounded(figures[name])}
            row["intervals"] = {"preferred": [rounded(bound) for bound in bounds[name]]} if name in bounds else {}
            reliability.append(row)
    return {**found, "intervals": {name: [rounded(bound) for bound in bounds[name]] for name in found}}, reliability


def _figures(sums: Values) -> dict[str, Values]:
    counts, sure, right = (sums[..., start : start + BINS] for start in (0, BINS, 2 * BINS))
    pairs = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        bins = {f"bin {place}": 100 * right[..., place] / counts[..., place] for place in range(BINS)}
    return {"brier": sums[..., -1] / pairs, "ece": np.abs(sure - right).sum(axis=-1) / pairs, **bins}


def _interval_of_ece(total: Values, resampled: Values, observed: float) -> tuple[float, float]:
    """95 % of the ECE. An error without a sign grows with noise, so that resampled ones are too large, and the more so the smaller it is.

    Therefore the interval inverts a test: it holds the true errors, as multiples of those observed in the bins, under which so large an
    ECE as the observed one is neither rare nor rarely exceeded, with the bins' noise as the resamples have it. Of simulated judges it covers
    the truth in 85 to 95 %; plain percentiles never do so where the judge is calibrated.
    """

    def gaps(sums: Values) -> tuple[Values, Values]:
        counts, sure, right = (sums[..., start : start + BINS] for start in (0, BINS, 2 * BINS))
        return counts / counts.sum(axis=-1, keepdims=True), (sure - right) / np.maximum(counts, 1)

    (_, here), (shares, there) = gaps(total), gaps(resampled)
    multiples = np.linspace(0, 3, 1 + 3 * STEPS)
    found = np.array([np.percentile((shares * np.abs(there + (multiple - 1) * here)).sum(axis=-1), (2.5, 97.5)) for multiple in multiples])
    possible = multiples[(found[:, 0] <= observed) & (observed <= found[:, 1])]
    low, high = (float(possible.min()) - 1 / STEPS, float(possible.max()) + 1 / STEPS) if len(possible) else (0.0, 1.0)
    return observed * max(0.0, low), observed * high
