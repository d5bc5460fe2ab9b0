"""`--resume`: which records an output has already, by their ids and their inputs, and the input without them."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import orjson

from blendkit.errors import BlendkitError, DataError, NoInputError, UsageError, temporary_files
from blendkit.streams.compression import Damaged, decompressed
from blendkit.streams.fingerprint import ENTRY_BYTES, SUFFIX, UNKNOWN, MadeBy, Past, entry_of, path_of, write_anew
from blendkit.streams.lines import BOM, BadLine, Line
from blendkit.streams.unique_ids import UniqueIds
from blendkit.terminal_text import count_of, listed
from blendkit.version import VERSION

# So many records of the input are looked at before the first is done, for one that the output has.
AHEAD = 256
# Entries of a fingerprint that are held in memory; more go into a temporary file.
HELD_BYTES = 4 << 20


@dataclass
class Earlier:
    """The records that an output file holds, `count` of them with different ids, and what its fingerprint says.

    `run` is None where it has no fingerprint, `inputs` are pairs of id and entry, `unknown` records have no entry, and `skipped` were left out.
    """

    output: str
    ids: UniqueIds = field(default_factory=UniqueIds)
    count: int = 0
    run: MadeBy | None = None
    inputs: UniqueIds = field(default_factory=UniqueIds)
    unknown: int = 0
    skipped: dict[str, None] = field(default_factory=dict)
    _entries: IO[bytes] = field(default_factory=partial(tempfile.SpooledTemporaryFile, HELD_BYTES))

    def add(self, identity: str, entry: bytes) -> None:
        """A record of the output, the next."""
        self.count += self.ids.add(identity)
        self.inputs.add((identity, entry))
        self.unknown += entry.endswith(UNKNOWN)
        with temporary_files():
            self._entries.write(entry)

    def entries(self) -> Iterator[bytes]:
        """One a record of the output."""
        self._entries.seek(0)
        return iter(partial(self._entries.read, ENTRY_BYTES), b"")

    def has(self, line: Line) -> bool:
        """Whether the output has this record, from this input as far as is known."""
        identity, entry = line.record["id"], entry_of(line)
        return (identity, entry) in self.inputs or (bool(self.unknown) and (identity, entry[: -len(UNKNOWN)] + UNKNOWN) in self.inputs)

    def check(self, run: MadeBy, force: bool) -> list[str]:
        """Lines for a person on what cannot be compared.

        Raises:
            DataError: another run has written the output, and `force` does not say that this one shall go on with it.
        """
        if force:
            self.skipped.clear()
        if not self.count:
            return []
        if self.run is None:
            return [f"{self.output} has no {SUFFIX} of its own beside it, as if an older version wrote it or it was moved: what made it is not compared"]
        if not force and (differences := run.differences(self.run)):
            raise DataError(f"{self.output}: cannot resume: {'; '.join(differences)}; --resume=force goes on all the same")
        told = [f"version {self.run.blendkit} began {self.output}, this is {VERSION}"] if self.run.blendkit != VERSION else []
        return told + ([f"{count_of(self.unknown, 'record')} of {self.output} cannot be compared with their input"] if self.unknown else [])


def recover(output: str) -> Earlier:
    """Reads an earlier output, whose torn end it cuts off; the file stays the same one, with its mode and its names.

    Raises:
        UsageError: it is no regular file.
        DataError: it holds something else than records, or is damaged; it is left as it is.
        NoInputError: it cannot be read.
    """
    earlier = Earlier(output)
    try:
        mode = os.stat(output).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"--resume -o {output}: expected a regular file, which can be read and gone on with")
        past = Past(path_of(output))
        whole, size, torn = _read(earlier, past)
        # A fingerprint that knows none of the records is another file's.
        earlier.run = past.run if earlier.unknown < whole else None
        earlier.skipped = {identity: None for identity in past.skipped if identity not in earlier.ids}
        if torn and output.endswith((".gz", ".zst")):
            _write_anew(output, whole, mode)
        elif torn:
            os.truncate(output, size)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NoInputError(f"{output}: {error.strerror}") from error
    return earlier


def _read(earlier: Earlier, past: Past) -> tuple[int, int, bool]:
    """The number of whole lines, their bytes, and whether something torn is behind them."""
    number, size, torn = 0, 0, False
    with Path(earlier.output).open("rb") as raw:
        stream = decompressed(raw, earlier.output)
        while True:
            try:
                line = stream.readline()
            except Damaged as error:
                if not error.cut:
                    raise DataError(f"{earlier.output}:{number + 1}: cannot resume: {error}; the file is left as it is") from error
                line, torn = b"", True
            bytes_read = len(line)
            if not number:
                line = line.removeprefix(BOM)
            if not line.endswith(b"\n"):
                if line and not number and not line.startswith(b"{"):
                    raise _no_record(earlier.output, 1)
                past.close()
                return number, size, torn or bool(line)
            number += 1
            size += bytes_read
            if (identity := id_of(line)) is None:
                raise _no_record(earlier.output, number)
            earlier.add(identity, past.entry(identity))


def id_of(line: bytes) -> str | None:
    """The id in a line; None where there is none, or the line is no record."""
    with suppress(orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        found = orjson.loads(line)["id"]
        return found if isinstance(found, str) else None
    return None


def _no_record(output: str, number: int) -> DataError:
    return DataError(f"{output}:{number}: cannot resume: expected a record with an id, as an earlier run writes them; the file is left as it is")


def _write_anew(output: str, count: int, mode: int) -> None:
    """The first `count` lines in the place of all."""
    place = Path(os.path.realpath(output))
    with place.open("rb") as raw:
        write_anew(place, mode, islice(decompressed(raw, place.name), count))


class Remaining:
    """The lines of an input that an output does not have yet, in order; bad ones are tried again, and so are `edited` ones, ids by line number.

    `wrote` is told which lines were added, and `told` says at the end where the output is not what one run would have written.
    """

    def __init__(self, earlier: Earlier, source: str) -> None:
        self.earlier, self._source = earlier, source
        self.edited: dict[int, str] = {}
        self._found, self._last_found, self._ended = 0, 0, False
        # Written records behind which something was found that the output had; those behind which nothing was yet, when the last was `_settled_at`.
        self._late, self._waiting, self._settled_at = 0, 0, 0

    def lines(self, lines: Iterable[Line | BadLine]) -> Iterator[Line | BadLine]:
        """Raises DataError when the input ends soon and holds no record that the output has: it is another one's."""
        looking = self.earlier.count > 0
        head: list[Line | BadLine] = []
        try:
            for line in lines:
                identity = line.record["id"] if isinstance(line, Line) else id_of(line.raw)
                self.earlier.skipped.pop(identity or "", None)
                known = isinstance(line, Line) and line.record["id"] in self.earlier.ids
                if known:
                    self._found, self._last_found = self._found + 1, line.number
                if not (known and isinstance(line, Line) and self.earlier.has(line)):
                    if known:
                        self.edited[line.number] = identity or ""
                    if looking:
                        head.append(line)
                    else:
                        yield line
                if looking and (known or len(head) == AHEAD):
                    looking = False
                    yield from head
                    head = []
        except BlendkitError:
            yield from head
            raise
        if looking:
            raise DataError(f"{self._source}: cannot resume: none of the {count_of(self.earlier.count, 'record')} in {self.earlier.output} is in this input")
        self._ended = True

    def wrote(self, lines: Iterable[Line]) -> None:
        """They are in the output now. What is found from now on stands behind them in the input."""
        last_found = self._last_found
        if last_found != self._settled_at:
            self._late, self._waiting, self._settled_at = self._late + self._waiting, 0, last_found
        for line in lines:
            if line.number < last_found:
                self._late += 1
            else:
                self._waiting += 1

    def told(self) -> list[str]:
        """What a person should know, one line each."""
        self.wrote(())
        said = []
        if self._late:
            said.append(
                f"the output's order is not the input's: {count_of(self._late, 'record that stands', 'records that stand')} before others which "
                f"{self.earlier.output} had already {'was' if self._late == 1 else 'were'} added at its end"
            )
        if self._ended and (gone := self.earlier.count - self._found):
            are, stay = ("is", "it stays") if gone == 1 else ("are", "they stay")
            said.append(f"{count_of(gone, 'record')} of {self.earlier.output} {are} not in {self._source}; {stay} in it")
        return said

    def still_skipped(self) -> str | None:
        """Which records an earlier run skipped and this one did not find, if any."""
        if not self._ended or not (skipped := self.earlier.skipped):
            return None
        which = f"{count_of(len(skipped), 'record')} that an earlier run skipped as bad ({listed(skipped, 4)})"
        are, them = ("is", "it") if len(skipped) == 1 else ("are", "them")
        return f"neither in {self._source} nor in {self.earlier.output} {are} {which}; --resume=force forgets {them}"
