"""The answer that the tables open with: which LLM and which method are best, by how much, and how sure that is.

The winner is chosen from the same examples that it is tested on. What is tested is therefore that it is better than every one
of the other side (the largest of the paired p, so that the choice of the one that is named costs nothing), times the number
that the winner was chosen from (Bonferroni; against the best, after Hsu 1984). The chance of a false claim stays below 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from blendkit.evaluation.columns import lower_is_better, text_of
from blendkit.evaluation.examples import rounded
from blendkit.evaluation.methods import RANK, Method, Methods
from blendkit.evaluation.spilled_columns import Column, Computed, Values, counted
from blendkit.evaluation.statistics import bootstrap, paired_p
from blendkit.evaluation.tables import Row
from blendkit.judges.base import LLM, PANEL, STAND_IN
from blendkit.terminal_text import shown

LEVEL = 0.05
KINDS_OF_JUDGES = {LLM: "{}, an LLM", PANEL: "the panel {}", STAND_IN: "the offline stand-in"}


@dataclass
class Contestant:
    """A method, with its value in each example, and how many there are."""

    method: Method
    values: Column
    count: int
    mean: float


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def answer(table: Methods, judge: Row | None, seed: int) -> Row:
    """The row `answer`, whose `line` is the sentence; `judge` is the judge's row, where the stream has verdicts of it.

    `advantage` is how much better the `method` is than the method `over`, on the examples of both, with its bootstrap 95 %
    interval `low` to `high`; `p` is corrected for the `chosen_from` methods of which it is the best.
    """
    column, says, behind = _measure(table, judge)
    if column is None:
        return {"table": "answer", "method": "", "line": says}
    lower = column == table.rank_column or column == RANK or lower_is_better(column)
    llms, methods = (_side(table, kinds, column, lower) for kinds in (("model",), ("ranker", "fused")))
    if not llms or len(llms) + len(methods) < 2:
        alone = f"there is only {shown(llms[0].method.name)}" if llms else f"no LLM has a {says.removeprefix('mean ')} in every example"
        return {"table": "answer", "method": llms[0].method.name if llms else "", "line": f"nothing to compare: {alone}{behind}"}
    sign = -1.0 if lower else 1.0
    one, side, others = (methods[0], methods, llms) if methods else (llms[0], llms[1:], llms[1:])
    if methods and counted(_difference(one, others[0], sign))[1] < 0:
        one, side, others = llms[0], llms, methods
    differences = [_difference(one, other, sign) for other in others]
    found = [counted(difference) for difference in differences]
    count, advantage = found[0]
    if not count:
        return {"table": "answer", "method": one.method.name, "line": f"nothing to compare: no record has both {_names(one, others[0])}{behind}"}
    # Where the other is not worse on the examples of both, nothing speaks for the claim, however sure the difference is.
    ahead = np.array([mean > 0 for _, mean in found])
    p = min(1.0, len(side) * float(np.where(ahead, paired_p(differences, seed), 1.0).max()))
    low, high = bootstrap(differences[:1], seed)[0].tolist()
    means = [counted(_where_both(a, b))[1] for a, b in ((one, others[0]), (others[0], one))]
    told = p < LEVEL
    row: Row = {"table": "answer", "method": one.method.name, "kind": one.method.kind, "over": others[0].method.name, "over_kind": others[0].method.kind}
    row |= {"column": table.named(column), "examples": count, "mean": rounded(means[0]), "over_mean": rounded(means[1])}
    row |= {"advantage": rounded(advantage), "low": rounded(low), "high": rounded(high), "p": round(p, 6), "chosen_from": len(side), "told_apart": told}
    digits = 4 if not lower and max(map(abs, means)) <= 1 else 2
    own, of_other, gain, least, most = (text_of(value, digits) for value in (*means, advantage, low, high))
    sure = f"difference {gain}, 95 % {least} to {most}, {_p(p)}" + (f" (corrected for the choice of 1 in {len(side)})" if len(side) > 1 else "")
    figures = f"{says} {own} to {of_other}, {sure}, {count:,} record{'s' if count > 1 else ''}"
    return {**row, "line": f"{_verdict(one, others[0], told, len(llms))}: {figures}{behind}"}


def _measure(table: Methods, judge: Row | None) -> tuple[str | None, str, str]:
    """The column that decides, what its mean is called, and what stands behind the sentence; without a column, why there is none."""
    if table.oracle.score:
        return table.rank_column, f"mean rank by {shown(table.oracle.score)}", ""
    if table.oracle.judge:
        if judge is None:
            return RANK, "mean rank", ""
        kind = KINDS_OF_JUDGES.get(judge["judge"], "{}, not known to be an LLM").format(shown(judge["method"]))
        return RANK, "mean rank", f"; the judge is {kind}{', not above chance' if judge['at_chance'] else ''}"
    if not table.metrics:
        return None, "no judge's verdicts and no scores in the stream: nothing says which is best; `blendkit judge` and `blendkit score` do", ""
    metric = next((metric for metric in table.metrics if _side(table, ("model",), metric, False)), next(iter(table.metrics)))
    return metric, f"mean {shown(metric)}", f"; no judge's verdicts, so by the score {shown(metric)}"


def _side(table: Methods, kinds: Collection[str], column: str, lower: bool) -> list[Contestant]:
    """The methods of some kinds that have the column throughout, best first; of as many examples as the most have, and not the oracle itself."""
    own = table.oracle.name or f"score:{column}"
    found = []
    for method in table.all():
        if method.kind in kinds and method.name != own:
            values = table.column(method, column)
            count, mean = counted(values)
            if count and count == method.examples - method.left_out[column]:
                found.append(Contestant(method, values, count, mean))
    most = max((one.count for one in found), default=0)
    return sorted((one for one in found if one.count == most), key=lambda one: one.mean if lower else -one.mean)


def _difference(one: Contestant, other: Contestant, sign: float) -> Column:
    return Computed(lambda a, b: sign * (a - b), one.values, other.values)


def _where_both(one: Contestant, other: Contestant) -> Column:
    def there(a: Values, b: Values) -> Values:
        return np.where(np.isnan(b), math.nan, a)

    return Computed(there, one.values, other.values)


def _names(one: Contestant, other: Contestant) -> str:
    return f"{shown(one.method.name)} and {shown(other.method.name)}"


def _verdict(one: Contestant, other: Contestant, told: bool, llms: int) -> str:
    first, second = shown(one.method.name), shown(other.method.name)
    if one.method.kind == other.method.kind == "model":
        return f"{first} is the best of {llms} LLMs, before {second}" if told else f"cannot be told apart: {first} and {second}, the best 2 of {llms} LLMs"
    if one.method.kind == "model":
        best = f"the best single LLM, {first},"
        return f"{best} beats the best other method, {second}" if told else f"cannot be told apart: {best} and the best other method, {second}"
    return f"{first} beats the best single LLM, {second}" if told else f"cannot be told apart: {first} and the best single LLM, {second}"


def _p(p: float) -> str:
    return "p below 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.1 else f"p {p:.2f}"
