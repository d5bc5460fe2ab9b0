"""Table 2 of LLM-Blender: every method (LLM, oracle, ranker, fused answer) by every column, with intervals and paired tests."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from blendkit.errors import DataError, UsageError
from blendkit.evaluation.examples import JudgedExample, Oracle, rank_of, rounded
from blendkit.evaluation.spilled_columns import Column, ColumnFile, Computed, SpilledColumns, blocks, counted
from blendkit.evaluation.statistics import bootstrap, holm, randomization
from blendkit.evaluation.tables import GROUPS, JUDGE_RANK, KINDS, Row
from blendkit.judges.base import LLM, STAND_IN
from blendkit.terminal_text import count_of, listed, shown

TOP = 3
# Nobody reads a larger table; memory and time go with its cells.
MOST_METHODS, MOST_COLUMNS, MOST_CELLS = 1000, 1000, 20_000
# The judge's ranks and the oracle by them, until all records have said what the judge is.
RANK, BY_JUDGE = JUDGE_RANK[LLM], "oracle of the judge"
# Cells whose intervals are computed together.
TOGETHER = 1000


@dataclass
class Method:
    """One row of Table 2: what its picks (one candidate in each example, as a rule) are worth, column by column."""

    name: str
    kind: str
    cells: SpilledColumns
    examples: int = 0
    # Column → in how many examples it has no value because no verdict could be read.
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, rows: list[array[float]], left_out: Iterable[str]) -> None:
        """Takes the picks of example `number`; several picks count by their mean."""
        self.examples += 1
        self.left_out.update(set(left_out))
        self.cells.put(number, rows[0] if len(rows) == 1 else _mean(rows))


def _mean(rows: list[array[float]]) -> array[float]:
    return array("d", (sum(values) / len(values) for values in zip_longest(*rows, fillvalue=math.nan)))


class Methods:
    """Fills Table 2 example by example, and keeps of an example only the numbers of its cells."""

    def __init__(self, oracle: Oracle, versus: list[str]) -> None:
        self.oracle, self.versus = oracle, versus
        self.metrics: dict[str, None] = {}
        self.rank_column = f"rank_by_{oracle.score}" if oracle.score else None
        self.versus_columns = [f"not_worse_than_{model}" for model in versus]
        self.size = 0
        # What the judge's column is called in the rows.
        self.judge_column = RANK
        self._methods: dict[tuple[str, str], Method] = {}
        self._store = ColumnFile()
        # The place in a row of every column that has a value somewhere; new ones come last.
        self._places: dict[str, int] = {}

    def add(self, example: JudgedExample) -> None:
        """Notes what each method picks in the example, and what the pick is worth.

        Raises:
            DataError: the table becomes too large.
        """
        rows: dict[int, array[float]] = {}
        picked: dict[tuple[str, str], list[array[float]]] = {}
        left_out: dict[tuple[str, str], list[str]] = {}

        def pick(kind: str, name: str, index: int) -> None:
            row = rows.get(index)
            if row is None:
                row = rows[index] = self._row(example, index)
            picked.setdefault((kind, name), []).append(row)
            if example.unread or example.left_out:
                left_out.setdefault((kind, name), []).extend(self._left_out(example, index))

        generated = set(example.generated)
        for index, model in enumerate(example.methods):
            pick("model" if index in generated else "fused", model, index)
        for name, ranks in example.ranks.items():
            pick("ranker", name, example.generated[ranks.index(min(ranks))])
        for name, index in example.picks.items():
            pick("ranker", name, index)
        for metric, values in example.values_by_metric.items():
            pick("oracle", f"oracle ({metric})", example.generated[values.index(max(values))])
        if example.oracle is not None and not self.oracle.score:
            pick("oracle", BY_JUDGE, example.oracle.best)
        elif example.judge is not None:
            pick("oracle", BY_JUDGE, example.judge.best)
        for key, found in picked.items():
            method = self._methods.get(key)
            if method is None:
                method = self._methods[key] = Method(key[1], key[0], SpilledColumns(self._store))
                self._check_size(f"the {key[0]} {key[1]!r}")
            method.add(self.size, found, left_out.get(key, ()))
        self.size += 1

    def _check_size(self, newest: str) -> None:
        methods, columns = len(self._methods), len(self._places)
        if methods > MOST_METHODS or columns > MOST_COLUMNS or methods * columns > MOST_CELLS:
            table = f"{count_of(methods, 'method')} and {count_of(columns, 'column')}"
            most = f"expected at most {MOST_METHODS:,} methods, {MOST_COLUMNS:,} columns, and {MOST_CELLS:,} cells"
            raise DataError(f"too large a table: {table} with {newest} of record {self.size + 1}; {most}: do records bring names of their own?")

    def _row(self, example: JudgedExample, index: int) -> array[float]:
        """What one candidate is worth, column by column, NaN where it has no value."""
        by_oracle = rank_of(example.oracle, index)
        scores = example.scores[index]
        cells: dict[str, float | None] = dict(scores)
        if self.rank_column:
            cells[self.rank_column] = by_oracle
        if self.oracle.judge:
            cells[RANK] = by_oracle if example.judge is example.oracle else rank_of(example.judge, index)
        if self.oracle.name:
            for column, model in zip(self.versus_columns, self.versus, strict=True):
                cells[column] = _not_worse(example, index, model)
            cells["top3"] = None if by_oracle is None else 100.0 * (by_oracle <= TOP)
        cells["characters"] = example.characters[index]
        places = self._places
        row = array("d", [math.nan]) * len(places)
        for name, value in cells.items():
            if value is not None:
                place = places.get(name)
                if place is None:
                    place = places[name] = len(places)
                    self._check_size(f"the score {name!r}")
                    row.append(math.nan)
                    if name in scores:
                        self.metrics[name] = None
                row[place] = value
        return row

    def _left_out(self, example: JudgedExample, index: int) -> list[str]:
        """The judge's columns that have no value for a candidate because no verdict could be read."""
        generated = set(example.generated)
        unread = index not in generated and any(index in pair and generated & {*pair} for pair in example.unread)
        found = []
        if example.left_out or (unread and rank_of(example.judge, index) is None):
            found += [RANK] if self.oracle.score else [RANK, "top3"]
        for column, model in zip(self.versus_columns, self.versus, strict=True):
            other = example.against[model]
            if (min(index, other), max(index, other)) in example.unread:
                found.append(column)
        return found

    def name_judge(self, judge: Row | None) -> None:
        """Calls the judge's column and its oracle what the judge is worth to be called; `judge` is its row, None where the stream has no verdict of it."""
        self.judge_column = judge["column"] if judge else RANK
        words = {RANK: "GPT-Rank", JUDGE_RANK[STAND_IN]: "stand-in rank"}
        for method in self._methods.values():
            if judge and method.name == BY_JUDGE and method.kind == "oracle":
                method.name = f"oracle ({words.get(judge['column'], 'judge rank')})"

    def named(self, column: str) -> str:
        """A column as the rows have it."""
        return self.judge_column if column == RANK else column

    def column(self, method: Method, name: str) -> Column:
        """A method's value in each example."""
        return method.cells.column(self._places.get(name, len(self._places)), self.size)

    def all(self) -> Iterable[Method]:
        """All methods, in the order in which they were seen."""
        return self._methods.values()

    def sorted(self) -> list[Method]:
        """Sorts by kind, and within a kind by mean rank under the oracle, or under the judge where the oracle ranks none of it (a fused answer)."""

        def mean_rank(method: Method) -> float:
            found = [counted(self.column(method, name)) for name in (self.rank_column, RANK) if name]
            return next((mean for count, mean in found if count and count == method.examples - method.left_out[RANK]), math.inf)

        return sorted(self._methods.values(), key=lambda method: (list(KINDS).index(method.kind), mean_rank(method)))

    def column_names(self) -> list[str]:
        """The columns of Table 2, in their order."""
        found = [*self.metrics, *([self.rank_column] if self.rank_column else []), *([RANK] if self.oracle.judge else [])]
        if self.oracle.name:
            found += [*self.versus_columns, "top3"]
        return [*found, "characters"]


