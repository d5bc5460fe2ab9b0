"""`evaluate --assert`, `--expect` and `--fail-if-worse`: a build may fail when a model got worse or records are missing."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blendkit.errors import BlendkitError, CheckFailed, DataError, UsageError
from blendkit.evaluation.columns import BOUNDS, HIDDEN, heading, lower_is_better
from blendkit.evaluation.comparing import noise_of
from blendkit.evaluation.tables import AUDITED, GROUPS, JUDGE_RANK, JUDGES, Row, Rows, group_of, judge_of
from blendkit.judges.base import LLM, OTHER
from blendkit.terminal_text import count_of, listed, shown

OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
# Behind a check: how far apart both sides must be, or may be.
NOISE = {"beyond": ("<", ">"), "within": ("<=", ">=", "==")}
FORM = "GROUP.METHOD.COLUMN OP GROUP.METHOD.COLUMN or a number"
EARLIER = "earlier."
ONE = {"llms": "LLM", "oracles": "oracle", "rankers": "ranker", "fused": "fused answer", "agreement": "ranking", JUDGES: "judge"}


@dataclass(frozen=True, slots=True)
class Check:
    """LEFT OP RIGHT, and `beyond` or `within` where noise counts."""

    text: str
    left: str
    sign: str
    right: str
    noise: str

    @property
    def needs_earlier(self) -> bool:
        """Whether it names a figure of the earlier run."""
        return self.left.startswith(EARLIER) or self.right.startswith(EARLIER)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the tables: its value, what a person calls it, and its interval (both bounds None where there is none)."""

    value: float
    words: str
    bounds: tuple[float | None, float | None]


