"""`evaluate --assert` and `--compare`: a build may fail when a model got worse, and a change is told from noise."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from blendkit.errors import CheckFailed, DataError, RecordError, UsageError
from blendkit.evaluation.tables import JUDGE_RANK, KINDS
from blendkit.judges.base import LLM, OTHER
from blendkit.scorers import better_when_lower
from blendkit.terminal_text import count_of, listed, shown
from blendkit.untrusted import json_value, read_file, typed

GROUPS = {title.lower(): kind for kind, title in KINDS.items()}
LOWER_IS_BETTER = (*JUDGE_RANK.values(), "footrule", "rank_by_")
# Columns that describe a method without saying how good it is.
NEUTRAL = ("characters", "examples", "judged")
OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
FORM = "GROUP.METHOD.COLUMN OP GROUP.METHOD.COLUMN or a number"
Rows = list[dict[str, Any]]


def parsed(check: str) -> tuple[str, str, str]:
    """(left, operator, right) of a check.

    Raises:
        UsageError: it is not of the form.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*", check, re.DOTALL)
    if match is None:
        raise UsageError(f"--assert {check!r}: expected {FORM}, such as rankers.pairrm.gpt_rank < llms.best.gpt_rank")
    return match[1], match[2], match[3]


def lower_is_better(column: str) -> bool:
    """Whether the least of a column's figures is the best."""
    return column.startswith(LOWER_IS_BETTER) or better_when_lower(column)


def check_all(checks: list[str], rows: Rows) -> None:
    """Compares the figures of the tables.

    Raises:
        UsageError: a check names a figure that is not in the tables.
        CheckFailed: some do not hold; all of them are named, with their figures.
    """
    failed = []
    for check in checks:
        left, sign, right = parsed(check)
        values = [figure(side, rows) for side in (left, right)]
        if not OPERATORS[sign](*values):
            failed.append(f"{shown(left)} {sign} {shown(right)} ({values[0]:g} {sign} {values[1]:g})")
    if failed:
        raise CheckFailed(f"{len(failed)} of {count_of(len(checks), 'check')} {'does' if len(failed) == 1 else 'do'} not hold: {'; '.join(failed)}")


def figure(path: str, rows: Rows) -> float:
    """A number, or the cell of GROUP.METHOD.COLUMN; the method may be `best`, `worst` or `mean`, and hold dots.

    Groups are llms, oracles, rankers and fused (Table 2), and agreement (Table 3, and the agreement with labels). `gpt_rank` and
    `judge_rank` are the judge's ranks, whatever the judge is.
    """
    try:
        return float(path)
    except ValueError:
        pass
    group, _, rest = path.partition(".")
    method, _, column = rest.rpartition(".")
    if group == "agreement":
        chosen = [row for row in rows if row["table"] in (3, "agreement")]
    elif group in GROUPS:
        chosen = [row for row in rows if row["table"] == 2 and row["kind"] == GROUPS[group]]
    else:
        raise UsageError(f"--assert {shown(path)}: expected {FORM}; groups are {', '.join(GROUPS)} and agreement")
    if column in (JUDGE_RANK[LLM], JUDGE_RANK[OTHER]):
        column = next((own for own in JUDGE_RANK.values() if any(own in row for row in chosen)), column)
    having = {row["method"]: row[column] for row in chosen if isinstance(row.get(column), int | float) and not isinstance(row[column], bool)}
    if not having:
        columns = sorted({key for row in chosen for key, value in row.items() if isinstance(value, int | float) and key not in ("table", "examples")})
        raise UsageError(f"--assert {shown(path)}: no {group} with a figure {column!r}; there are {listed(columns)}")
    if method in having:
        return float(having[method])
    if method in ("best", "worst"):
        return float(min(having.values()) if lower_is_better(column) == (method == "best") else max(having.values()))
    if method == "mean":
        return float(sum(having.values()) / len(having))
    raise UsageError(f"--assert {shown(path)}: no {group} of the name {method!r}; there are {listed(having)}")


def read_rows(path: str) -> Rows:
    """The rows that an earlier `evaluate` wrote.

    Raises:
        NoInputError: there is no such file.
        DataError: it holds something else.
    """
    data = read_file(path, f"--compare {path}")
    rows: Rows = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                rows.append(_row(json_value(line)))
            except RecordError as error:
                raise DataError(f"--compare {path}:{number}: expected the JSON lines that `blendkit evaluate` writes: {error}") from error
    if not rows:
        raise DataError(f"--compare {path}: expected the JSON lines that `blendkit evaluate` writes, got nothing")
    return rows


class _Row(TypedDict):
    """What every row has."""

    table: int | str
    method: str


class _OfTable2(TypedDict):
    """What is compared."""

    kind: str
    intervals: NotRequired[dict[str, tuple[float | None, float | None]]]


def _row(row: Any) -> dict[str, Any]:
    if typed(row, _Row)["table"] == 2:
        figures = {key: value for key, value in row.items() if key not in ("table", "method", "kind", "intervals")}
        typed(row, _OfTable2)
        typed(figures, dict[str, float | None])
    return dict(row)


def compared_with(old: Rows, new: Rows) -> Rows:
    """One row for each cell of Table 2 that both runs have: old, new, and whether the change is beyond noise.

    The noise is the root of the sum of the squared half widths of both 95 % intervals, which takes the runs as independent.
    Where an interval is missing, `noise` and `beyond_noise` are None.
    """
    before = {(row["kind"], row["method"]): row for row in old if row["table"] == 2}
    found = []
    for row in (row for row in new if row["table"] == 2):
        earlier = before.get((row["kind"], row["method"]))
        for column, interval in row.get("intervals", {}).items():
            if earlier is None or earlier.get(column) is None or row.get(column) is None:
                continue
            noise = _noise(interval, earlier.get("intervals", {}).get(column, (None, None)))
            change = row[column] - earlier[column]
            cells = {"old": earlier[column], "new": row[column], "change": round(change, 4), "noise": None if noise is None else round(noise, 4)}
            beyond = None if noise is None else abs(change) > noise
            found.append({"table": "compare", "method": row["method"], "kind": row["kind"], "column": column, **cells, "beyond_noise": beyond})
    return found


def judges_differ(old: Rows, new: Rows) -> str | None:
    """A line for a person where the judge's ranks of both runs have two names, and so are not compared."""
    before, now = ({key for row in rows if row["table"] == 2 for key in row if key in JUDGE_RANK.values()} for rows in (old, new))
    return (
        f"--compare: the earlier run has {listed(before)}, this one {listed(now)}: ranks of two kinds of judges, which are not compared"
        if before and now and before != now
        else None
    )


def _noise(*intervals: Sequence[float | None]) -> float | None:
    """The root of the sum of the squared half widths; None where a bound is unknown."""
    bounds = [(low, high) for low, high in intervals if low is not None and high is not None]
    return math.hypot(*((high - low) / 2 for low, high in bounds)) if len(bounds) == len(intervals) else None