def table_2(table: Methods, seed: int, notes: list[str], baseline: str | None = None) -> list[dict[str, Any]]:
    """The rows of Table 2, then those of the paired tests against `baseline`; what is missing goes into `notes`."""
    methods, names = table.sorted(), table.column_names()
    keys = [(number, column) for number in range(len(methods)) for column in names]
    bounds: dict[tuple[int, str], list[float]] = {}
    for start in range(0, len(keys), TOGETHER):
        # The same seed draws the same examples for all cells.
        part = keys[start : start + TOGETHER]
        bounds |= zip(part, bootstrap([table.column(methods[number], column) for number, column in part], seed).tolist(), strict=True)
    ranked_by = {method.name for method in methods if method.kind == "ranker"}
    late: dict[str, list[str]] = {}
    some_left_out = any(method.left_out[RANK] for method in methods)
    rows = []
    for number, method in enumerate(methods):
        row: dict[str, Any] = {"table": 2, "method": method.name, "kind": method.kind, "examples": method.examples}
        if some_left_out:
            row["judged"] = method.examples - method.left_out[RANK]
        intervals: dict[str, list[float | None]] = {}
        absent: dict[str, int] = {}
        lacking: dict[int, list[str]] = {}
        for column in names:
            count, mean = counted(table.column(method, column))
            missing = method.examples - method.left_out[column] - count
            if missing and column in table.metrics:
                if method.kind == "fused" and not count:
                    # It came after the score; where the answers were ranked by it before, that is as it should be.
                    if column != table.oracle.score and f"score:{column}" not in ranked_by:
                        late.setdefault(method.name, []).append(column)
                else:
                    lacking.setdefault(missing, []).append(column)
            if missing:
                absent[table.named(column)] = missing
            row[table.named(column)] = None if missing else rounded(mean)
            if count and not missing:
                intervals[table.named(column)] = [rounded(bound) for bound in bounds[number, column]]
        for missing, lacked in lacking.items():
            lacks = f"{listed(lacked)} {'is' if len(lacked) == 1 else 'are'} missing for {shown(method.name)}"
            notes.append(f"{lacks} in {missing:,} of {count_of(method.examples, 'example')}, so no mean is shown; `blendkit score` writes scores")
        rows.append({**row, "intervals": intervals, **({"missing": absent} if absent else {})})
    for columns in dict.fromkeys(map(tuple, late.values())):
        fused, were = listed(name for name, lacked in late.items() if tuple(lacked) == columns), "was" if len(columns) == 1 else "were"
        notes.append(f"{fused} came after {listed(columns)} {were} computed, so the table has – there: `blendkit score` behind `blendkit fuse` fills it")
    return [*rows, *_tests(table, methods, [name for name in names if name != "characters"], seed, baseline, notes)]


