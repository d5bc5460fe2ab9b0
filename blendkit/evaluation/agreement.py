"""How two sets of rankings agree (LLM-Blender, Table 3), as the reference code computes it and per example."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from blendkit.aggregate import ranks_from_scores
from blendkit.evaluation.examples import Example, Oracle, rounded
from blendkit.evaluation.statistics import BLOCK

Ranks = NDArray[Any]
Rankings = Sequence[Sequence[float]] | Ranks


def pearson(hypothesis: Ranks, oracle: Ranks) -> float:
    """Mean over models of the correlation of a model's ranks over the examples; both [examples, models]."""
    return _by_model(hypothesis, oracle, lambda ranks: ranks)


def spearman(hypothesis: Ranks, oracle: Ranks) -> float:
    """As `pearson`, with rank correlation."""
    return _by_model(hypothesis, oracle, lambda ranks: stats.rankdata(ranks, axis=1))


def _by_model(hypothesis: Ranks, oracle: Ranks, prepared: Callable[[Ranks], Ranks]) -> float:
    # One model at a time: the examples may be many.
    pairs = ((np.asarray(h, float)[None], np.asarray(o, float)[None]) for h, o in zip(hypothesis.T, oracle.T, strict=True))
    return float(np.mean([_correlations(prepared(h), prepared(o))[0] for h, o in pairs]))


def footrule(hypothesis: Rankings, oracle: Rankings) -> float:
    """Mean over examples of the sum of |rank difference|; 0 is perfect, a random ranking of 11 has 40."""
    found = [np.abs(h - o).sum(axis=1) for h, o in _by_size(hypothesis, oracle)]
    return float(np.concatenate(found).mean()) if found else float("nan")


def pearson_per_example(hypothesis: Rankings, oracle: Rankings) -> float:
    """Mean over examples of the correlation within an example; examples with all ranks tied are left out."""
    return _per_example(hypothesis, oracle, lambda ranks: ranks)


def spearman_per_example(hypothesis: Rankings, oracle: Rankings) -> float:
    """As `pearson_per_example`, with rank correlation."""
    return _per_example(hypothesis, oracle, lambda ranks: stats.rankdata(ranks, axis=1))


def _per_example(hypothesis: Rankings, oracle: Rankings, prepared: Callable[[Ranks], Ranks]) -> float:
    found = [_correlations(prepared(h), prepared(o)) for h, o in _by_size(hypothesis, oracle)]
    values = np.concatenate(found) if found else np.empty(0)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _by_size(hypothesis: Rankings, oracle: Rankings) -> Iterator[tuple[Ranks, Ranks]]:
    """Both as matrices [examples, candidates], the examples of one number of candidates at a time, and at most BLOCK of them."""
    if isinstance(hypothesis, np.ndarray) and isinstance(oracle, np.ndarray):
        for start in range(0, len(hypothesis), BLOCK):
            yield np.asarray(hypothesis[start : start + BLOCK], float), np.asarray(oracle[start : start + BLOCK], float)
        return
    by_size: dict[int, tuple[list[Sequence[float]], list[Sequence[float]]]] = {}
    for h, o in zip(hypothesis, oracle, strict=True):
        rows = by_size.setdefault(len(h), ([], []))
        rows[0].append(h)
        rows[1].append(o)
    for h_rows, o_rows in by_size.values():
        yield np.asarray(h_rows, float), np.asarray(o_rows, float)


def _correlations(a: Ranks, b: Ranks) -> Ranks:
    """Pearson's correlation of each row of a with that of b; NaN where a row is constant."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))


@dataclass
class Ranking:
    """A ranking's and the oracle's ranks of all examples that have both, one after the other."""

    models: tuple[str, ...]
    same_models: bool = True
    sizes: array[int] = field(default_factory=lambda: array("H"))
    ranks: array[int] = field(default_factory=lambda: array("H"))
    oracle: array[int] = field(default_factory=lambda: array("H"))

    def add(self, ranks: list[int], oracle: list[int], models: tuple[str, ...]) -> None:
        """One example."""
        self.same_models = self.same_models and models == self.models
        self.sizes.append(len(ranks))
        self.ranks.extend(ranks)
        self.oracle.extend(oracle)

    def rankings(self) -> tuple[Rankings, Rankings]:
        """All of them: matrices where the sizes are the same."""
        flat = np.frombuffer(self.ranks, np.uint16), np.frombuffer(self.oracle, np.uint16)
        if len(set(self.sizes)) == 1:
            return flat[0].reshape(len(self.sizes), -1), flat[1].reshape(len(self.sizes), -1)
        ends = np.cumsum(self.sizes)[:-1]
        return [part.tolist() for part in np.split(flat[0], ends)], [part.tolist() for part in np.split(flat[1], ends)]


class Rankers:
    """Table 3, filled example by example: each ranking and score against the oracle's ranks."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self._rankings: dict[str, Ranking] = {}

    def add(self, example: Example) -> None:
        """The example's rankings, where the oracle has one."""
        if example.oracle is None:
            return
        found = dict(example.ranks)
        for metric, values in example.values_by_metric().items():
            found.setdefault(f"score:{metric}", ranks_from_scores(values))
        if self.oracle.score and example.judge is not None:
            found.setdefault(f"judge:{self.oracle.judge}", example.judge.ranks)
        models = tuple(example.models[index] for index in example.generated)
        for name, ranks in found.items():
            self._rankings.setdefault(name, Ranking(models)).add(ranks, example.oracle.ranks, models)

    def rows(self) -> list[dict[str, Any]]:
        """Table 3 of LLM-Blender, best first."""
        rows = [_row(name, found) for name, found in self._rankings.items() if name != self.oracle.name]
        return sorted(rows, key=lambda row: -(row["spearman_per_example"] or -200))


def _row(name: str, found: Ranking) -> dict[str, Any]:
    hypothesis, oracle = found.rankings()
    row: dict[str, Any] = {"table": 3, "method": name, "examples": len(found.sizes)}
    if found.same_models:
        # The reference's numbers compare one model over the examples, so all must have the same models.
        h, o = np.asarray(hypothesis), np.asarray(oracle)
        row["pearson"] = rounded(100 * pearson(h, o))
        row["spearman"] = rounded(100 * spearman(h, o))
    row["pearson_per_example"] = rounded(100 * pearson_per_example(hypothesis, oracle))
    row["spearman_per_example"] = rounded(100 * spearman_per_example(hypothesis, oracle))
    row["footrule"] = rounded(footrule(hypothesis, oracle))
    return row
