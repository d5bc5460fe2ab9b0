"""Table 2 of LLM-Blender: every method (LLM, oracle, ranker, fused answer) by every column, with intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blendkit.aggregate import Matrix
from blendkit.errors import UsageError
from blendkit.evaluation.examples import Example, Oracle, rank_of, rounded
from blendkit.evaluation.statistics import bootstrap, holm, randomization

KINDS = ("model", "oracle", "ranker", "fused")
TOP = 3


@dataclass
class Method:
    """One row of Table 2: which candidates (by index; one, as a rule) it puts forward in which example."""

    name: str
    kind: str
    picks: list[tuple[Example, int]] = field(default_factory=list)


@dataclass
class Columns:
    """The columns of Table 2 for the metrics, oracle and baselines of a stream."""

    metrics: list[str]
    oracle: Oracle
    versus: list[str]

    def values(self, method: Method, size: int) -> dict[str, Matrix]:
        """The method's values by column, each [size examples], NaN where it put nothing forward or a value is missing.

        Of several candidates in one example, the mean.
        """

        def filled(value_of: Callable[[Example, int], float | None]) -> Matrix:
            sums, counts = np.zeros(size), np.zeros(size)
            for example, index in method.picks:
                value = value_of(example, index)
                sums[example.number] += math.nan if value is None else value
                counts[example.number] += 1
            with np.errstate(invalid="ignore"):
                return sums / counts

        columns = {metric: filled(lambda example, index, metric=metric: example.scores[index].get(metric)) for metric in self.metrics}  # type: ignore[misc]
        if self.oracle.score:
            columns[f"rank_by_{self.oracle.score}"] = filled(lambda example, index: rank_of(example.oracle, index))
        if self.oracle.judge:
            columns["gpt_rank"] = filled(lambda example, index: rank_of(example.judge, index))
        if self.oracle.name:
            for model in self.versus:
                columns[f"not_worse_than_{model}"] = filled(lambda example, index, model=model: _not_worse(example, index, model))  # type: ignore[misc]
            columns["top3"] = filled(lambda example, index: None if (rank := rank_of(example.oracle, index)) is None else 100.0 * (rank <= TOP))
        columns["characters"] = filled(lambda example, index: example.characters[index])
        return columns


def methods_of(examples: list[Example], metrics: list[str], oracle: Oracle) -> list[Method]:
    """All methods: by kind, and within a kind by mean rank under the oracle."""
    methods: dict[tuple[str, str], Method] = {}

    def pick(kind: str, name: str, example: Example, index: int) -> None:
        methods.setdefault((kind, name), Method(name, kind)).picks.append((example, index))

    for example in examples:
        for index, model in enumerate(example.models):
            pick("model" if index in example.generated else "fused", model, example, index)
        for name, ranks in example.ranks.items():
            pick("ranker", name, example, example.generated[int(np.argmin(ranks))])
        for name, index in example.picks.items():
            pick("ranker", name, example, index)
        for metric in metrics:
            values = example.score_values(metric)
            if values is not None:
                pick("oracle", f"oracle ({metric})", example, example.generated[int(np.argmax(values))])
        if example.oracle is not None and not oracle.score:
            pick("oracle", "oracle (GPT-Rank)", example, example.oracle.best)
        elif example.judge is not None:
            pick("oracle", "oracle (GPT-Rank)", example, example.judge.best)
    return sorted(methods.values(), key=lambda method: (KINDS.index(method.kind), _mean_rank(method)))


def table_2(methods: list[Method], columns: Columns, size: int, seed: int, notes: list[str], baseline: str | None = None) -> list[dict[str, Any]]:
    """The rows of Table 2, then those of the paired tests against `baseline`; what is missing goes into `notes`."""
    cells = [columns.values(method, size) for method in methods]
    # Each column of the matrix is one cell of the table, its values over all examples.
    keys = [(number, column) for number, values in enumerate(cells) for column in values]
    matrix = np.stack([cells[number][column] for number, column in keys], axis=1) if keys else np.empty((size, 0))
    bounds = dict(zip(keys, bootstrap(matrix, seed).tolist(), strict=True))
    rows = []
    for number, (method, values_by) in enumerate(zip(methods, cells, strict=True)):
        there = len({example.number for example, _ in method.picks})
        row: dict[str, Any] = {"table": 2, "method": method.name, "kind": method.kind, "examples": there}
        intervals: dict[str, list[float | None]] = {}
        lacking: dict[int, list[str]] = {}
        for column, values in values_by.items():
            missing = there - int((~np.isnan(values)).sum())
            # A fused answer came too late for the oracle's score.
            if missing and column in columns.metrics and not (method.kind == "fused" and column == columns.oracle.score):
                lacking.setdefault(missing, []).append(column)
            row[column] = None if missing else rounded(float(np.nanmean(values)))
            if not missing:
                intervals[column] = [rounded(bound) for bound in bounds[number, column]]
        for missing, names in lacking.items():
            lacks = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing for {method.name} in {missing} of {there} examples"
            notes.append(f"{lacks}, so no mean is shown; `blendkit score` writes scores")
        rows.append({**row, "intervals": intervals})
    return [*rows, *_tests(methods, cells, seed, baseline)]


def _tests(methods: list[Method], cells: list[dict[str, Matrix]], seed: int, baseline: str | None) -> list[dict[str, Any]]:
    """Each method against the baseline, column by column, over the examples that both have."""
    if baseline is None:
        return []
    base = next((number for number, method in enumerate(methods) if method.name == baseline), None)
    if base is None:
        raise UsageError(f"--baseline {baseline}: no such method; there are {', '.join(method.name for method in methods)}")
    keys = [(number, column) for number in range(len(methods)) if number != base for column in cells[number] if column in cells[base]]
    keys = [(number, column) for number, column in keys if column != "characters"]
    if not keys:
        return []
    differences = np.stack([cells[number][column] - cells[base][column] for number, column in keys], axis=1)
    defined = np.asarray(~np.isnan(differences).all(axis=0))
    keys = [key for key, there in zip(keys, defined, strict=True) if there]
    differences = differences[:, defined]
    bounds, p = bootstrap(differences, seed), randomization(differences, seed)
    rows = []
    for place, ((number, column), corrected) in enumerate(zip(keys, holm(p), strict=True)):
        row: dict[str, Any] = {"table": "tests", "method": methods[number].name, "kind": methods[number].kind, "baseline": baseline, "column": column}
        row |= {"examples": int((~np.isnan(differences[:, place])).sum()), "difference": rounded(float(np.nanmean(differences[:, place])))}
        low, high = (rounded(bound) for bound in bounds[place].tolist())
        rows.append({**row, "low": low, "high": high, "p": round(float(p[place]), 6), "p_holm": round(float(corrected), 6)})
    return rows


def _mean_rank(method: Method) -> float:
    """Under the oracle; that of the judge where the oracle has no word on it, as on a fused answer's score."""
    for by in ("oracle", "judge"):
        ranks = [rank_of(getattr(example, by), index) for example, index in method.picks]
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(ranks):
            return float(np.mean(known))
    return math.inf


def _not_worse(example: Example, index: int, model: str) -> float | None:
    """100 where the judge (a score's ranks where there is none) does not prefer the baseline's answer, else 0."""
    baseline = example.models.index(model)
    if example.margin is not None:
        margin = float(example.margin[index, baseline])
        return None if math.isnan(margin) else 100.0 * (margin >= 0)
    ranks = rank_of(example.oracle, index), rank_of(example.oracle, baseline)
    return None if ranks[0] is None or ranks[1] is None else 100.0 * (ranks[0] <= ranks[1])