def parsed(check: str) -> Check:
    """The parts of a check.

    Raises:
        UsageError: it is not of the form.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)(?:\s+(beyond|within)\s+noise)?\s*", check, re.DOTALL)
    if match is None:
        raise UsageError(f"--assert {check!r}: expected {FORM}, such as rankers.pairrm.gpt_rank < llms.best.gpt_rank")
    found = Check(shown(check.strip()), match[1], match[2], match[3], match[4] or "")
    if found.noise and found.sign not in NOISE[found.noise]:
        raise UsageError(f"--assert {found.text}: expected {listed(NOISE[found.noise])} before {found.noise} noise, got {found.sign}")
    return found


def outcomes(checks: Iterable[Check], rows: Rows, earlier: Rows | None = None) -> tuple[Rows, list[BlendkitError]]:
    """The table `checks`, a row each, and what went wrong with those that cannot be answered (`holds` is None)."""
    found: Rows = []
    errors: list[BlendkitError] = []
    for check in checks:
        try:
            found.append(_outcome(check, rows, earlier))
        except BlendkitError as error:
            errors.append(error)
            found.append(_row(check.text, str(error), None, None, None))
    return found, errors


def expected(records: int, count: int) -> Row:
    """The row of `--expect`."""
    return _row(f"--expect {records}", count_of(records, "record"), count == records, count, records)


def not_worse(path: str, found: list[str]) -> Row:
    """The row of `--fail-if-worse`, of what `comparing.worse` found."""
    words = f"Worse beyond noise, or gone: {listed(found, 20)}" if found else "No figure is worse beyond noise"
    return _row(f"--fail-if-worse {shown(path)}", words, not found, len(found), 0)


def _row(text: str, words: str, holds: bool | None, left: float | None, right: float | None) -> Row:
    result = {True: "holds", False: "does not hold", None: "cannot be said"}[holds]
    return {"table": "checks", "method": text, "holds": holds, "result": result, "means": words, "left": left, "right": right}


def raise_failed(found: Rows, errors: list[BlendkitError]) -> None:
    """Raises what `outcomes` could not answer; else CheckFailed, which names all that do not hold, with their figures."""
    if errors:
        raise errors[0]
    failed = [row for row in found if not row["holds"]]
    if failed:
        each = (f"{row['method']} ({row['means'] if row['method'].startswith('--fail') else _figures(row)})" for row in failed)
        raise CheckFailed(f"{len(failed)} of {count_of(len(found), 'check')} {'does' if len(failed) == 1 else 'do'} not hold: {'; '.join(each)}")


def _figures(row: Row) -> str:
    return f"{row['left']:g} against {row['right']:g}"


def _outcome(check: Check, rows: Rows, earlier: Rows | None) -> Row:
    left, right = (find(side, rows, earlier) for side in (check.left, check.right))
    words, slack = f"{left.words} {check.sign} {right.words}", 0.0
    if check.noise:
        noise = noise_of(left.bounds, right.bounds)
        if noise is None:
            raise DataError(f"--assert {check.text}: a figure has no interval, so nothing says what noise is")
        words, slack = f"{words} {check.noise} noise ({noise:.4g})", noise
    gap = left.value - right.value
    if check.noise == "beyond":
        holds = (gap if check.sign == ">" else -gap) > slack
    elif check.noise == "within":
        holds = {">=": gap >= -slack, "<=": gap <= slack, "==": abs(gap) <= slack}[check.sign]
    else:
        holds = OPERATORS[check.sign](left.value, right.value)
    return _row(check.text, words, bool(holds), left.value, right.value)


def find(path: str, rows: Rows, earlier: Rows | None = None) -> Figure:
    """A number, or the cell of GROUP.METHOD.COLUMN, or a bound of its interval, GROUP.METHOD.COLUMN.low or .high.

    The method may be `best`, `worst` or `mean`, and hold dots. Groups are llms, oracles, rankers and fused (Table 2), agreement
    (Table 3, and the agreement with labels), and judges (the audit; best, worst and mean leave out what nobody chose).
    `gpt_rank` and `judge_rank` are the judge's ranks, whatever the judge is. With `earlier.`
    before the group it is the earlier run's.

    Raises:
        UsageError: there is no such figure.
        DataError: it is null, or it has no interval.
    """
    try:
        return Figure(float(path), path, (float(path), float(path)))
    except ValueError:
        pass
    said, full = f"--assert {shown(path)}", path
    if path.startswith(EARLIER):
        if earlier is None:
            raise UsageError(f"{said}: expected --compare FILE or --fail-if-worse FILE with it, which give the earlier run")
        rows, path = earlier, path.removeprefix(EARLIER)
    group, _, rest = path.partition(".")
    method, _, column = rest.rpartition(".")
    if group == "agreement":
        chosen = [row for row in rows if row["table"] in (3, "agreement")]
    elif group == JUDGES:
        chosen = [row for row in rows if row["table"] == "audit"]
    elif group in GROUPS:
        chosen = [row for row in rows if row["table"] == 2 and row["kind"] == GROUPS[group]]
    else:
        raise UsageError(f"{said}: expected {FORM}; groups are {', '.join(GROUPS)}, agreement and judges")
    bound = ""
    if column in ("low", "high") and not any(column in row for row in chosen):
        bound, (method, _, column) = column, method.rpartition(".")
    if column in (JUDGE_RANK[LLM], JUDGE_RANK[OTHER]):
        column = next((own for own in JUDGE_RANK.values() if any(own in row for row in chosen)), column)
    having = {row["method"]: row for row in chosen if _is_figure(row.get(column))}
    null = {row["method"]: row for row in chosen if column in row and row[column] is None}
    if method in null or (null and not having):
        without = [null[method]] if method in null else list(null.values())
        raise DataError(f"{said}: {shown(column)} is null for {listed(row['method'] for row in without)} because {_reason(without[0], column)}")
    if not having:
        columns = sorted({key for row in chosen for key, value in row.items() if _is_figure(value) and key not in ("table", "examples")})
        columns_of = " (--audit FIELD adds them)" if group == JUDGES and not chosen else ""
        raise UsageError(f"{said}: no {group} with a figure {column!r}; there are {listed(columns)}{columns_of}")
    words = heading(next(iter(having.values()))["table"], column, judge_of(rows)).replace(" ↑", "").replace(" ↓", "")
    words = f"{'earlier ' if full != path else ''}{words}"
    ranked = {name: row for name, row in having.items() if group != JUDGES or row["kind"] == AUDITED}
    if method in ("best", "worst", "mean") and method not in having and not ranked:
        raise UsageError(f"{said}: no judge in the audit; there are {listed(having)}")
    if method == "mean" and method not in having:
        if bound:
            raise UsageError(f"{said}: a mean over methods has no interval; name a method, best or worst")
        values = [float(row[column]) for row in ranked.values()]
        return Figure(sum(values) / len(values), f"mean {words} over {group}", (None, None))
    who = shown(method)
    if method in ("best", "worst") and method not in having:
        least = lower_is_better(column) == (method == "best")
        which = (min if least else max)(ranked, key=lambda name: ranked[name][column])
        method, who = which, f"the {method} {ONE[group]}, {shown(which)}"
    if method not in having:
        raise UsageError(f"{said}: no {group} of the name {method!r}; there are {listed(having)}")
    row = having[method]
    bounds = _bounds(row, column)
    if not bound:
        return Figure(float(row[column]), f"{words} of {who}", bounds)
    value = bounds[bound == "high"]
    if value is None:
        raise DataError(f"{said}: {shown(column)} of {shown(method)} has no interval")
    return Figure(float(value), f"{'lower' if bound == 'low' else 'upper'} bound of {words} of {who}", (value, value))


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounds(row: Row, column: str) -> tuple[float | None, float | None]:
    if row["table"] in (2, "audit") and column in row.get("intervals", {}):
        low, high = row["intervals"][column]
        return low, high
    low, high = (row.get(name) for name in BOUNDS.get(column, (f"{column}_low", f"{column}_high")))
    return (low, high) if _is_figure(low) and _is_figure(high) else (None, None)


def _reason(row: Row, column: str) -> str:
    """Why a cell is null."""
    if row["table"] == "audit":
        return "the labelled pairs do not tell it: it takes verdicts in both orders (consistency), with probabilities (brier, ece), or pairs of that kind"
    if row["table"] != 2:
        return "there is nothing to compute it from: a ranking that ties all candidates has no correlation, and a share of no pairs is none"
    missing = row.get("missing", {}).get(column)
    if missing is None:
        return "no verdict on it could be read"
    lack = f"{missing:,} of its {count_of(row.get('examples', 0), 'example has', 'examples have')} no value"
    if column in JUDGE_RANK.values() or column.startswith("not_worse_than_"):
        return f"{lack}: the judge compared it with none there (`blendkit judge` compares all)"
    return f"{lack} of it (`blendkit score` after the last stage that adds candidates gives them one)"


def all_figures(rows: Rows) -> str:
    """Every figure that `find` finds, a line each: GROUP.METHOD.COLUMN, a tab, its value; then the bounds of its interval."""
    lines = []
    for row in rows:
        if row["table"] not in (2, 3, "agreement", "audit"):
            continue
        for column, value in row.items():
            if column in ("method", *HIDDEN) or not (value is None or _is_figure(value)):
                continue
            path = f"{group_of(row)}.{shown(row['method'])}.{shown(column)}"
            lines.append(f"{path}\t{'null' if value is None else value}\n")
            if "intervals" in row:
                lines += [f"{path}.{side}\t{bound}\n" for side, bound in zip(("low", "high"), _bounds(row, column), strict=True) if bound is not None]
    return "".join(lines)