def _tests(table: Methods, methods: list[Method], columns: list[str], seed: int, baseline: str | None, notes: list[str]) -> list[dict[str, Any]]:
    """Each method against the baseline, column by column, over the examples that both have.

    Holm's correction is over these: nobody asks whether an oracle is better than what it chooses from, or about a column that
    has one value throughout (Top-3 of three candidates).
    """
    if baseline is None:
        return []
    base = _baseline(methods, baseline, notes)
    asked = [method for method in methods if method is base or method.kind != "oracle"]
    columns = [column for column in columns if _varies(table.column(method, column) for method in asked)]
    keys = [(method, column) for method in asked if method is not base for column in columns]
    cells = [(method, column, Computed(np.subtract, table.column(method, column), table.column(base, column))) for method, column in keys]
    found = [(cell, count, mean) for cell in cells for count, mean in [counted(cell[2])] if count]
    if not found:
        return []
    differences = [difference for (_, _, difference), _, _ in found]
    bounds, p = bootstrap(differences, seed), randomization(differences, seed)
    rows = []
    for place, (((method, column, _), count, mean), corrected) in enumerate(zip(found, holm(p), strict=True)):
        row: dict[str, Any] = {"table": "tests", "method": method.name, "kind": method.kind, "baseline": baseline, "column": table.named(column)}
        row |= {"comparisons": len(found), "examples": count, "difference": rounded(mean)}
        low, high = (rounded(bound) for bound in bounds[place].tolist())
        rows.append({**row, "low": low, "high": high, "p": round(float(p[place]), 6), "p_holm": round(float(corrected), 6)})
    return rows


def _varies(columns: Iterable[Column]) -> bool:
    """Whether there are two different values in all of them together."""
    first = math.nan
    for column in columns:
        for part in blocks(len(column)):
            values = column[part]
            values = values[~np.isnan(values)]
            if len(values):
                first = values[0] if math.isnan(first) else first
                if (values != first).any():
                    return True
    return False


def _baseline(methods: list[Method], name: str, notes: list[str]) -> Method:
    """The method of a name, or of GROUP.NAME as in `--assert`; of several of one name the first, which `notes` says. Raises UsageError where there is none."""
    group, _, rest = name.partition(".")
    found = [method for method in methods if method.name == name] or [method for method in methods if method.name == rest and method.kind == GROUPS.get(group)]
    if not found:
        raise UsageError(f"--baseline {shown(name)}: no such method; there are {listed(method.name for method in methods)}")
    if len(found) > 1:
        own, *others = [f"{group}.{method.name}" for method in found for group, kind in GROUPS.items() if kind == method.kind]
        notes.append(f"--baseline {shown(name)} is {shown(own)}; name {listed(others)} for the other of this name")
    return found[0]


def _not_worse(example: JudgedExample, index: int, model: str) -> float | None:
    """100 where the judge (a score's ranks where there is none) does not prefer the baseline's answer, else 0."""
    baseline = example.against[model]
    if example.margin is not None:
        margin = float(example.margin[index, baseline])
        return None if math.isnan(margin) else 100.0 * (margin >= 0)
    ranks = rank_of(example.oracle, index), rank_of(example.oracle, baseline)
    return None if ranks[0] is None or ranks[1] is None else 100.0 * (ranks[0] <= ranks[1])
