"""How two sets of rankings agree (LLM-Blender, Table 3), as the reference code computes it and per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from blendkit.aggregate import ranks_from_scores
from blendkit.evaluation.examples import Example, Oracle, rounded

Ranks = NDArray[np.float64]
Rankings = Sequence[Sequence[float]] | Ranks


def pearson(hypothesis: Ranks, oracle: Ranks) -> float:
    """Mean over models of the correlation of a model's ranks over the examples; both [examples, models]."""
    return float(_correlations(hypothesis.T, oracle.T).mean())


def spearman(hypothesis: Ranks, oracle: Ranks) -> float:
    """As `pearson`, with rank correlation."""
    return float(_correlations(stats.rankdata(hypothesis.T, axis=1), stats.rankdata(oracle.T, axis=1)).mean())


def footrule(hypothesis: Rankings, oracle: Rankings) -> float:
    """Mean over examples of the sum of |rank difference|; 0 is perfect, a random ranking of 11 has 40."""
    return float(np.mean([np.abs(np.subtract(h, o)).sum() for h, o in zip(hypothesis, oracle, strict=True)]))


def pearson_per_example(hypothesis: Rankings, oracle: Rankings) -> float:
    """Mean over examples of the correlation within an example; examples with all ranks tied are left out."""
    return _per_example(hypothesis, oracle, lambda ranks: ranks)


def spearman_per_example(hypothesis: Rankings, oracle: Rankings) -> float:
    """As `pearson_per_example`, with rank correlation."""
    return _per_example(hypothesis, oracle, lambda ranks: stats.rankdata(ranks, axis=1))


def _per_example(hypothesis: Rankings, oracle: Rankings, prepared: Callable[[Ranks], Ranks]) -> float:
    by_size: dict[int, list[tuple[Sequence[float], Sequence[float]]]] = {}
    for h, o in zip(hypothesis, oracle, strict=True):
        by_size.setdefault(len(h), []).append((h, o))
    found = [_correlations(*(prepared(np.asarray(part, float)) for part in zip(*rows, strict=True))) for rows in by_size.values()]
    defined = [value for values in found for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _correlations(a: Ranks, b: Ranks) -> Ranks:
    """Pearson's correlation of each row of a with that of b; NaN where a row is constant."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))


def table_3(examples: list[Example], metrics: list[str], oracle: Oracle) -> list[dict[str, Any]]:
    """Each ranking and score against the oracle's ranks, best first: Table 3 of LLM-Blender."""
    rankings: dict[str, list[tuple[list[int], list[int], tuple[str, ...]]]] = {}
    for example in examples:
        if example.oracle is None:
            continue
        models = tuple(example.models[index] for index in example.generated)
        found = dict(example.ranks)
        for metric in metrics:
            values = example.score_values(metric)
            if values is not None:
                found.setdefault(f"score:{metric}", ranks_from_scores(values.tolist()))
        if oracle.score and example.judge is not None:
            found.setdefault(f"judge:{oracle.judge}", example.judge.ranks)
        for name, ranks in found.items():
            rankings.setdefault(name, []).append((ranks, example.oracle.ranks, models))
    rows = [_row(name, found) for name, found in rankings.items() if name != oracle.name]
    return sorted(rows, key=lambda row: -(row["spearman_per_example"] or -200))


def _row(name: str, found: list[tuple[list[int], list[int], tuple[str, ...]]]) -> dict[str, Any]:
    hypothesis = [ranks for ranks, _, _ in found]
    oracle = [ranks for _, ranks, _ in found]
    row: dict[str, Any] = {"table": 3, "method": name, "examples": len(found)}
    if len({models for _, _, models in found}) == 1:
        # The reference's numbers compare one model over the examples, so all must have the same models.
        h, o = np.asarray(hypothesis, float), np.asarray(oracle, float)
        row["pearson"] = rounded(100 * pearson(h, o))
        row["spearman"] = rounded(100 * spearman(h, o))
    row["pearson_per_example"] = rounded(100 * pearson_per_example(hypothesis, oracle))
    row["spearman_per_example"] = rounded(100 * spearman_per_example(hypothesis, oracle))
    row["footrule"] = rounded(footrule(hypothesis, oracle))
    return row
