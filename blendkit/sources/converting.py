"""Records into the bytes of a form's file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.records import Record, as_line
from blendkit.safe_csv import csv_text
from blendkit.sources import FORMS
from blendkit.sources.forms import Form
from blendkit.sources.reading import Fields


def converted(records: Iterable[Record], target: str | None, label: str, told: Callable[[str], None] = lambda line: None) -> Iterator[bytes]:
    """The file in pieces: JSON lines, one JSON array, or CSV; without a target, records as they are. What was changed on the way is `told`.

    Raises:
        UsageError: there is no such form, or it is only read.
        DataError: a record lacks what the form needs.
    """
    if target is None:
        yield from map(as_line, records)
        return
    form: Form = FORMS.load(target, "--to")
    if form.write is None:
        raise UsageError(f"data convert --to {target}: this form is only read")
    rows = _rows(form.write, records, label)
    if target == "csv":
        yield _csv(list(rows), told)
    elif form.array:
        yield b"["
        for number, row in enumerate(rows):
            yield (b",\n" if number else b"\n") + as_line(row).rstrip(b"\n")
        yield b"\n]\n"
    else:
        yield from map(as_line, rows)


def _rows(write: object, records: Iterable[Record], label: str) -> Iterator[Fields]:
    assert callable(write)
    for number, record in enumerate(records, 1):
        try:
            yield from write(record, label)
        except RecordError as error:
            raise DataError(f"record {number} ({record['id']}): {error}") from error


def _csv(rows: list[Fields], told: Callable[[str], None]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text, marked = csv_text([columns, *([row.get(column) for column in columns] for row in rows)])
    if marked:
        told(f"{marked:,} cells begin as a formula does: each has a ' before it, so that no spreadsheet computes it; `--from csv` leaves it there")
    return text.encode()
