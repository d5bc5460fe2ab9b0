"""Table 2 of LLM-Blender: every method (LLM, oracle, ranker, fused answer) by every column, with intervals and paired tests."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from blendkit.errors import UsageError
from blendkit.evaluation.columns import Column, Columns, Computed, Growing, counted
from blendkit.evaluation.examples import Example, Oracle, rank_of, rounded
from blendkit.evaluation.statistics import bootstrap, holm, randomization

KINDS = ("model", "oracle", "ranker", "fused")
TOP = 3


@dataclass
class Method:
    """One row of Table 2: what its picks (one candidate in each example, as a rule) are worth, column by column."""

    name: str
    kind: str
    cells: Growing
    examples: int = 0
    picks: int = 0
    by_oracle: Total = field(default_factory=lambda: Total())
    by_judge: Total = field(default_factory=lambda: Total())

    def add(self, number: int, rows: list[Row]) -> None:
        """The picks of example `number`; of several, the mean is taken."""
        self.examples += 1
        self.picks += len(rows)
        self.cells.put(number, rows[0].values if len(rows) == 1 else _mean(rows))
        for found in rows:
            if found.oracle is not None:
                self.by_oracle.add(found.oracle)
            if found.judge is not None:
                self.by_judge.add(found.judge)

    @property
    def mean_rank(self) -> float:
        """Under the oracle; that of the judge where the oracle has no word on it, as on a fused answer's score."""
        return next((found.sum / found.count for found in (self.by_oracle, self.by_judge) if found.count == self.picks), math.inf)


@dataclass(slots=True)
class Total:
    """Of the ranks that are known."""

    sum: int = 0
    count: int = 0

    def add(self, rank: int) -> None:
        """One more."""
        self.sum += rank
        self.count += 1


@dataclass(slots=True)
class Row:
    """What one candidate is worth, column by column, NaN where it has no value; and its ranks by the oracle and the judge."""

    values: array[float]
    oracle: int | None = None
    judge: int | None = None


def _mean(rows: list[Row]) -> array[float]:
    return array("d", (sum(values) / len(values) for values in zip_longest(*(row.values for row in rows), fillvalue=math.nan)))


class Methods:
    """Table 2, filled example by example; nothing is kept of an example but the numbers of its cells."""

    def __init__(self, oracle: Oracle, versus: list[str]) -> None:
        self.oracle, self.versus = oracle, versus
        self.metrics: dict[str, None] = {}
        self.size = 0
        self._methods: dict[tuple[str, str], Method] = {}
        self._store = Columns()
        # Every column's place in a row; new ones come last.
        self._places: dict[str, int] = {}

    def add(self, example: Example) -> None:
        """What each method picks there, and what that is worth."""
        rows: dict[int, Row] = {}
        picked: dict[tuple[str, str], list[Row]] = {}

        def pick(kind: str, name: str, index: int) -> None:
            row = rows.get(index)
            if row is None:
                row = rows[index] = self._row(example, index)
            picked.setdefault((kind, name), []).append(row)

        generated = set(example.generated)
        for index, model in enumerate(example.models):
            pick("model" if index in generated else "fused", model, index)
        for name, ranks in example.ranks.items():
            pick("ranker", name, example.generated[ranks.index(min(ranks))])
        for name, index in example.picks.items():
            pick("ranker", name, index)
        for metric, values in example.values_by_metric().items():
            pick("oracle", f"oracle ({metric})", example.generated[values.index(max(values))])
        if example.oracle is not None and not self.oracle.score:
            pick("oracle", "oracle (GPT-Rank)", example.oracle.best)
        elif example.judge is not None:
            pick("oracle", "oracle (GPT-Rank)", example.judge.best)
        for key, found in picked.items():
            method = self._methods.get(key)
            if method is None:
                method = self._methods[key] = Method(key[1], key[0], Growing(self._store))
            method.add(self.size, found)
        self.size += 1

    def _row(self, example: Example, index: int) -> Row:
        by_oracle, by_judge = rank_of(example.oracle, index), rank_of(example.judge, index)
        cells: dict[str, float | None] = dict(example.scores[index])
        for metric, value in cells.items():
            if metric not in self.metrics and value is not None:
                self.metrics[metric] = None
        if self.oracle.score:
            cells[f"rank_by_{self.oracle.score}"] = by_oracle
        if self.oracle.judge:
            cells["gpt_rank"] = by_judge
        if self.oracle.name:
            for model in self.versus:
                cells[f"not_worse_than_{model}"] = _not_worse(example, index, model)
            cells["top3"] = None if by_oracle is None else 100.0 * (by_oracle <= TOP)
        cells["characters"] = example.characters[index]
        places = self._places
        row = array("d", [math.nan]) * len(places)
        for name, value in cells.items():
            place = places.get(name)
            if place is None:
                place = places[name] = len(places)
                row.append(math.nan)
            if value is not None:
                row[place] = value
        return Row(row, by_oracle, by_judge)

    def column(self, method: Method, name: str) -> Column:
        """A method's value in each example."""
        return method.cells.column(self._places[name], self.size)

    def sorted(self) -> list[Method]:
        """By kind, and within a kind by mean rank under the oracle."""
        return sorted(self._methods.values(), key=lambda method: (KINDS.index(method.kind), method.mean_rank))

    def column_names(self) -> list[str]:
        """Of Table 2, in their order."""
        found = list(self.metrics)
        if self.oracle.score:
            found.append(f"rank_by_{self.oracle.score}")
        if self.oracle.judge:
            found.append("gpt_rank")
        if self.oracle.name:
            found += [*(f"not_worse_than_{model}" for model in self.versus), "top3"]
        return [*found, "characters"]


