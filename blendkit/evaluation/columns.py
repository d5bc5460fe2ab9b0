"""Columns of numbers, one a record of the stream, of which only the ends are in memory: the rest is in a temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from blendkit.errors import OutputError

Values = NDArray[np.float64]
# Values of a column that are in memory, and that go to the file together.
BLOCK = 4096


class Column(Protocol):
    """A column's values, [records]; what is looked at is a block of them at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Values: ...


def blocks(size: int) -> Iterator[slice]:
    """The blocks that so many values are in."""
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


class Columns:
    """The file of some columns: without a name, gone with the process, and not there at all before a column has more than a block.

    Raises:
        OutputError: the folder of temporary files cannot be written.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def put(self, data: bytes) -> int:
        """Where it is from now on."""
        with _errors():
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="blendkit-", buffering=0)  # noqa: SIM115
            view, place = memoryview(data), self._size
            while view:
                done = os.pwrite(self._file.fileno(), view, self._size)
                view, self._size = view[done:], self._size + done
            return place

    def get(self, place: int, size: int) -> bytes:
        """What is there."""
        assert self._file is not None
        with _errors():
            return os.pread(self._file.fileno(), size, place)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"temporary files in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with room") from error


class Growing:
    """A column that is filled in the order of the stream, NaN where nothing is put in. Small numbers may be kept in 4 bytes (`kind` f)."""

    def __init__(self, columns: Columns, kind: str = "d") -> None:
        self._columns, self._kind = columns, kind
        self._places = array("q")
        self._end: array[float] = array(kind)

    def put(self, number: int, value: float) -> None:
        """The value of record `number`, which is later than those before."""
        end = self._end
        missing = number - len(self._places) * BLOCK - len(end)
        while missing:
            some = min(missing, BLOCK - len(end))
            end.extend(repeat(math.nan, some))
            missing -= some
            end = self._spilled()
        end.append(value)
        self._spilled()

    def _spilled(self) -> array[float]:
        if len(self._end) == BLOCK:
            self._places.append(self._columns.put(self._end.tobytes()))
            self._end = array(self._kind)
        return self._end

    def to(self, size: int) -> Column:
        """The column up to record `size`."""
        return _Whole(self, size)

    def block(self, number: int) -> Values:
        """The values of a block that are there."""
        if number < len(self._places):
            return np.frombuffer(self._columns.get(self._places[number], BLOCK * self._end.itemsize), self._kind).astype(np.float64)
        return np.array(self._end if number == len(self._places) else (), np.float64)


class _Whole:
    def __init__(self, column: Growing, size: int) -> None:
        self._column, self._size = column, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Values:
        start, stop, _ = part.indices(self._size)
        values = np.full(stop - start, np.nan)
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first = number * BLOCK
            found = self._column.block(number)[max(start - first, 0) : stop - first]
            place = max(first - start, 0)
            values[place : place + len(found)] = found
        return values


class Computed:
    """A column computed from others, a block at a time."""

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
