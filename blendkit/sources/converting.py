"""Records into the bytes of a form's file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.records import Record
from blendkit.sources.forms import form_of
from blendkit.sources.reading import Row
from blendkit.streams.lines import as_line


def converted(records: Iterable[Record], target: str | None, label: str) -> Iterator[bytes]:
    """The file in pieces: JSON lines, one JSON array, or CSV; without a target, records as they are.

    Raises:
        UsageError: there is no such form, or it is only read.
        DataError: a record lacks what the form needs.
    """
    if target is None:
        yield from map(as_line, records)
        return
    form = form_of(target)
    if form.write is None:
        raise UsageError(f"data convert --to {target}: this form is only read")
    rows = _rows(form.write, records, label)
    if target == "csv":
        yield _csv(list(rows))
    elif form.array:
        yield b"["
        for number, row in enumerate(rows):
            yield (b",\n" if number else b"\n") + as_line(row).rstrip(b"\n")
        yield b"\n]\n"
    else:
        yield from map(as_line, rows)


def _rows(write: object, records: Iterable[Record], label: str) -> Iterator[Row]:
    assert callable(write)
    for number, record in enumerate(records, 1):
        try:
            yield from write(record, label)
        except RecordError as error:
            raise DataError(f"record {number} ({record['id']}): {error}") from error


def _csv(rows: list[Row]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()
