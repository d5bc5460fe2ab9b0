"""The figures, drawn by matplotlib from the tables' rows: for the page as SVG, and for `--plot` as one file."""

from __future__ import annotations

import io
import logging
import math
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from blendkit.errors import OutputError, UsageError, require
from blendkit.evaluation.columns import NEUTRAL, TITLES, lower_is_better
from blendkit.evaluation.report.ink import BACK, BLUE, GREY, INK, THEMED, Drawn, key_under, short
from blendkit.evaluation.report.trust_plots import trust_figures
from blendkit.evaluation.tables import AT_CHANCE, JUDGE_RANK, Rows, judge_of, line_above, title_of
from blendkit.terminal_text import count_of, shown

FORMS = (".png", ".svg", ".pdf")
# The best ones; more are no figure.
MOST_BARS = 100
PANELS = 6
# Names stand beside so many dots; of more, numbers in them.
NAMED = 8
# The height of a name in a panel, as a share of it.
LINE = 0.085


def figures(rows: Rows) -> list[Drawn]:
    """Only what the rows have."""
    found: list[Drawn] = []
    judge = judge_of(rows)
    methods = len({row["method"] for row in rows if row["table"] in ("firsts", "wins")})
    if any(row["table"] == "firsts" for row in rows):
        firsts, distribution = _of(rows, "firsts"), _of(rows, "distribution")
        of = f"; {MOST_BARS} of {count_of(len(firsts), 'method')}" if len(firsts) > MOST_BARS else ""
        height = 1.3 + 0.34 * min(methods, MOST_BARS)
        found.append(Drawn("firsts", title_of("firsts", judge) + of, lambda figure: _firsts(figure.subplots(), firsts[:MOST_BARS]), height))
        distributed = distribution[:MOST_BARS]
        found.append(Drawn("distribution", title_of("distribution", judge) + of, lambda figure: _distribution(figure.subplots(), distributed), height))
    if any(row["table"] == "wins" for row in rows):
        found.append(Drawn("wins", title_of("wins", judge), lambda figure: _wins(figure.subplots(), _of(rows, "wins")), 1.8 + 0.42 * methods))
    if _metrics(rows):
        mark = AT_CHANCE if judge and judge["at_chance"] and judge["is_oracle"] else ""
        title = f"Each metric against the oracle: one dot an LLM, with 95 % intervals{mark}"
        columns = _columns(rows)
        height = 7.8 / columns * math.ceil(min(PANELS, len(_metrics(rows))) / columns) + 0.2 + 0.14 * (_key(rows).count("\n") + 1)
        found.append(Drawn(2, title, lambda figure: _correlations(figure, rows), height))
    return [*found, *trust_figures(rows)]


def line_above_figures(rows: Rows) -> str:
    """What the judge is worth, where it feeds one of the figures; else nothing."""
    return next(filter(None, (line_above(table, _of(rows, table), judge_of(rows)) for table in ("firsts", "wins") if _of(rows, table))), "")


def as_svg(rows: Rows) -> dict[Drawn, str]:
    """Each figure but the win rates as SVG text for a page; its words stay words, and its colours are the page's."""
    drawn = {}
    for chosen in figures(rows):
        if chosen.table == "wins":
            continue  # it stands on the page as a table
        with drawing() as matplotlib:
            figure = matplotlib.figure.Figure(figsize=(7.2, chosen.height), layout="constrained")
            chosen.draw(figure)
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = file.getvalue()[file.getvalue().index("<svg") :]
        for colour, name in THEMED.items():
            svg = svg.replace(colour, name)
        drawn[chosen] = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(shown(chosen.title))}" ', 1)
    return drawn


