"""The tables as Markdown, LaTeX, CSV or JSON, for papers, pull requests and spreadsheets."""

from __future__ import annotations

import re
from typing import Any

import orjson

from blendkit.evaluation.checks import all_figures
from blendkit.evaluation.columns import NO_CELLS
from blendkit.evaluation.layout import WORDS, Cell, Layout, laid_out
from blendkit.evaluation.tables import Row, answer_of, by_table, judge_of, key_heading
from blendkit.safe_csv import csv_text
from blendkit.terminal_text import shown

JUNIT = "junit"
FORMATS = ("table", "markdown", "latex", "csv", "json", JUNIT)
# What --list-columns asks for.
COLUMNS = "columns"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # Behind the end of a row these would be its arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    # Signs that not every font of LaTeX has.
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
    "–": "--",
}
# What Markdown makes markup of: code, emphasis, links, images, HTML, entities, and the cells' own bars; addresses become links by themselves.
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.", re.IGNORECASE)


def rendered(rows: list[dict[str, Any]], form: str, signatures: list[str], intervals: bool) -> str:
    """All tables in one of FORMATS but `table` and JUNIT, or the names of COLUMNS; the figures of Table 2 with their intervals where asked for."""
    if form == "json":
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows).decode()
    if form == "csv":
        judge = judge_of(rows)
        return "\n".join(_csv(part, judge) for part in by_table(rows).values())
    if form == COLUMNS:
        return all_figures(rows)
    said = answer_of(rows)
    layouts = laid_out(rows, figures=True)
    if form == "markdown":
        parts = [f"**{markdown_text(said)}**\n"] if said else []
        return "\n".join([*parts, *(_markdown(layout, intervals) for layout in layouts), _footer(form, signatures)])
    parts = [f"% {shown(said)}\n"] if said else []
    return "\n".join([*parts, *(_latex(layout, intervals) for layout in layouts), _footer(form, signatures)])


def _interval(cell: Cell, layout: Layout, intervals: bool) -> str:
    return f" ({cell.low} to {cell.high})" if cell.low and (intervals or layout.always) else ""


def _markdown(layout: Layout, intervals: bool) -> str:
    parts = [f"### {layout.title}\n", f"{markdown_text(layout.above)}\n" if layout.above else "", _markdown_table(layout, intervals)]
    if layout.rest is not None:
        parts.append(f"<details><summary>{layout.folded}</summary>\n\n{_markdown_table(layout.rest, intervals)}\n</details>\n")
    return "\n".join(filter(None, [*parts, f"{markdown_text(layout.note)}\n" if layout.note else ""]))


def _markdown_table(layout: Layout, intervals: bool) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(values) + " |\n"

    def written(cell: Cell) -> str:
        text = markdown_text(cell.text)
        return (f"**{text}**" if cell.best else text) + _interval(cell, layout, intervals)

    if not layout.groups:
        return ""
    body = [line([markdown_text(heading) for heading in layout.headings]), line(["---" if column in WORDS else "---:" for column in layout.columns])]
    for kind, rows in layout.groups:
        body += [line([f"*{kind}*", *[""] * (len(layout.columns) - 1)])] if kind else []
        body += [line([written(cell) for cell in row]) for row in rows]
    return "".join(body)


def markdown_text(text: str) -> str:
    """A name from the stream as Markdown's plain text: no bar, link, image, code, HTML or line break of its own."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", shown(text)).replace("<", "&lt;")


def _latex(layout: Layout, intervals: bool) -> str:
    def line(values: list[str]) -> str:
        return " & ".join(values) + " \\\\\n"

    def written(cell: Cell) -> str:
        text = latex_text(cell.text)
        return (rf"\textbf{{{text}}}" if cell.best else text) + _interval(cell, layout, intervals)

    above = "".join(f"% {shown(text)}\n" for text in (layout.title, layout.above, layout.note, layout.folded) if text)
    if not layout.groups:
        return above
    body = line([latex_text(heading) for heading in layout.headings])
    for kind, rows in layout.groups:
        body += "\\midrule\n" + (rf"\multicolumn{{{len(layout.columns)}}}{{l}}{{\textit{{{kind}}}}} \\" + "\n" if kind else "")
        body += "".join(line([written(cell) for cell in row]) for row in rows)
    columns = "".join("l" if column in WORDS else "r" for column in layout.columns)
    return f"{above}\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def latex_text(text: str) -> str:
    """A name from the stream as LaTeX's plain text."""
    return "".join(_LATEX.get(character, character) for character in shown(text))


def _csv(rows: list[dict[str, Any]], judge: Row | None) -> str:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in NO_CELLS]
    bounds = [column for column in columns if any(column in row.get("intervals", {}) for row in rows)]
    headings = [key_heading(column, judge) for column in columns] if rows[0]["table"] == 2 else columns
    table: list[list[Any]] = [[*headings, *(f"{column}_{side}" for column in bounds for side in ("low", "high"))]]
    for row in rows:
        intervals = row.get("intervals", {})
        table.append([*(row.get(column) for column in columns), *(value for column in bounds for value in intervals.get(column, (None, None)))])
    return csv_text([shown(cell) if isinstance(cell, str) else cell for cell in row] for row in table)[0]


def _footer(form: str, signatures: list[str]) -> str:
    if form == "markdown":
        return "".join(f"`{shown(signature.replace('`', ''))}`\\\n" for signature in signatures).removesuffix("\\\n") + "\n"
    return "".join(f"% {shown(signature)}\n" for signature in signatures)
