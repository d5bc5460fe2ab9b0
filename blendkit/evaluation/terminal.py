"""The tables as a person reads them."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from blendkit.evaluation.layout import WORDS, Cell, Layout, laid_out
from blendkit.evaluation.tables import answer_of, judge_of
from blendkit.terminal_text import one_line, shown, standing


def print_tables(rows: list[dict[str, Any]], signatures: list[str], intervals: bool = False, to_stdout: bool = False) -> None:
    """Prints all tables on stderr (or stdout), the best of each column and kind in bold, and under them the signatures."""
    # A table cut off at 80 columns is no use in a log, so only a real terminal's width counts.
    stream = sys.stdout if to_stdout else sys.stderr
    console = Console(stderr=not to_stdout, width=None if stream.isatty() else 160, highlight=False)
    judge = judge_of(rows)
    if said := answer_of(rows):
        console.print(Text(standing(one_line(said)), style="bold"), soft_wrap=True)
    for layout in laid_out(rows):
        if judge and layout.above:
            console.print(Text(standing(one_line(layout.above)), style="bold" if judge["at_chance"] else ""), soft_wrap=True)
        console.print(_table(layout, intervals) if layout.groups else Text(layout.title, style="italic"))
        if layout.folded:
            console.print(Text(f"{layout.folded}; the JSON lines have them", style="dim"))
        if layout.note:
            console.print(Text(shown(layout.note), style="dim"))
    for signature in signatures:
        console.print(Text(standing(one_line(shown(signature))), style="dim"), soft_wrap=True)


def name_text(name: object) -> Text:
    """A name from the stream in a table or under it: nothing in it is markup, an emoji's code, or a command to the terminal."""
    return Text(shown(name))


def _table(layout: Layout, intervals: bool) -> Table:
    table = Table(title=layout.title, title_justify="left", header_style="bold")
    for column, heading in zip(layout.columns, layout.headings, strict=True):
        table.add_column(name_text(heading), justify="left" if column in WORDS else "right", overflow="fold" if column == "method" else "ellipsis")
    for kind, rows in layout.groups:
        if kind:
            if table.row_count:
                table.add_section()
            table.add_row(Text(kind, style="bold cyan"))
        for row in rows:
            table.add_row(*(_cell(cell, layout.always, intervals) for cell in row))
    return table


def _cell(cell: Cell, beside: bool, under: bool) -> Text:
    text = name_text(cell.text)
    if cell.best:
        text.stylize("bold")
    if cell.low and beside:
        text.append(f" ({cell.low} to {cell.high})")
    elif cell.low and under:
        text.append(f"\n{cell.low}–{cell.high}", style="dim")
    return text