def save_plot(rows: Rows, path: str) -> None:
    """All figures in one file.

    Raises:
        OutputError: the file cannot be written, or there is nothing to draw.
    """
    chosen = figures(rows)
    if not chosen:
        raise OutputError(f"--plot {path}: nothing to draw: no oracle in the stream; run `blendkit judge` before, or let a score be the oracle")
    columns = 1 if len(chosen) == 1 else 2
    lines = math.ceil(len(chosen) / columns)
    heights = [max(one.height for one in chosen[line * columns : (line + 1) * columns]) for line in range(lines)]
    with drawing() as matplotlib:
        words = textwrap.fill(shown(line_above_figures(rows)), 100 * columns)
        above = 0.2 * (words.count("\n") + 1) if words else 0
        whole = matplotlib.figure.Figure(figsize=(7.2 * columns, sum(heights) + 0.4 * lines + above), layout="constrained")
        if words:
            whole.suptitle(words, fontsize="small")
        parts = np.atleast_1d(whole.subfigures(lines, columns, height_ratios=heights, hspace=0.04)).ravel()
        for part, one in zip(parts, chosen, strict=False):
            part.suptitle(one.title, fontweight="bold")
            one.draw(part)
        try:
            whole.savefig(path, dpi=150)
        except OSError as error:
            raise OutputError(f"--plot {path}: cannot write: {error.strerror}") from error


def check_plot(path: str) -> None:
    """Raises UsageError for a file that no figure can be written as or when matplotlib is not there, OutputError for no folder."""
    if Path(path).suffix.lower() not in FORMS:
        raise UsageError(f"--plot {path}: expected a name that ends with {', '.join(FORMS)}")
    if not Path(path).absolute().parent.is_dir():
        raise OutputError(f"--plot {path}: there is no such folder")
    require("matplotlib", "plots", "--plot")


@contextmanager
def drawing() -> Iterator[Any]:
    """matplotlib with our settings, quiet about scripts that its own font lacks (a browser has others)."""
    import matplotlib
    import matplotlib.figure

    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    inks: dict[Any, Any] = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK)
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "blendkit", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False}
    try:
        with matplotlib.rc_context({**settings, "axes.spines.right": False, "text.parse_math": False, **inks}), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield matplotlib
    finally:
        logger.setLevel(level)


def _of(rows: Rows, table: Any) -> Rows:
    return [row for row in rows if row["table"] == table]


