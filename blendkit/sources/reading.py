"""Rows of a public data set: from a local file in its published form, or streamed from the hub."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from blendkit.errors import DataError, NoInputError
from blendkit.streams.compression import Damaged, decompressed

Row = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def rows(where: str, split: str = "train") -> Iterator[tuple[str, Row]]:
    """(place, row) of a file (.json: an array or lines; .jsonl, .csv, .parquet; .gz and .zst, too) or of a hub id, OWNER/NAME or OWNER/NAME:CONFIG.

    Raises:
        NoInputError: there is no such file, and the hub cannot be reached or has no such data set.
        DataError: the file is damaged.
    """
    path = Path(where)
    if path.is_file():
        yield from _local(path)
    elif _bare(path.name).endswith(SUFFIXES) or where.count("/") != 1:
        raise NoInputError(f"{where}: no such file; expected a file ({', '.join(SUFFIXES)}, .gz, .zst) or a hub id (OWNER/NAME)")
    else:
        yield from _hub(where, split)


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _local(path: Path) -> Iterator[tuple[str, Row]]:
    kind = _bare(path.name).rpartition(".")[2]
    if kind == "parquet":
        import pyarrow.parquet

        for number, row in enumerate((row for batch in pyarrow.parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist()), 1):
            yield f"{path}: row {number}", row
        return
    try:
        with path.open("rb") as raw, decompressed(raw, path.name) as file:
            yield from ((f"{path}: row {number}", row) for number, row in _csv(file)) if kind == "csv" else _json(path, file)
    except Damaged as error:
        raise DataError(f"{path}: {error}") from error
    except (orjson.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}; expected {'CSV' if kind == 'csv' else 'a JSON array or JSON lines'}, in UTF-8") from error


def _csv(file: Any) -> Iterator[tuple[int, Row]]:
    return enumerate(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")), 1)


def _json(path: Path, file: Any) -> Iterator[tuple[str, Row]]:
    """An array, or a value a line."""
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    if first == b"[":
        for number, row in enumerate(orjson.loads(first + file.read()), 1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(itertools.chain([first + file.readline()], file), 1):
        if line.strip():
            yield f"{path}:{number}", orjson.loads(line)


def _hub(where: str, split: str) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    name, _, config = where.partition(":")
    try:
        for number, row in enumerate(load_dataset(name, config or None, split=split, streaming=True), 1):
            yield f"{where} ({split}): row {number}", row
    except Exception as error:
        kind = type(error).__name__
        raise NoInputError(f"no data set {where!r} (split {split}): {kind}: {' '.join(str(error).split())[:200]}") from error