def table_2(table: Methods, seed: int, notes: list[str], baseline: str | None = None) -> list[dict[str, Any]]:
    """The rows of Table 2, then those of the paired tests against `baseline`; what is missing goes into `notes`."""
    methods, names = table.sorted(), table.column_names()
    keys = [(number, column) for number in range(len(methods)) for column in names]
    bounds = dict(zip(keys, bootstrap([table.column(methods[number], column) for number, column in keys], seed).tolist(), strict=True))
    rows = []
    for number, method in enumerate(methods):
        row: dict[str, Any] = {"table": 2, "method": method.name, "kind": method.kind, "examples": method.examples}
        intervals: dict[str, list[float | None]] = {}
        lacking: dict[int, list[str]] = {}
        for column in names:
            count, mean = counted(table.column(method, column))
            missing = method.examples - count
            # A fused answer came too late for the oracle's score.
            if missing and column in table.metrics and not (method.kind == "fused" and column == table.oracle.score):
                lacking.setdefault(missing, []).append(column)
            row[column] = None if missing else rounded(mean)
            if not missing:
                intervals[column] = [rounded(bound) for bound in bounds[number, column]]
        for missing, lacked in lacking.items():
            lacks = f"{', '.join(lacked)} {'is' if len(lacked) == 1 else 'are'} missing for {method.name} in {missing} of {method.examples} examples"
            notes.append(f"{lacks}, so no mean is shown; `blendkit score` writes scores")
        rows.append({**row, "intervals": intervals})
    return [*rows, *_tests(table, methods, [name for name in names if name != "characters"], seed, baseline)]


def _tests(table: Methods, methods: list[Method], columns: list[str], seed: int, baseline: str | None) -> list[dict[str, Any]]:
    """Each method against the baseline, column by column, over the examples that both have."""
    if baseline is None:
        return []
    base = next((method for method in methods if method.name == baseline), None)
    if base is None:
        raise UsageError(f"--baseline {baseline}: no such method; there are {', '.join(method.name for method in methods)}")
    keys = [(method, column) for method in methods if method is not base for column in columns]
    cells = [(method, column, Computed(np.subtract, table.column(method, column), table.column(base, column))) for method, column in keys]
    found = [(cell, count, mean) for cell in cells for count, mean in [counted(cell[2])] if count]
    if not found:
        return []
    differences = [difference for (_, _, difference), _, _ in found]
    bounds, p = bootstrap(differences, seed), randomization(differences, seed)
    rows = []
    for place, (((method, column, _), count, mean), corrected) in enumerate(zip(found, holm(p), strict=True)):
        row: dict[str, Any] = {"table": "tests", "method": method.name, "kind": method.kind, "baseline": baseline, "column": column}
        row |= {"examples": count, "difference": rounded(mean)}
        low, high = (rounded(bound) for bound in bounds[place].tolist())
        rows.append({**row, "low": low, "high": high, "p": round(float(p[place]), 6), "p_holm": round(float(corrected), 6)})
    return rows


def _not_worse(example: Example, index: int, model: str) -> float | None:
    """100 where the judge (a score's ranks where there is none) does not prefer the baseline's answer, else 0."""
    baseline = example.models.index(model)
    if example.margin is not None:
        margin = float(example.margin[index, baseline])
        return None if math.isnan(margin) else 100.0 * (margin >= 0)
    ranks = rank_of(example.oracle, index), rank_of(example.oracle, baseline)
    return None if ranks[0] is None or ranks[1] is None else 100.0 * (ranks[0] <= ranks[1])