def _firsts(axes: Any, rows: Rows) -> None:
    rows = rows[::-1]
    axes.barh(range(len(rows)), [row["share"] for row in rows], color=BLUE)
    for place, row in enumerate(rows):
        low, high = row["low"], row["high"]
        axes.plot([low, high], [place, place], color=INK, linewidth=1.1, marker="|", markersize=5)
        axes.annotate(f"{row['share']:.1f}", (max(high, row["share"]), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set_yticks(range(len(rows)), [short(row["method"]) for row in rows])
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("%, with 95 % intervals")


def _distribution(axes: Any, rows: Rows) -> None:
    import matplotlib

    rows = rows[::-1]
    ranks = [key for key in rows[0] if key.startswith("rank ")]
    colours = matplotlib.colormaps["RdYlBu_r"](np.linspace(0.05, 0.95, len(ranks)))
    left = np.zeros(len(rows))
    for rank, colour in zip(ranks, colours, strict=True):
        shares = np.array([row[rank] for row in rows])
        axes.barh(range(len(rows)), shares, left=left, color=colour, label=rank.removeprefix("rank "))
        left += shares
    axes.set_yticks(range(len(rows)), [short(row["method"]) for row in rows])
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("%; rank 1 on the left")
    axes.legend(title="rank", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")


def _wins(axes: Any, rows: Rows) -> None:
    names = [row["method"] for row in rows]
    rates = np.array([[math.nan if row.get(f"over {name}") is None else row[f"over {name}"] for name in names] for row in rows], float)
    axes.imshow(rates, cmap="RdBu", vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(~np.isnan(rates)):
        axes.text(j, i, f"{rates[i, j]:.0f}", ha="center", va="center", fontsize="small", color="white" if abs(rates[i, j] - 50) > 33 else "black")
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.spines[:].set_visible(False)


def _metrics(rows: Rows) -> list[str]:
    """Columns of Table 2 that every LLM has, beside its rank under the oracle."""
    models = _models(rows)
    oracle = _oracle_column(rows)
    if oracle is None or len(models) < 3:
        return []
    skipped = {"examples", "judged", "top3", oracle, oracle.removeprefix("rank_by_")}
    columns = [key for key, value in models[0].items() if isinstance(value, float) and key not in skipped and not key.startswith("not_worse_than_")]
    return [column for column in columns if all(row.get(column) is not None for row in models)]


def _oracle_column(rows: Rows) -> str | None:
    row = next((row for row in rows if row["table"] == 2), {})
    return next((key for key in row if key.startswith("rank_by_")), next((key for key in JUDGE_RANK.values() if key in row), None))


def _models(rows: Rows) -> Rows:
    """The LLMs' rows of Table 2 that have a rank under the oracle, best first."""
    oracle = _oracle_column(rows)
    return [row for row in rows if row["table"] == 2 and row["kind"] == "model" and row.get(str(oracle)) is not None]


def _key(rows: Rows) -> str:
    """Which LLM has which number, where there are too many for names beside the dots."""
    models = _models(rows)
    return key_under(row["method"] for row in models) if len(models) > NAMED else ""


def _columns(rows: Rows) -> int:
    """Panels side by side: fewer where many dots need room."""
    return 3 if len(_models(rows)) <= NAMED else 2


def _correlations(figure: Any, rows: Rows) -> None:
    metrics, oracle = _metrics(rows)[:PANELS], str(_oracle_column(rows))
    models = _models(rows)
    agreement = {row["method"]: row.get("spearman_per_example") for row in _of(rows, 3)}
    columns = _columns(rows)
    grid = figure.subplots(math.ceil(len(metrics) / columns), min(columns, len(metrics)), squeeze=False, sharey=True)
    for axes in grid.ravel()[len(metrics) :]:
        axes.set_visible(False)
    # Rank 1 is best, so it stands at the top; the axis is shared.
    ends = [bound for row in models for bound in (row[oracle], *row.get("intervals", {}).get(oracle, ())) if bound is not None]
    margin = 0.06 * (max(ends) - min(ends)) or 0.5
    grid[0, 0].set_ylim(max(ends) + margin, min(ends) - margin)
    for axes, metric in zip(grid.ravel(), metrics, strict=False):
        _dots(axes, models, metric, oracle)
        spearman = agreement.get(f"score:{metric}")
        way = " (lower is better)" if metric not in NEUTRAL and lower_is_better(metric) else ""
        axes.set_title(
            short(TITLES.get(metric, metric).rstrip(" ↑↓")) + ("" if spearman is None else f"\nSpearman per example {spearman:.1f}"), fontsize="small"
        )
        axes.set_xlabel(f"mean{way}", fontsize="small")
        axes.tick_params(labelsize="small")
        axes.grid(color=GREY, alpha=0.25)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean rank by the oracle", fontsize="small")
    if key := _key(rows):
        figure.supxlabel(key, fontsize="x-small", x=0.02, ha="left")


def _dots(axes: Any, models: Rows, metric: str, oracle: str) -> None:
    """One dot an LLM, with the intervals of both its means and its name, or its number where there are many."""
    places = [(row[metric], row[oracle]) for row in models]
    many = len(models) > NAMED
    for row, (x, y) in zip(models, places, strict=True):
        for column, bars in ((metric, axes.hlines), (oracle, axes.vlines)):
            bounds = row.get("intervals", {}).get(column)
            if bounds and None not in bounds:
                bars(*((y, *bounds) if column == metric else (x, *bounds)), color=GREY, linewidth=1.0, alpha=0.35 if many else 0.7, zorder=1)
    axes.scatter(*zip(*places, strict=True), color=BLUE, s=75 if many else 22, zorder=2, linewidth=0.6, edgecolor=BACK)
    if many:
        for number, (x, y) in enumerate(places, 1):
            axes.annotate(str(number), (x, y), ha="center", va="center", color=BACK, fontsize=5.5, zorder=3)
        return
    # Names stand one under the other on the right, each with a line to its dot: dots that lie close cannot hide them.
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(left, right + 0.55 * (right - left))
    dots = sorted(zip(models, places, strict=True), key=lambda dot: (dot[1][1] - bottom) / (top - bottom))
    heights = _apart([(y - bottom) / (top - bottom) for _, (_, y) in dots])
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "linestyle": ":", "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for (row, dot), height in zip(dots, heights, strict=True):
        there = {"xytext": (1, height), "textcoords": "axes fraction", "arrowprops": line}
        axes.annotate(short(row["method"], 18), dot, ha="right", va="center", fontsize=6.5, zorder=3, **there)


def _apart(heights: list[float]) -> list[float]:
    """Heights from 0 to 1 in rising order, moved so that a name at each does not touch the next one."""
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + LINE)
    for place, most in enumerate(reversed(range(len(heights))), 0):
        heights[most] = min(heights[most], 0.98 - place * LINE)
    return heights
