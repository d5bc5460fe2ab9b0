"""The output of a run and its fingerprint: records are added at its end, and those that were edited take their own place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from blendkit.errors import OutputError
from blendkit.streams.compression import decompressed
from blendkit.streams.fingerprint import ENTRY_BYTES, Fingerprint, MadeBy, Past, entry_of, id_hash, path_of, write_anew
from blendkit.streams.lines import BOM, BadLine, Line, Writer
from blendkit.streams.resume import HELD_BYTES, Remaining, id_of
from blendkit.streams.unique_ids import UniqueIds
from blendkit.terminal_text import count_of


class Output:
    """Writes finished records to a file or to standard output (`path` None or `-`).

    Records that were edited since `remaining`'s output was written are kept in a temporary file; `close` puts them in the place of
    the earlier ones, in a new file that takes the old one's place as a whole, so that no id is ever there twice.

    Raises:
        OutputError: the disk is full, the folder is missing…
        ReaderGone: the pipe's other end is closed.
    """

    def __init__(self, path: str | None, run: MadeBy | None, remaining: Remaining | None = None) -> None:
        """`run` is what the fingerprint says; there is none without it, or without a file."""
        self.remaining, self._run = remaining, run
        self._path = path if path and path != "-" else None
        self._writer = Writer(path, append=remaining is not None)
        earlier = remaining.earlier if remaining else None
        kept = (earlier.entries(), earlier.skipped) if earlier else ()
        self._fingerprint = Fingerprint(self._path, run, *kept)
        self._edited = remaining.edited if remaining else {}
        self._again: IO[bytes] | None = None
        self._replaced = UniqueIds()
        self.done_again = self.taken_out = 0

    def write(self, done: list[Line]) -> None:
        """Adds a block of finished records."""
        new = [line for line in done if line.number not in self._edited]
        self._fingerprint.add(new)
        if data := b"".join(line.written() for line in new):
            self._writer.write_bytes(data)
        if len(new) < len(done):
            self._keep([line for line in done if line.number in self._edited])
        if self.remaining is not None:
            self.remaining.wrote(new)

    def write_bytes(self, data: bytes) -> None:
        """Adds whole lines that are bytes already, and no records."""
        self._writer.write_bytes(data)

    def skip(self, bad: BadLine) -> None:
        """Notes a record that is left out. The earlier result of one that was edited is so, too."""
        identity = self._edited.pop(bad.number, None)
        if identity is not None:
            self._replaced.add(identity)
            self.taken_out += 1
        if identity := identity or id_of(bad.raw):
            self._fingerprint.skip(identity)

    def _keep(self, lines: list[Line]) -> None:
        assert self._path is not None
        try:
            if self._again is None:
                self._again = tempfile.TemporaryFile(dir=Path(os.path.realpath(self._path)).parent)  # noqa: SIM115
            for line in lines:
                self._again.write(entry_of(line).hex().encode() + line.written())
            self._again.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot write beside it: {error.strerror}") from error
        for line in lines:
            self._replaced.add(self._edited.pop(line.number))
        self.done_again += len(lines)

    def close(self) -> None:
        """Closes the files; a full disk may say so only now."""
        self._fingerprint.close()
        self._writer.close()
        if self._path is None or not (self.done_again or self.taken_out):
            return
        place, past = Path(os.path.realpath(self._path)), Past(path_of(self._path))
        with tempfile.SpooledTemporaryFile(HELD_BYTES) as entries:
            with place.open("rb") as raw:
                write_anew(place, place.stat().st_mode, self._merged(decompressed(raw, place.name), past, entries))
            past.close()
            entries.seek(0)
            Fingerprint(self._path, self._run, iter(lambda: entries.read(ENTRY_BYTES), b""), past.skipped).close()

    def _merged(self, lines: IO[bytes], past: Past, entries: IO[bytes]) -> Iterator[bytes]:
        """The line of each record, whose entry goes into `entries`."""
        for entry, line in self._in_order(lines, past):
            entries.write(entry)
            yield line

    def _in_order(self, lines: IO[bytes], past: Past) -> Iterator[tuple[bytes, bytes]]:
        """Entry and line of each record: those that were done again stand in their places, or at the end where the input's order is another."""
        waiting = self._kept()
        again = next(waiting, None)
        for line in lines:
            identity = id_of(line.removeprefix(BOM)) or ""
            entry = past.entry(identity)
            if identity not in self._replaced:
                yield entry, line
            elif again is not None and again[0].startswith(id_hash(identity)):
                yield again
                again = next(waiting, None)
        if again is not None:
            yield again
        yield from waiting

    def _kept(self) -> Iterator[tuple[bytes, bytes]]:
        if self._again is not None:
            self._again.seek(0)
            for row in self._again:
                yield bytes.fromhex(row[: 2 * ENTRY_BYTES].decode()), row[2 * ENTRY_BYTES :]

    def told(self) -> list[str]:
        """What a person should know about a resumed output, one line each."""
        if self.remaining is None:
            return []
        found = self.remaining.told()
        if self.done_again or self.taken_out:
            bad = f", and {count_of(self.taken_out, 'is bad now and was', 'are bad now and were')} taken out" if self.taken_out else ""
            found.append(f"{count_of(self.done_again, 'record was', 'records were')} edited since {self._path} was written and done again in place{bad}")
        return found
