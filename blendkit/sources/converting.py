"""Rows of one form into the bytes of another form's file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from blendkit.errors import DataError, UsageError
from blendkit.records import Record, as_line
from blendkit.sources import FORMS
from blendkit.sources.csv_table import csv_lines
from blendkit.sources.forms import Faulty, Form, Writing, write_form
from blendkit.sources.reading import ARROW, PARQUET
from blendkit.sources.rows import Fields, Losses, SourceRow
from blendkit.streams.lines import BadLine, Reader
from blendkit.terminal_text import count_of

TABLES = (*PARQUET, *ARROW)


def stream(path: str | None, faulty: Faulty) -> Iterator[tuple[SourceRow, Record]]:
    """The records of a stream of ours, as `read_form` gives those of a form."""
    reader = Reader(path)
    for line in reader.records():
        row = SourceRow(f"{reader.name}:{line.number}", line.number, None)
        if isinstance(line, BadLine):
            row.value = line.raw.decode(errors="replace")
            faulty(row, line.error)
        else:
            row.value = line.record
            yield row, line.record


def converted(
    records: Iterable[tuple[SourceRow, Record]],
    target: str | None,
    writing: Writing,
    losses: Losses,
    faulty: Faulty,
    told: Callable[[str], None] = lambda line: None,
    output: str | None = None,
) -> Iterator[bytes]:
    """The file in pieces: JSON lines, one JSON array, CSV, or what the name of `output` asks for; without a target, records as they are.

    What was changed on the way is `told`.

    Raises:
        UsageError: there is no such form, or it is only read.
        DataError: a record lacks what the form needs, and `faulty` raises.
    """
    target = target or "records"
    form: Form = FORMS.load(target, "--to")
    rows = write_form(target, records, writing, losses, faulty)
    if output and output.endswith(TABLES):
        yield _table(list(rows), output)
    elif target == "csv":
        text, marked = csv_lines(rows)
        yield text.encode()
        if marked:
            begin = count_of(marked, "cell begins", "cells begin")
            told(f"{begin} as a formula does: each has a ' before it, so that no spreadsheet computes it; `--from csv` takes it away")
    elif form.array:
        yield b"["
        for number, row in enumerate(rows):
            yield (b",\n" if number else b"\n") + as_line(row).rstrip(b"\n")
        yield b"\n]\n"
    else:
        yield from map(as_line, rows)


def check_output(target: str | None, output: str | None) -> None:
    """Raises UsageError where the name of the file asks for another kind than the form has."""
    bare = (output or "").removesuffix(".gz").removesuffix(".zst")
    if target == "csv" and bare.endswith(TABLES):
        raise UsageError(f"-o {output}: --to csv writes CSV; --to records writes Parquet and Arrow, by the name of the file")
    if bare != output and bare.endswith(TABLES):
        raise UsageError(f"-o {output}: expected {bare}, which is compressed within")
    if target != "csv" and bare.endswith(".csv"):
        raise UsageError(f"-o {output}: only --to csv writes CSV")


def _table(rows: list[Fields], output: str) -> bytes:
    """The rows as Parquet or as an Arrow file, with the columns of all of them."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[Any]] = {name: [_without_empty(row.get(name)) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(f"{output}: the column {name!r} is of several kinds, and a table has one: {' '.join(str(error).split())[:200]}") from error
    file = io.BytesIO()
    try:
        if output.endswith(PARQUET):
            pyarrow.parquet.write_table(pyarrow.table(arrays), file)
        else:
            with pyarrow.ipc.new_file(file, (table := pyarrow.table(arrays)).schema) as writer:
                writer.write_table(table)
    except pyarrow.ArrowException as error:
        raise DataError(f"{output}: {' '.join(str(error).split())[:200]}") from error
    return file.getvalue()


def _without_empty(value: Any) -> Any:
    """Objects without a field are null: Parquet has no such thing."""
    if isinstance(value, dict):
        return {name: _without_empty(inner) for name, inner in value.items()} or None
    return [_without_empty(inner) for inner in value] if isinstance(value, list) else value


def parsed_map(given: list[str]) -> list[tuple[str, str]]:
    """(new, old) names of `FIELD=COLUMN`.

    Raises:
        UsageError: it is none, or a field is named twice.
    """
    found: list[tuple[str, str]] = []
    for one in given:
        new, mark, old = one.partition("=")
        if not mark or not new or not old:
            raise UsageError(f"--map {one}: expected FIELD=COLUMN")
        if new != "candidates" and new in [name for name, _ in found]:
            raise UsageError(f"--map {one}: {new} is given twice")
        found.append((new, old))
    return found
