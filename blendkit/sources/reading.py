"""Rows of a data set: of a file in its published form, of standard input, or streamed from the hub."""

from __future__ import annotations

import io
import itertools
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blendkit.errors import DataError, NoInputError, RecordError, UsageError
from blendkit.sources.csv_table import csv_rows
from blendkit.sources.rows import Fields, SourceRow
from blendkit.streams.compression import Damaged, decompressed, recognized
from blendkit.streams.lines import BOM
from blendkit.untrusted import json_value

CSV, PARQUET, ARROW = (".csv", ".tsv"), (".parquet",), (".arrow", ".feather")
SUFFIXES = (".json", ".jsonl", *CSV, *PARQUET, *ARROW)
HUB = "hf:"


def rows(where: str, split: str = "train", table: bool = False) -> Iterator[SourceRow]:
    """The rows of a file, of `-` (standard input), or of a data set of the hub.

    A file is JSON lines or an array, .csv, .tsv, .parquet, .arrow, with .gz and .zst; `table` says that one of another name is CSV.
    A data set is OWNER/NAME, OWNER/NAME:CONFIG, or hf:OWNER/NAME[:SPLIT], also of a folder.

    Raises:
        NoInputError: there is no such file, and the hub cannot be reached or has no such data set.
        DataError: the file is damaged.
    """
    path = Path(where)
    if where == "-":
        yield from _stdin(table)
    elif where.startswith(HUB):
        name, _, given = where.removeprefix(HUB).partition(":")
        yield from _hub(where, name, None, given or split)
    elif os.path.isfile(path):
        yield from _local(path, table)
    elif os.path.isdir(path):
        raise NoInputError(f"{where}: a folder; name its files, or hf:{where} for all of them")
    elif _bare(path.name).endswith(SUFFIXES) or where.count("/") != 1:
        raise NoInputError(f"{where}: no such file; expected a file ({', '.join(SUFFIXES)}, .gz, .zst) or a data set of the hub (hf:OWNER/NAME)")
    else:
        name, _, config = where.partition(":")
        yield from _hub(f"{where} ({split})", name, config or None, split)


def mapped(given: Iterator[SourceRow], columns: list[tuple[str, str]]) -> Iterator[SourceRow]:
    """The rows with columns called by other names, pairs of (new, old); several that are called `candidates` are one object of them by their old names.

    Raises:
        UsageError: the first row has no such column, or a row has another column of the new name.
    """
    known = False
    for row in given:
        if isinstance(row.value, dict):
            if not known:
                _check_columns(row, columns)
                known = True
            for new, old in columns:
                if row.value.get(new) is not None and new not in [name for _, name in columns]:
                    raise UsageError(f"--map {new}={old}: {row.place} has a column {new!r} already; --map OTHER={new} gives it another name")
            row.value = _renamed(row.value, columns)
        yield row


def _check_columns(row: SourceRow, columns: list[tuple[str, str]]) -> None:
    for new, old in columns:
        if old not in row.value:
            raise UsageError(f"--map {new}={old}: {row.place} has no column {old!r}; it has {', '.join(map(repr, row.value))}")


def _renamed(value: Fields, columns: list[tuple[str, str]]) -> Fields:
    found = {name: inner for name, inner in value.items() if name not in [old for _, old in columns]}
    texts = [old for new, old in columns if new == "candidates"]
    for new, old in columns:
        inner = value.get(old)
        if new != "candidates":
            found[new] = inner
        elif len(texts) > 1 or isinstance(inner, str):
            # A missing answer of one model is no candidate.
            found.setdefault("candidates", {}).update({} if inner is None else {old: inner})
        else:
            found["candidates"] = inner
    return found


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _local(path: Path, table: bool) -> Iterator[SourceRow]:
    name = _bare(path.name)
    with _readable(str(path)), path.open("rb") as raw, decompressed(raw, path.name) as file:
        if name.endswith((*PARQUET, *ARROW)):
            # Only what was not compressed as a whole can be read piece by piece.
            yield from _arrow(str(path), file if name == path.name else io.BytesIO(file.read()), name.endswith(PARQUET))
        elif name.endswith(CSV) or (table and not name.endswith(SUFFIXES)):
            yield from csv_rows(str(path), file)
        else:
            yield from _json(str(path), file)


def _stdin(table: bool) -> Iterator[SourceRow]:
    if sys.stdin is None:
        raise NoInputError("standard input is closed: pipe rows in, or name a file")
    with _readable("<stdin>"):
        file = recognized(sys.stdin.buffer, "<stdin>")
        yield from csv_rows("<stdin>", file) if table else _json("<stdin>", file)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise DataError(f"{name}: {error}") from error
    except OSError as error:
        raise NoInputError(f"{name}: {error.strerror or error}") from error


def _arrow(name: str, file: Any, parquet: bool) -> Iterator[SourceRow]:
    """Rows of Parquet, or of Arrow's files and streams."""
    import pyarrow
    import pyarrow.parquet

    try:
        if parquet:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        else:
            try:
                opened = pyarrow.ipc.open_file(file)
                batches = (opened.get_batch(place) for place in range(opened.num_record_batches))
            except pyarrow.ArrowInvalid:
                file.seek(0)
                batches = pyarrow.ipc.open_stream(file)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield SourceRow(f"{name}: row {number}", number, _plain(row))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise DataError(f"{name}: {' '.join(str(error).split())}; expected {'Parquet' if parquet else 'Arrow'}") from error


def _plain(value: Any) -> Any:
    """A value as JSON has it: times as texts, and null for not a number, which is how tables say that a value is missing."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.isoformat() if hasattr(value, "isoformat") else value


def _json(name: str, file: Any) -> Iterator[SourceRow]:
    """An array, or a value a line."""
    first = file.read(1)
    if first == BOM[:1] and (first := first + file.read(2)) == BOM:
        first = file.read(1)
    before = 0
    while first.isspace():
        before += first == b"\n"
        first = file.read(1)
    if first == b"[":
        for number, value in enumerate(_array(name, first + file.read()), 1):
            yield SourceRow(f"{name}: row {number}", number, value)
        return
    for number, line in enumerate(itertools.chain([first + file.readline()], file), before + 1):
        if line.strip():
            try:
                value = json_value(line)
            except RecordError as error:
                value = RecordError("", f"{error}; expected a JSON array or JSON lines, in UTF-8")
            yield SourceRow(f"{name}:{number}", number, value)


def _array(name: str, data: bytes) -> Any:
    try:
        return json_value(data)
    except RecordError as error:
        raise DataError(f"{name}: {error}; expected a JSON array or JSON lines, in UTF-8") from error


def _hub(place: str, name: str, config: str | None, split: str) -> Iterator[SourceRow]:
    from datasets import load_dataset

    try:
        for number, row in enumerate(load_dataset(name, config, split=split, streaming=True), 1):
            yield SourceRow(f"{place}: row {number}", number, _plain(dict(row)))
    except Exception as error:
        kind = type(error).__name__
        raise NoInputError(f"no data set {name!r} (split {split}): {kind}: {' '.join(str(error).split())[:200]}") from error
