"""Columns with one number a record: only their last rows are in memory, the others are in a temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from blendkit.errors import temporary_files

Values = NDArray[np.float64]
# ROWS rows are kept in memory and then written together; BLOCK values are computed with at a time.
ROWS, BLOCK = 1024, 4096


class Column(Protocol):
    """A column's values, [records], which are read block by block."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Values: ...


def blocks(size: int) -> Iterator[slice]:
    """Slices that cover `size` values, block by block."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


class ColumnFile:
    """The temporary file behind columns. It has no name, ends with the process, and is made when the first block is written.

    Raises:
        OutputError: the folder of temporary files cannot be written.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def put(self, data: bytes) -> int:
        """Appends the data; returns its place."""
        with temporary_files():
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="blendkit-", buffering=0)  # noqa: SIM115
            view, place = memoryview(data), self._size
            while view:
                done = os.pwrite(self._file.fileno(), view, self._size)
                view, self._size = view[done:], self._size + done
            return place

    def get(self, place: int, size: int) -> bytes:
        """Reads `size` bytes at `place`."""
        assert self._file is not None
        with temporary_files():
            return os.pread(self._file.fileno(), size, place)


class SpilledColumns:
    """Columns that are filled row by row in the order of the stream; a cell that nothing is put into is NaN."""

    def __init__(self, columns: ColumnFile) -> None:
        self._columns = columns
        # The place of each block in the file, and how many columns the block holds, one after the other.
        self._places, self._widths = array("q"), array("q")
        self._end: array[float] = array("d")
        self._next = self._width = 0

    def put(self, number: int, row: array[float]) -> None:
        """Takes the row of record `number`. Numbers only grow; a row may be longer or shorter than those before."""
        if len(row) != self._width:
            row = self._fitting(row)
        if number != self._next:
            self._pass_over(number - self._next)
        self._end.extend(row)
        self._next += 1
        if not self._next % ROWS:
            self._spill()

    def _fitting(self, row: array[float]) -> array[float]:
        if len(row) > self._width:
            rows = self._next % ROWS
            wider = np.full((rows, len(row)), math.nan)
            wider[:, : self._width] = np.array(self._end).reshape(rows, self._width)
            self._end, self._width = array("d", wider.tobytes()), len(row)
        return row + array("d", repeat(math.nan, self._width - len(row)))

    def _pass_over(self, rows: int) -> None:
        while rows:
            some = min(rows, ROWS - self._next % ROWS)
            self._end.extend(repeat(math.nan, some * self._width))
            self._next, rows = self._next + some, rows - some
            if not self._next % ROWS:
                self._spill()

    def _spill(self) -> None:
        self._places.append(self._columns.put(np.array(self._end).reshape(ROWS, self._width).T.tobytes()))
        self._widths.append(self._width)
        self._end = array("d")

    def column(self, place: int, size: int) -> Column:
        """Column `place` of all records up to `size`."""
        return _Whole(self, place, size)

    def block(self, number: int, place: int) -> Values:
        """A column's values in a block, as far as there are some."""
        if number < len(self._places):
            if place >= self._widths[number]:
                return np.full(ROWS, math.nan)
            return np.frombuffer(self._columns.get(self._places[number] + place * ROWS * 8, ROWS * 8))
        if number > len(self._places) or place >= self._width:
            return np.empty(0)
        return np.array(self._end[place :: self._width])


class _Whole:
    def __init__(self, columns: SpilledColumns, place: int, size: int) -> None:
        self._columns, self._place, self._size = columns, place, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Values:
        start, stop, _ = part.indices(self._size)
        values = np.full(stop - start, math.nan)
        for number in range(start // ROWS, -(-stop // ROWS)):
            first = number * ROWS
            found = self._columns.block(number, self._place)[max(start - first, 0) : stop - first]
            place = max(first - start, 0)
            values[place : place + len(found)] = found
        return values


class Computed:
    """A column that is computed from others, block by block."""

    def __init__(self, function: Callable[..., Values], *columns: Column) -> None:
        self._function, self._columns = function, columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, part: slice) -> Values:
        return self._function(*(column[part] for column in self._columns))


def counted(column: Column) -> tuple[int, float]:
    """How many values there are, NaN left out, and their mean (NaN of none)."""
    count, total = 0, 0.0
    for part in blocks(len(column)):
        values = column[part]
        there = values[~np.isnan(values)]
        count, total = count + len(there), total + float(there.sum())
    return count, total / count if count else math.nan
