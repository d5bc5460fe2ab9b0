"""Streams of records: lines in, lines out, compressed by their name, whole lines always."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from blendkit.errors import DataError, NoInputError, OutputError, RecordError
from blendkit.records import Record, as_line, parse
from blendkit.streams.compression import Damaged, compressor, recognized
from blendkit.streams.signals import signals_wait
from blendkit.streams.standard_streams import ReaderGone, need_stdout
from blendkit.streams.unique_ids import UniqueIds
from blendkit.terminal_text import count_of, say

MAX_LINE_BYTES = 32 << 20
# What Windows' tools write before the first line: a byte order mark, which is no part of it.
BOM = codecs.BOM_UTF8
READ_AHEAD = 1 << 20

Shard = tuple[int, int]


@dataclass(slots=True)
class Line:
    """A record with its place in the stream, for messages and rejects.

    `text` is the finished record as it is written, where a worker made the line of it; of `record`, only the id is left then.
    """

    number: int
    raw: bytes
    record: Record
    text: bytes | None = None

    def written(self) -> bytes:
        """The line of the output."""
        return as_line(self.record) if self.text is None else self.text


@dataclass(slots=True)
class BadLine:
    """A line that is no valid record, and why."""

    number: int
    raw: bytes
    error: RecordError


class Reader:
    """The lines of a file or of standard input (`path` None or `-`); blank lines and a byte order mark at the start are passed over.

    `shard` (I, N) keeps only the records of part I of N, 0 to N - 1, by a hash of the id. A line of more than
    `max_line_bytes` is a bad line, of which no more than that is ever in memory, however well it was compressed.

    Raises:
        NoInputError: the file does not exist or cannot be read.
        DataError: the compressed data are cut off or damaged; all lines before that place were returned.
    """

    def __init__(self, path: str | None, shard: Shard | None = None, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.name = path if path and path != "-" else "<stdin>"
        self.shard, self.max_line_bytes = shard, max_line_bytes
        self._raw: BinaryIO
        self._stream: IO[bytes] | None = None
        if self.name == "<stdin>":
            if sys.stdin is None:
                raise NoInputError("standard input is closed: pipe records in, or name a file with -i")
            if sys.stdin.isatty():
                say("reading records from the terminal; Ctrl-D ends them (-i FILE reads a file)")
            self._raw = sys.stdin.buffer
        else:
            try:
                self._raw = Path(self.name).open("rb", buffering=READ_AHEAD)  # noqa: SIM115
            except OSError as error:
                raise NoInputError(f"{self.name}: {error.strerror}") from error

    def total_bytes(self) -> int | None:
        """The size of a regular file, for the progress bar; None for a pipe or a compressed file."""
        if self.name.endswith((".gz", ".zst")):
            return None
        status = os.fstat(self._raw.fileno())
        return status.st_size if status.st_size and os.path.isfile(f"/dev/fd/{self._raw.fileno()}") else None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, bytes without the line end); of an over-long line only its first bytes."""
        number = 0
        while True:
            number += 1
            try:
                if self._stream is None:
                    # Not before the first line is asked for: what writes into a pipe may still be loading its model.
                    self._stream = recognized(self._raw, self.name)
                line = self._stream.readline(self.max_line_bytes + 1 + (len(BOM) if number == 1 else 0))
                if len(line) > self.max_line_bytes and not line.endswith(b"\n"):
                    while (rest := self._stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                        pass
            except Damaged as error:
                raise DataError(f"{self.name}:{number}: {error}") from error
            except OSError as error:
                raise NoInputError(f"{self.name}:{number}: cannot be read: {error.strerror or error}") from error
            if not line:
                return
            if number == 1:
                line = line.removeprefix(BOM)
            if line.strip():
                yield number, line.rstrip(b"\r\n")

    def records(self) -> Iterator[Line | BadLine]:
        """Every line parsed and validated, ids unique over the stream."""
        seen = UniqueIds()
        for number, raw in self.lines():
            try:
                if len(raw) > self.max_line_bytes:
                    raise RecordError("", f"a line of more than {_size(self.max_line_bytes)}; --max-line-bytes raises the limit")
                record = parse(raw, number)
                if self.shard and not _falls_to(self.shard, record["id"]):
                    continue
                if not seen.add(record["id"]):
                    raise RecordError("id", f"expected a new one, got {record['id']!r} again")
                yield Line(number, raw, record)
            except RecordError as error:
                # A line whose id cannot be read belongs to one shard, too, by its number.
                if self.shard is None or number % self.shard[1] == self.shard[0]:
                    yield BadLine(number, raw, error)


def _falls_to(shard: Shard, identity: str) -> bool:
    return int.from_bytes(hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=8).digest()) % shard[1] == shard[0]


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 and not count % (1 << 20) else count_of(count, "byte")


class Writer:
    """Writes records as whole lines to a file or to standard output, a block of them at a time.

    A signal that arrives during a write waits for its end, so that no line is ever torn by Ctrl-C.

    Raises:
        OutputError: the disk is full, the folder is missing…
        ReaderGone: the pipe's other end is closed.
    """

    def __init__(self, path: str | None, append: bool = False) -> None:
        self.name = path if path and path != "-" else "<stdout>"
        self._file: IO[bytes]
        if self.name == "<stdout>":
            self._file = io.FileIO(need_stdout(), "w", closefd=False)
        else:
            with self._errors():
                self._file = io.FileIO(self.name, "a" if append else "w")
        self._compress = compressor(self.name)

    def write(self, records: Iterable[Any]) -> None:
        """Writes the records as one block (one gzip member or zstd frame where the name asks for that)."""
        data = b"".join(map(as_line, records))
        if data:
            self.write_bytes(data)

    def write_bytes(self, data: bytes) -> None:
        """Writes whole lines that are bytes already."""
        view = memoryview(self._compress(data))
        with self._errors(), signals_wait():
            while view:
                view = view[self._file.write(view) :]

    def close(self) -> None:
        """Closes the file; a full disk may say so only now."""
        with self._errors():
            self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            raise ReaderGone from error
        except OSError as error:
            hint = "; free some space, then go on with --resume" if error.errno == errno.ENOSPC else ""
            raise OutputError(f"{self.name}: cannot write: {error.strerror}{hint}") from error
