"""A logistic regression by Newton's method, with intervals that hold where the rows of a record hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blendkit.judges.position import Z

Values = NDArray[np.float64]
Places = NDArray[np.int64]
# The inverse variance of a prior around 0: so weak that it only decides where the rows do not.
RIDGE = 1e-3
# A coefficient is not determined where its standard error is beyond this: the interval of the odds would be 50 times as wide as long.
MOST_ERROR = 2.0
STEPS, CLOSE = 100, 1e-9


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients [k] in log-odds, and their covariance [k, k], robust to rows of one cluster that hang together.

    `plain` [k, k] is the covariance that independent rows would have, prior included.
    """

    coefficients: Values
    covariance: Values
    plain: Values

    @property
    def determined(self) -> NDArray[np.bool_]:
        """[k]: which coefficients the rows determine: not those of a column that never varies or that others make up, and none that would be
        infinite, as the column tells all outcomes."""
        return np.asarray(np.sqrt(np.diag(self.plain)) <= MOST_ERROR)

    def combined(self, weights: Values) -> Fit:
        """The fit of sums of coefficients, `weights` [new, k]."""
        return Fit(weights @ self.coefficients, weights @ self.covariance @ weights.T, weights @ self.plain @ weights.T)

    def interval(self, index: int) -> tuple[float, float]:
        """95 % of a coefficient."""
        middle, half = float(self.coefficients[index]), Z * float(np.sqrt(self.covariance[index, index]))
        return middle - half, middle + half


def logistic(features: Values, outcomes: Values, clusters: Places) -> Fit:
    """Fits P(outcome) = σ(features · coefficients), without an intercept; features are [rows, k], outcomes [rows] from 0 to 1 (a tie is 0.5).

    `clusters`, [rows], are the numbers of the records. The covariance is the sandwich over clusters (Liang and Zeger 1986), with
    the factor G / (G - 1) of G clusters.
    """
    rows, k = features.shape
    coefficients = np.zeros(k)
    prior = np.eye(k) * RIDGE
    information = prior
    likelihood = _likelihood(features, outcomes, coefficients)
    for _ in range(STEPS):
        expected = _expected(features @ coefficients)
        gradient = features.T @ (outcomes - expected) - RIDGE * coefficients
        information = (features * (expected * (1 - expected))[:, None]).T @ features + prior
        step = np.linalg.solve(information, gradient)
        # Far from the optimum a whole step may overshoot.
        while (reached := _likelihood(features, outcomes, coefficients + step)) < likelihood and np.abs(step).max() > CLOSE:
            step = step / 2
        coefficients, likelihood = coefficients + step, reached
        if np.abs(step).max(initial=0.0) <= CLOSE:
            break
    inverse = np.asarray(np.linalg.inv(information), np.float64)
    scores = features * (outcomes - _expected(features @ coefficients))[:, None]
    _, owner = np.unique(clusters, return_inverse=True)
    count = int(owner.max(initial=-1)) + 1
    sums = np.stack([np.bincount(owner, scores[:, column], count) for column in range(k)], axis=1) if rows else np.zeros((0, k))
    covariance = inverse @ (sums.T @ sums) @ inverse * (count / max(count - 1, 1))
    return Fit(coefficients, covariance, inverse)


def _expected(logits: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def _likelihood(features: Values, outcomes: Values, coefficients: Values) -> float:
    logits = features @ coefficients
    return float(outcomes @ logits - np.logaddexp(0, logits).sum() - RIDGE / 2 * coefficients @ coefficients)
