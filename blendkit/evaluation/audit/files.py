"""The files that an evaluation of judges reads and writes: families, prices, and forms that people fill in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import msgspec

from blendkit.errors import DataError, OutputError, RecordError, UsageError
from blendkit.evaluation.audit.label_next import forms_as_csv, labels_from_csv
from blendkit.evaluation.audit.labels import PairLabel
from blendkit.records import Record
from blendkit.streams.lines import Writer
from blendkit.terminal_text import count_of
from blendkit.untrusted import json_lines, read_file, table_of_file, typed

Label = dict[str, Any]


class _Priced(msgspec.Struct):
    """$ a million tokens; a file for --models-file has other keys beside them."""

    price_in: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    price_out: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None


def read_prices(path: str) -> dict[str, tuple[float, float]]:
    """Model → $ a million tokens of prompt and of answer; a model without prices is left out.

    Raises:
        NoInputError: there is no such file.
        DataError: it holds something else, or one price without the other.
    """
    found = {}
    for model, priced in table_of_file(path, f"--prices {path}", str, _Priced).items():
        if (priced.price_in is None) != (priced.price_out is None):
            lacking = "price_in" if priced.price_in is None else "price_out"
            raise DataError(f"--prices {path}: {model}.{lacking}: expected a number beside the other price")
        if priced.price_in is not None and priced.price_out is not None:
            found[model] = priced.price_in, priced.price_out
    return found


class Forms:
    """Labels of forms that people filled in, which join the stream's records by id."""

    def __init__(self, path: str, field: str) -> None:
        """Reads what `write_forms` wrote, CSV or JSON lines by its name; forms that are not filled in are passed over.

        Raises:
            NoInputError: there is no such file.
            DataError: it holds something else; with the line.
        """
        self.path, self.field = path, field
        name = f"--forms {path}"
        self._labels = labels_from_csv(name, io.BytesIO(read_file(path, name))) if _is_csv(path) else _of_lines(path, name, field)
        self._met: set[str] = set()

    def joined(self, record: Record) -> Record:
        """The record with its form's labels; on a pair that the form labels, what the record has counts for nothing.

        Raises:
            RecordError: the form labels candidates that there are not.
        """
        labels = self._labels.get(record["id"])
        if labels is None:
            return record
        self._met.add(record["id"])
        size = len(record.get("candidates", ()))
        for label in labels:
            if label["a"] == label["b"] or max(label["a"], label["b"]) >= size:
                raise RecordError(self.field, f"--forms {self.path} has a label of {label['a']} and {label['b']}, expected two of {size}")
        earlier = record.get(self.field)
        if not isinstance(earlier, list):
            # One word is a label of the only pair, which the form has labelled now.
            return {**record, self.field: labels}
        new = {frozenset((label["a"], label["b"])) for label in labels}
        kept = [label for label in earlier if not (isinstance(label, dict) and frozenset((label.get("a"), label.get("b"))) in new)]
        return {**record, self.field: [*kept, *labels]}

    def note(self) -> str | None:
        """A line where forms are of records that were not in the stream, or where nothing is filled in."""
        if not self._labels:
            return f"--forms {self.path}: no form is filled in"
        missing = len(self._labels) - len(self._met)
        return f"--forms {self.path}: {missing:,} of {count_of(len(self._labels), 'labelled record')} are not in the stream" if missing else None


def _of_lines(path: str, name: str, field: str) -> dict[str, list[Label]]:
    def read(value: Any) -> tuple[str, list[Label]]:
        form = typed(value, dict[str, Any])
        identity, labels = typed(form.get("id"), str, "id"), typed(form.get(field), list[PairLabel], field)
        return identity, [dict(label) for label in labels if label["verdict"] is not None]

    found: dict[str, list[Label]] = {}
    for identity, filled in json_lines(path, name, read):
        if filled:
            found.setdefault(identity, []).extend(filled)
    return found


def write_forms(path: str, forms: list[Record], field: str) -> list[str]:
    """Writes the forms as CSV or JSON lines, by the file's name; returns what a person should know of it.

    Raises:
        OutputError: it cannot be written.
    """
    pairs = sum(label["verdict"] is None for form in forms for label in form[field])
    said = [f"{count_of(pairs, 'pair')} to label: {path}; --forms {path} reads it back when it is filled in"]
    if not _is_csv(path):
        writer = Writer(path)
        writer.write(forms)
        writer.close()
        return said
    text, marked = forms_as_csv(forms, field)
    try:
        Path(path).write_text(text, encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise OutputError(f"--label-next {path}: cannot write: {error.strerror}") from error
    if marked:
        said.append(f"{path}: {count_of(marked, 'cell')} would be a formula in a spreadsheet; a ' was put before")
    return said


def check_folder(path: str) -> None:
    """Raises OutputError where the forms' folder is not there, before there is anything to lose; UsageError for standard output, which has the tables."""
    if path == "-":
        raise UsageError("--label-next -: expected a file, as the tables are on standard output")
    if not Path(path).absolute().parent.is_dir():
        raise OutputError(f"--label-next {path}: there is no such folder")


def _is_csv(path: str) -> bool:
    return path.lower().endswith(".csv")
