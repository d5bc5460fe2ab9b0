"""The tables as Markdown, LaTeX, CSV or JSON, for papers, pull requests and spreadsheets."""

from __future__ import annotations

import re
from typing import Any

import orjson

from blendkit.evaluation.tables import LINES, Row, answer_of, by_table, judge_of, key_heading, line_above, title_of
from blendkit.safe_csv import csv_text
from blendkit.terminal_text import shown

HIDDEN = ("table", "intervals")
FORMATS = ("table", "markdown", "latex", "csv", "json")
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
}
# What Markdown makes markup of: code, emphasis, links, images, HTML, entities, and the cells' own bars; addresses become links by themselves.
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.", re.IGNORECASE)


def rendered(rows: list[dict[str, Any]], form: str, signatures: list[str], intervals: bool) -> str:
    """All tables in one of FORMATS but `table`; figures with their intervals where asked for."""
    if form == "json":
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows).decode()
    tables, judge = by_table(rows), judge_of(rows)
    if form == "csv":
        return "\n".join(_csv(part, judge) for part in tables.values())
    make = _markdown if form == "markdown" else _latex
    said = answer_of(rows)
    parts = [] if not said else [f"**{markdown_text(said)}**\n" if form == "markdown" else f"% {shown(said)}\n"]
    for name, part in tables.items():
        if name not in LINES:
            columns, cells = _cells(part, intervals)
            headings = [key_heading(column, judge) for column in columns] if name == 2 else columns
            parts.append(make(title_of(name, judge), line_above(name, part, judge), headings, cells))
    return "\n".join([*parts, _footer(form, signatures)])


def _cells(rows: list[dict[str, Any]], intervals: bool) -> tuple[list[str], list[list[str]]]:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in HIDDEN]
    cells = []
    for row in rows:
        line = []
        for column in columns:
            text = text_of(row.get(column))
            if intervals and column in row.get("intervals", {}):
                low, high = row["intervals"][column]
                text += f" ({text_of(low)} to {text_of(high)})"
            line.append(text)
        cells.append(line)
    return columns, cells


def text_of(value: Any) -> str:
    """A figure or a name, as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)


def _markdown(title: str, above: str, columns: list[str], cells: list[list[str]]) -> str:
    def line(values: list[str]) -> str:
        return "| " + " | ".join(map(markdown_text, values)) + " |\n"

    return (
        f"### {title}\n\n"
        + (f"{markdown_text(above)}\n\n" if above else "")
        + line(columns)
        + "| "
        + " | ".join(["---"] * len(columns))
        + " |\n"
        + "".join(line(row) for row in cells)
    )


def markdown_text(text: str) -> str:
    """A name from the stream as Markdown's plain text: no bar, link, image, code, HTML or line break of its own."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", shown(text)).replace("<", "&lt;")


def _latex(title: str, above: str, columns: list[str], cells: list[list[str]]) -> str:
    def line(values: list[str]) -> str:
        return " & ".join("".join(_LATEX.get(character, character) for character in shown(value)) for value in values) + r" \\" + "\n"

    body = line(columns) + "\\midrule\n" + "".join(line(row) for row in cells)
    head = f"% {title}\n" + (f"% {shown(above)}\n" if above else "")
    return f"{head}\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n\\toprule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def _csv(rows: list[dict[str, Any]], judge: Row | None) -> str:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column != "intervals"]
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
