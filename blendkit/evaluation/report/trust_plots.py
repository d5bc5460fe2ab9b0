"""Figures of what judges are worth: whether their probabilities are true, what sways them; and of what quality costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from blendkit.evaluation.report.ink import BLUE, GREY, INK, Draw, Drawn, key_under, short
from blendkit.evaluation.tables import TABLES, Row, Rows, judge_of, title_of
from blendkit.terminal_text import count_of

# Judges that have a panel of their own, and panels side by side.
MOST, BESIDE = 6, 3
# Names in the figure of the frontier: as wide and high as this in pixels they have no other beside them, nor more numbers.
WIDE, HIGH, MOST_NUMBERS = 48, 13, 5
# Widths of odds ratios that are shown; longer bars end in an arrow's place, at the edge.
WIDEST = 16.0
ABOUT_JUDGES = ("reliability", "effects")


def trust_figures(rows: Rows) -> list[Drawn]:
    """Only what the rows have."""
    found: list[Drawn] = []
    for table, draw in (("reliability", _reliability), ("effects", _effects)):
        judges = list(dict.fromkeys(row["method"] for row in rows if row["table"] == table))
        if judges:
            chosen = [[row for row in rows if row["table"] == table and row["method"] == judge] for judge in judges[:MOST]]
            more = f"; {MOST} of {count_of(len(judges), 'judge')}" if len(judges) > MOST else ""
            # A line an effect but the label's.
            height = 2.9 if table == "reliability" else 0.9 + 0.28 * (len(chosen[0]) - 1)
            found.append(Drawn(table, TABLES[table].title + more, _panels(chosen, draw), height * math.ceil(len(chosen) / BESIDE)))
    points = [row for row in rows if row["table"] == "frontier"]
    if points:
        height = 4.2 + 0.14 * (_key(points).count("\n") + 1)
        found.append(Drawn("frontier", title_of("frontier", judge_of(rows)), lambda figure: _frontier(figure, points), height))
    return found


def _panels(judges: list[Rows], draw: Callable[[Any, Rows], None]) -> Draw:
    def drawn(figure: Any) -> None:
        columns = min(BESIDE, len(judges))
        grid = figure.subplots(math.ceil(len(judges) / columns), columns, squeeze=False, sharey=True, sharex=True)
        for axes in grid.ravel()[len(judges) :]:
            axes.set_visible(False)
        for axes, rows in zip(grid.ravel(), judges, strict=False):
            axes.set_title(short(rows[0]["method"]), fontsize="small")
            axes.tick_params(labelsize="small")
            draw(axes, rows)

    return drawn


def _reliability(axes: Any, rows: Rows) -> None:
    """A dot a bin, larger where it has more pairs, with the interval of what people say; on the line, probabilities are true."""
    most = max(row["pairs"] for row in rows)
    axes.plot([50, 100], [50, 100], color=GREY, linewidth=1.0, linestyle="--")
    for row in rows:
        x, y, bounds = row["probability"], row["preferred"], row["intervals"].get("preferred")
        if bounds:
            axes.vlines(x, *bounds, color=GREY, linewidth=1.1, zorder=1)
        axes.scatter(x, y, s=14 + 70 * row["pairs"] / most, color=BLUE, zorder=2, linewidth=0)
    axes.set_xlabel("the judge is sure by %", fontsize="small")
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("people agree, %", fontsize="small")


def _effects(axes: Any, rows: Rows) -> None:
    """A line an effect but the label's: the odds ratio and its interval, on a scale on which twice and half are as far from 1."""
    shown = [row for row in rows if row["effect"] != "label"][::-1]
    axes.axvline(1, color=GREY, linewidth=1.0, linestyle="--")
    for place, row in enumerate(shown):
        if row["odds_ratio"] is None:
            axes.annotate("not known", (1, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize="x-small", color=GREY)
            continue
        low, high = (min(max(bound, 1 / WIDEST), WIDEST) for bound in row["intervals"]["odds_ratio"])
        clear = high < 1 or low > 1
        axes.hlines(place, low, high, color=BLUE if clear else GREY, linewidth=1.8)
        axes.scatter(min(max(row["odds_ratio"], 1 / WIDEST), WIDEST), place, color=BLUE if clear else GREY, s=26, zorder=2, linewidth=0)
    axes.set_xscale("log", base=2)
    # All panels have one axis, on which half and twice always are.
    axes.update_datalim([(0.5, 0), (2, 0)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
    axes.xaxis.set_minor_locator(_nothing())
    axes.set_yticks(range(len(shown)), [row["effect"] for row in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("odds ×", fontsize="small")


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _frontier(figure: Any, rows: Rows) -> None:
    """A dot a subset of models, by the numbers of the key; a line along the front. Of dots that lie close on it, the first has a name."""
    numbers = _numbers(rows)
    front = [row for row in rows if row["front"]]
    others = [row for row in rows if not row["front"]]
    axes = figure.subplots()
    axes.scatter([row["price"] for row in others], [row["quality"] for row in others], color=GREY, s=16, zorder=1, linewidth=0)
    for row in rows:
        if bounds := row["intervals"].get("quality"):
            axes.vlines(row["price"], *bounds, color=BLUE if row["front"] else GREY, linewidth=1.0, alpha=0.4, zorder=1)
    axes.plot([row["price"] for row in front], [row["quality"] for row in front], color=BLUE, marker="o", markersize=5, linewidth=1.4, zorder=2)
    axes.margins(x=0.05)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.1 * (right - left))
    height = axes.transData.transform
    named: list[Any] = []
    for row in [*front, *others]:
        place = height((row["price"], row["quality"]))
        # Names stand on the right of their dots and under them, where the front, which bends to the left, leaves room.
        if all(abs(place[0] - x) > WIDE or abs(place[1] - y) > HIGH for x, y in named):
            named.append(place)
            there = {"xytext": (5, -10), "textcoords": "offset points", "fontsize": "x-small", "color": INK if row["front"] else GREY}
            axes.annotate(_called(row, numbers), (row["price"], row["quality"]), **there)
    axes.set_xlabel("$ for 1,000 records")
    axes.set_ylabel("quality by the oracle, with 95 % intervals")
    figure.supxlabel(_key(rows), fontsize="x-small", x=0.02, ha="left")


def _numbers(rows: Rows) -> dict[str, int]:
    """Model → its number in the figure, the cheapest first."""
    return {row["method"]: number for number, row in enumerate((row for row in rows if row["models"] == 1), 1)}


def _key(rows: Rows) -> str:
    """Which model has which number."""
    return key_under(_numbers(rows))


def _called(row: Row, numbers: dict[str, int]) -> str:
    """The models of a subset by their numbers, or those that it lacks where these are fewer."""
    models = {row["method"]} if row["models"] == 1 else set(row["method"].split(" + "))
    if not models <= set(numbers):
        return count_of(row["models"], "model")  # a name holds the sign itself
    inside = sorted(numbers[model] for model in models)
    lacking = sorted(set(numbers.values()) - set(inside))
    if not lacking:
        return "all"
    few = lacking if len(lacking) < len(inside) else inside
    if len(few) > MOST_NUMBERS:
        return count_of(len(inside), "model")
    return ("all but " if few is lacking else "") + "+".join(map(str, few))
