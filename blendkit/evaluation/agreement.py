"""How two sets of rankings agree (LLM-Blender, Table 3), as the reference code computes it and per example."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import ranks_from_scores
from blendkit.evaluation.examples import JudgedExample, Oracle, rounded

Ranks = NDArray[Any]
# Rows wait until they make so many comparisons of ranks, and are then folded into the sums together.
AT_ONCE = 1 << 20


class RankAgreement:
    """Compares a method's ranks with the oracle's, and keeps of an example only what it adds to sums and counts.

    The reference code correlates one model's ranks over the examples: for that it is enough to count how often each pair
    of ranks occurs. The correlation within each example says how well a ranker ranks.
    """

    def __init__(self) -> None:
        self._pairs: Counter[tuple[int, int, int]] = Counter()
        self._examples, self._distance = 0, 0.0
        self._within = {"pearson": (0, 0.0), "spearman": (0, 0.0)}

    def add(self, hypothesis: Ranks, oracle: Ranks) -> None:
        """Takes ranks as whole numbers, both [examples, candidates]; for `pearson` and `spearman`, column k must be the same model in all examples."""
        hypothesis, oracle = np.asarray(hypothesis, np.int64), np.asarray(oracle, np.int64)
        self._examples += len(hypothesis)
        self._distance += float(np.abs(hypothesis - oracle).sum())
        for name, h, o in (("pearson", hypothesis, oracle), ("spearman", _ranked(hypothesis), _ranked(oracle))):
            found = _correlations(h, o)
            there = found[~np.isnan(found)]
            count, total = self._within[name]
            self._within[name] = count + len(there), total + float(there.sum())
        # (model, h, o) as one number.
        base = int(max(hypothesis.max(), oracle.max())) + 1
        found, counts = np.unique((np.arange(hypothesis.shape[1]) * base + hypothesis) * base + oracle, return_counts=True)
        pairs, o = np.divmod(found, base)
        models, h = np.divmod(pairs, base)
        for key, count in zip(zip(models.tolist(), h.tolist(), o.tolist(), strict=True), counts.tolist(), strict=True):
            self._pairs[key] += count

    def pearson(self) -> float:
        """Mean over models of the correlation of a model's ranks over the examples."""
        return self._by_model(lambda ranks, counts: ranks)

    def spearman(self) -> float:
        """As `pearson`, with rank correlation."""
        return self._by_model(_midranks)

    def _by_model(self, prepared: Callable[[Ranks, Ranks], Ranks]) -> float:
        table = np.array([(*pair, count) for pair, count in sorted(self._pairs.items())])
        found = []
        for model in np.unique(table[:, 0]):
            _, h, o, counts = table[table[:, 0] == model].T
            found.append(float(_correlations(prepared(h, counts)[None], prepared(o, counts)[None], counts)[0]))
        return float(np.mean(found))

    def footrule(self) -> float:
        """Mean over examples of the sum of |rank difference|; 0 is perfect, a random ranking of 11 has 40."""
        return self._distance / self._examples if self._examples else float("nan")

    def pearson_per_example(self) -> float:
        """Mean over examples of the correlation within an example; examples with all ranks tied are left out."""
        return self._mean_within("pearson")

    def spearman_per_example(self) -> float:
        """As `pearson_per_example`, with rank correlation."""
        return self._mean_within("spearman")

    def _mean_within(self, name: str) -> float:
        count, total = self._within[name]
        return total / count if count else float("nan")


def _midranks(values: Ranks, counts: Ranks) -> Ranks:
    """Ranks of `values`, each of which occurs `counts` times; equal values share the mean of their ranks."""
    _, place = np.unique(values, return_inverse=True)
    sizes = np.bincount(place, weights=counts)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[place])


def _ranked(rows: Ranks) -> Ranks:
    """Each row's ranks; equal values share the mean of theirs."""
    own, other = rows[:, :, None], rows[:, None, :]
    return np.asarray((own > other).sum(axis=2) + ((own == other).sum(axis=2) + 1) / 2)


def _correlations(a: Ranks, b: Ranks, counts: Ranks | None = None) -> Ranks:
    """Pearson's correlation of each row of a with that of b; column k counts `counts[k]` times. NaN where a row is constant."""
    counts = np.ones(a.shape[1]) if counts is None else counts
    a, b = (row - (row * counts).sum(axis=1, keepdims=True) / counts.sum() for row in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a * b * counts).sum(axis=1) / np.sqrt((a**2 * counts).sum(axis=1) * (b**2 * counts).sum(axis=1)))


class RankerAgreement:
    """Compares one ranking with the oracle's over the examples that have both, block by block."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self.models, self.same_models, self.examples = models, True, 0
        self._agreement = RankAgreement()
        self._waiting: dict[int, tuple[array[int], array[int]]] = {}

    def add(self, ranks: list[int], oracle: list[int], models: tuple[str, ...]) -> None:
        """Takes one example."""
        self.same_models = self.same_models and models == self.models
        self.examples += 1
        size = len(ranks)
        waiting = self._waiting.get(size)
        if waiting is None:
            waiting = self._waiting[size] = array("H"), array("H")
        waiting[0].extend(ranks)
        waiting[1].extend(oracle)
        if len(waiting[0]) * size >= AT_ONCE:
            self._fold(size)

    def _fold(self, size: int) -> None:
        hypothesis, oracle = (np.frombuffer(found, np.uint16).reshape(-1, size) for found in self._waiting.pop(size))
        self._agreement.add(hypothesis, oracle)

    def row(self, name: str) -> dict[str, Any]:
        """Its row of Table 3."""
        for size in list(self._waiting):
            self._fold(size)
        row: dict[str, Any] = {"table": 3, "method": name, "examples": self.examples}
        figures = ["pearson_per_example", "spearman_per_example"]
        if self.same_models:
            # The reference's numbers compare one model over the examples, so all must have the same models.
            figures = ["pearson", "spearman", *figures]
        row |= {figure: rounded(100 * getattr(self._agreement, figure)()) for figure in figures}
        return row | {"footrule": rounded(self._agreement.footrule())}


class Rankers:
    """Fills Table 3 example by example: each ranking and score against the oracle's ranks."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self._rankings: dict[str, RankerAgreement] = {}

    def add(self, example: JudgedExample) -> None:
        """Takes the example's rankings, where the oracle has one."""
        if example.oracle is None:
            return
        found = dict(example.ranks)
        for metric, values in example.values_by_metric.items():
            found.setdefault(f"score:{metric}", ranks_from_scores(values))
        if self.oracle.score and example.judge is not None:
            found.setdefault(f"judge:{self.oracle.judge}", example.judge.ranks)
        models = tuple(example.methods[index] for index in example.generated)
        for name, ranks in found.items():
            self._rankings.setdefault(name, RankerAgreement(models)).add(ranks, example.oracle.ranks, models)

    def rows(self) -> list[dict[str, Any]]:
        """Table 3 of LLM-Blender, best first."""
        rows = [found.row(name) for name, found in self._rankings.items() if name != self.oracle.name]
        return sorted(rows, key=lambda row: -(row["spearman_per_example"] or -200))
