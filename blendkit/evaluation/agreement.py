"""How two sets of rankings agree (LLM-Blender, Table 3), as the reference code computes it and per example."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Ranks = NDArray[np.float64]


def pearson(hypothesis: Ranks, oracle: Ranks) -> float:
    """Mean over models of the correlation of a model's ranks over the examples; both [examples, models]."""
    return _mean_over(hypothesis.T, oracle.T, lambda a, b: float(np.corrcoef(a, b)[0, 1]))


def spearman(hypothesis: Ranks, oracle: Ranks) -> float:
    """As `pearson`, with rank correlation."""
    return _mean_over(hypothesis.T, oracle.T, _spearman)


def footrule(hypothesis: Ranks, oracle: Ranks) -> float:
    """Mean over examples of the sum of |rank difference|; 0 is perfect, a random ranking of 11 has 40."""
    return float(np.abs(hypothesis - oracle).sum(axis=-1).mean())


def spearman_per_example(hypothesis: list[list[int]], oracle: list[list[int]]) -> float:
    """Mean over examples of the rank correlation within an example; examples with all ranks tied are left out."""
    values = [_spearman(np.asarray(h, float), np.asarray(o, float)) for h, o in zip(hypothesis, oracle, strict=True)]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _spearman(a: Ranks, b: Ranks) -> float:
    with warnings.catch_warnings():
        # All ranks tied: the correlation is not defined, and nan says so.
        warnings.simplefilter("ignore")
        return float(stats.spearmanr(a, b).statistic) if len(a) > 1 else float("nan")


def _mean_over(hypothesis: Any, oracle: Any, correlation: Callable[[Any, Any], float]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean([correlation(h, o) for h, o in zip(hypothesis, oracle, strict=True)]))
