"""`evaluate --compare` and `--fail-if-worse`: what changed since an earlier run, and whether that is beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from blendkit.errors import DataError
from blendkit.evaluation.columns import HIDDEN, NEUTRAL, TITLES, lower_is_better
from blendkit.evaluation.tables import AUDITED, JUDGE_RANK, Row, Rows, group_of
from blendkit.terminal_text import listed, shown
from blendkit.untrusted import json_lines, typed

# Figures that get neither better nor worse.
UNRANKED = (*NEUTRAL, "pairs", "ties", "label_ties", "first_place")


def read_rows(path: str, flag: str = "--compare") -> Rows:
    """The rows that an earlier `evaluate` wrote.

    Raises:
        NoInputError: there is no such file.
        DataError: it holds something else.
    """
    expected = "expected the JSON lines that `blendkit evaluate` writes"
    rows = json_lines(path, f"{flag} {path}", _row, f"{expected}: ")
    if not rows:
        raise DataError(f"{flag} {path}: {expected}, got nothing")
    return rows


class _Row(TypedDict):
    """What every row has."""

    table: int | str
    method: str


class _Compared(TypedDict):
    """What is compared."""

    kind: str
    intervals: NotRequired[dict[str, tuple[float | None, float | None]]]
    missing: NotRequired[dict[str, int]]


def _row(row: Any) -> dict[str, Any]:
    if typed(row, _Row)["table"] in (2, "audit"):
        figures = {key: value for key, value in row.items() if key not in ("method", *HIDDEN)}
        typed(row, _Compared)
        typed(figures, dict[str, float | None])
    return dict(row)


def compared_with(old: Rows, new: Rows) -> Rows:
    """One row for each cell of Table 2, and each figure of a judge in the audit, that both runs have: old, new, and whether the change is beyond noise.

    The noise is the root of the sum of the squared half widths of both 95 % intervals, which takes the runs as independent.
    Where an interval is missing, `noise` and `beyond_noise` are None.
    """
    before = {(row["kind"], row["method"]): row for row in old if _is_compared(row)}
    found = []
    for row in filter(_is_compared, new):
        earlier = before.get((row["kind"], row["method"]))
        for column, interval in row.get("intervals", {}).items():
            if earlier is None or earlier.get(column) is None or row.get(column) is None:
                continue
            noise = noise_of(interval, earlier.get("intervals", {}).get(column, (None, None)))
            change = row[column] - earlier[column]
            cells = {"old": earlier[column], "new": row[column], "change": round(change, 4), "noise": None if noise is None else round(noise, 4)}
            beyond = None if noise is None else abs(change) > noise
            found.append({"table": "compare", "method": row["method"], "kind": row["kind"], "column": column, **cells, "beyond_noise": beyond})
    return found


def _is_compared(row: Row) -> bool:
    return bool(row["table"] == 2 or (row["table"] == "audit" and row["kind"] == AUDITED))


def judges_differ(old: Rows, new: Rows) -> str | None:
    """A line for a person where the judge's ranks of both runs have two names, and so are not compared."""
    before, now = ({key for row in rows if row["table"] == 2 for key in row if key in JUDGE_RANK.values()} for rows in (old, new))
    return (
        f"the earlier run has {_called(before)}, this one {_called(now)}: ranks of two kinds of judges, which are not compared"
        if before and now and before != now
        else None
    )


def _called(columns: set[str]) -> str:
    return listed(TITLES[column].removesuffix(" ↓") for column in sorted(columns))


def worse(old: Rows, new: Rows) -> list[str]:
    """What got worse beyond noise since the earlier run, as GROUP.METHOD.COLUMN with both figures; and what it had that is no longer there.

    `new` has the rows of `compare`. Columns that say nothing of better or worse are passed over.
    """
    found = []
    for row in new:
        if row["table"] == "compare" and row["beyond_noise"] and row["column"] not in UNRANKED and (row["change"] > 0) == lower_is_better(row["column"]):
            found.append(f"{group_of(row)}.{shown(row['method'])}.{shown(row['column'])} {row['old']:g} to {row['new']:g}")
    there = {(row["kind"], row["method"], column) for row in new if _is_compared(row) for column, value in row.items() if value is not None}
    for row in old:
        if _is_compared(row):
            lost = [key for key, value in row.items() if value is not None and key not in ("method", *HIDDEN, *UNRANKED)]
            lost = [column for column in lost if (row["kind"], row["method"], column) not in there]
            found += [f"{group_of(row)}.{shown(row['method'])}.{shown(column)} is gone" for column in lost]
    return found


def noise_of(*intervals: Sequence[float | None]) -> float | None:
    """The root of the sum of the squared half widths; None where a bound is unknown."""
    bounds = [(low, high) for low, high in intervals if low is not None and high is not None]
    return math.hypot(*((high - low) / 2 for low, high in bounds)) if len(bounds) == len(intervals) else None
