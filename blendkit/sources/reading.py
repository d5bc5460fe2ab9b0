"""Rows of a public data set: from a local file in its published form, or streamed from the hub."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from blendkit.errors import DataError, NoInputError, RecordError
from blendkit.streams.compression import Damaged, decompressed
from blendkit.streams.lines import MAX_LINE_BYTES
from blendkit.untrusted import json_value

Fields = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def rows(where: str, split: str = "train") -> Iterator[tuple[str, Fields]]:
    """(place, row) of a file (.json: an array or lines; .jsonl, .csv, .parquet; .gz and .zst, too) or of a hub id, OWNER/NAME or OWNER/NAME:CONFIG.

    Raises:
        NoInputError: there is no such file, and the hub cannot be reached or has no such data set.
        DataError: the file is damaged.
    """
    path = Path(where)
    if os.path.isfile(path):
        yield from _local(path)
    elif _bare(path.name).endswith(SUFFIXES) or where.count("/") != 1:
        raise NoInputError(f"{where}: no such file; expected a file ({', '.join(SUFFIXES)}, .gz, .zst) or a hub id (OWNER/NAME)")
    else:
        yield from _hub(where, split)


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _local(path: Path) -> Iterator[tuple[str, Fields]]:
    kind = _bare(path.name).rpartition(".")[2]
    if kind == "parquet":
        yield from _parquet(path)
        return
    try:
        with path.open("rb") as raw, decompressed(raw, path.name) as file:
            yield from _csv(path, file) if kind == "csv" else _json(path, file)
    except Damaged as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise NoInputError(f"{path}: {error.strerror}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Fields]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path}: row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}; expected Parquet") from error
    except OSError as error:
        raise NoInputError(f"{path}: {error.strerror or error}") from error


def _csv(path: Path, file: Any) -> Iterator[tuple[str, Fields]]:
    """Rows below a heading, of as many cells as the heading has or fewer."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        heading = next(reader, [])
        if twice := [name for name, count in Counter(heading).items() if count > 1]:
            raise DataError(f"{path}:{reader.line_num}: the column {twice[0]!r} is there twice")
        for cells in reader:
            if len(cells) > len(heading):
                raise DataError(f"{path}:{reader.line_num}: {len(cells)} cells, but {len(heading)} in the heading")
            if cells:
                yield f"{path}:{reader.line_num}", dict(zip_longest(heading, cells))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}:{reader.line_num + 1}: {error}; expected CSV, in UTF-8") from error


def _json(path: Path, file: Any) -> Iterator[tuple[str, Fields]]:
    """An array, or a value a line."""
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    if first == b"[":
        for number, row in enumerate(_value(str(path), first + file.read()), 1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(itertools.chain([first + file.readline()], file), 1):
        if line.strip():
            yield f"{path}:{number}", _value(f"{path}:{number}", line)


def _value(place: str, data: bytes) -> Any:
    try:
        return json_value(data)
    except RecordError as error:
        raise DataError(f"{place}: {error}; expected a JSON array or JSON lines, in UTF-8") from error


def _hub(where: str, split: str) -> Iterator[tuple[str, Fields]]:
    from datasets import load_dataset

    name, _, config = where.partition(":")
    try:
        for number, row in enumerate(load_dataset(name, config or None, split=split, streaming=True), 1):
            yield f"{where} ({split}): row {number}", row
    except Exception as error:
        kind = type(error).__name__
        raise NoInputError(f"no data set {where!r} (split {split}): {kind}: {' '.join(str(error).split())[:200]}") from error
