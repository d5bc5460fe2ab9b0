"""A table with a column a model, as CSV: what it holds comes back the same, missing cells and empty ones apart.

A cell that is missing is empty, an empty text is `""`; spreadsheets keep no such difference, and leave both empty.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from blendkit.errors import DataError, RecordError
from blendkit.records import Record, as_line
from blendkit.safe_csv import defused_row, undefused
from blendkit.sources.conversations import conversation, text_of_x
from blendkit.sources.forms import Form, Writing, identity
from blendkit.sources.rows import Fields, SourceRow, Taken
from blendkit.streams.lines import MAX_LINE_BYTES
from blendkit.terminal_text import count_of
from blendkit.untrusted import json_value

FIXED = ("id", "instruction", "input", "output", "messages", "human")
SEPARATORS = ",;\t"
# A model, how it was decoded, and which of several answers it is: `model · beam(4)#2`, as blendkit/names.py calls them.
COLUMN = re.compile(r"(?P<model>.*?)(?: · (?P<decoding>.*?))?(?:#[1-9]\d{0,4})?", re.DOTALL)


def read_csv(row: Taken, number: int) -> Record:
    """A table with a column `instruction` or `messages`, and maybe `id`, `input`, `output` (the reference) and `human`; all others are models' answers."""
    record: Record = {"id": identity(row, number, "id")}
    messages = row.maybe("messages", str)
    if messages is not None:
        record["messages"] = conversation(json_value(messages), row, "messages")
    if messages is None:
        record |= {"instruction": row.need("instruction", str), "input": row.maybe("input", str) or ""}
    for name in ("instruction", "input", "output", "human"):
        value = row.maybe(name, str)
        record |= {} if value is None else {name: value}
    candidates = []
    for column, text in row.left.items():
        if not isinstance(text, str):
            if text is not None:
                raise RecordError(column, "expected a text")
            continue
        candidates.append({**parsed_column(column), "text": text})
    row.left.clear()
    return {**record, "candidates": [{"model": one.pop("model"), "text": one.pop("text"), **one} for one in candidates]}


def parsed_column(column: str) -> Fields:
    """Model and decoding of a column's name."""
    match = COLUMN.fullmatch(column)
    assert match is not None
    return {"model": match["model"], **({"decoding_method": match["decoding"]} if match["decoding"] is not None else {})}


def write_csv(record: Taken, writing: Writing) -> Iterator[Fields]:
    """One line, a column a model.

    Raises:
        RecordError: a model's name would be read as something else.
    """
    row: Fields = {"id": record.fields["id"]}
    if messages := record.fields.get("messages"):
        row["messages"] = as_line(messages).decode().rstrip("\n")
    elif record.fields.get("instruction") is None:
        # The heading has the one or the other of them.
        row["instruction"] = text_of_x(record)
    row |= {name: record.need(name, str) for name in ("instruction", "input", "output", "human") if isinstance(record.left.get(name), str)}
    record.use("candidates", "messages")
    for place, one in enumerate(record.fields.get("candidates") or ()):
        candidate = Taken(one, "candidates[]", record.dropped)
        model, text, decoding = candidate.need("model", str), candidate.need("text", str), candidate.maybe("decoding_method", str)
        method = model if decoding is None else f"{model} · {decoding}"
        column, number = method, 1
        while column in row and column not in FIXED:
            number += 1
            column = f"{method}#{number}"
        read = parsed_column(column)
        if column in FIXED or not column or (read["model"], read.get("decoding_method")) != (model, decoding):
            raise RecordError(f"candidates[{place}].model", f"expected a name that is a column of its own, which {column!r} is not")
        row[column] = text
        candidate.drop_rest()
    # Any other column would be read as a model's answer.
    record.drop_rest()
    yield row


def csv_lines(rows: Iterable[Fields]) -> tuple[str, int]:
    """The rows as CSV, and how many cells were marked as text, so that no spreadsheet computes them."""
    found = list(rows)
    columns = [
        *FIXED[:4],
        *(name for name in FIXED[4:] if any(name in row for row in found)),
        *dict.fromkeys(key for row in found for key in row if key not in FIXED),
    ]
    marked, lines = 0, []
    table: list[list[Any]] = [columns, *([row.get(column) for column in columns] for row in found)]
    for cells in table:
        safe, count = defused_row(cells)
        marked += count
        lines.append(",".join(map(_cell, safe)))
    return "".join(f"{line}\n" for line in lines), marked


def _cell(cell: str | None) -> str:
    if cell is None:
        return ""
    return '"{}"'.format(cell.replace('"', '""')) if not cell or any(one in cell for one in '",\r\n') or cell != cell.strip() else cell


def csv_rows(name: str, file: Any) -> Iterator[SourceRow]:
    """Rows below a heading, as many cells as it has; separated by commas, semicolons or tabs, whichever gives the heading most columns.

    Raises:
        DataError: the heading has a name twice, or the file is no CSV from some line on.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    pulled: list[str] = []
    lines = _lines(name, io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), pulled)
    heading: list[str] = []
    number = 1
    try:
        head = next(lines, "")
        separator = max(SEPARATORS, key=lambda one: len(_written(head, one)))
        pulled.clear()
        reader = csv.reader(chain([head], lines), delimiter=separator, strict=True)
        for cells in reader:
            written = "".join(pulled).rstrip("\r\n") if heading else ""
            number = reader.line_num - max(0, len(pulled) - 1)
            pulled.clear()
            if not cells:
                continue
            if not heading:
                heading = [undefused(cell) for cell in cells]
                if twice := [column for column, count in Counter(heading).items() if count > 1]:
                    raise DataError(f"{name}:{number}: the column {twice[0]!r} is there twice")
            elif len(cells) != len(heading):
                yield SourceRow(f"{name}:{number}", number, RecordError("", f"expected {count_of(len(heading), 'cell')}, as the heading has, got {len(cells)}"))
            else:
                raw = _written(written, separator) if "" in cells else cells
                found = [None if cell == "" and raw[place : place + 1] == [""] else undefused(cell) for place, cell in enumerate(cells)]
                yield SourceRow(f"{name}:{number}", number, dict(zip(heading, found, strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name}:{number + bool(heading)}: {error}; expected CSV, in UTF-8") from error


def _lines(name: str, file: io.TextIOWrapper, pulled: list[str]) -> Iterator[str]:
    """The lines, each also `pulled`, so that it can be seen how a row was written."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MB")
        pulled.append(line)
        yield line


def _written(line: str, separator: str) -> list[str]:
    """The cells of a row as they are written, quotes and all."""
    one = re.escape(separator)
    return [match[1] for match in re.finditer(f'("(?:[^"]|"")*"[^{one}]*|[^{one}]*)(?:{one}|\\Z)', line.rstrip("\r\n")) if match.end() > match.start()] + (
        [""] if line.rstrip("\r\n").endswith(separator) else []
    )


CSV = Form(read_csv, write_csv)
