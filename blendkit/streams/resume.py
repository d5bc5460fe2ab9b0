"""`--resume`: which records an output has already, by their ids, and the input without them."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import orjson

from blendkit.errors import BlendkitError, DataError, NoInputError, OutputError, UsageError
from blendkit.streams.compression import Damaged, decompressed
from blendkit.streams.lines import BOM, BadLine, Line, Writer
from blendkit.streams.unique_ids import UniqueIds
from blendkit.terminal_text import count_of

# So many records of the input are looked at before the first is done, for one that the output has.
AHEAD = 256


@dataclass
class Earlier:
    """The records that an output file holds; `count` of them with different ids."""

    output: str
    ids: UniqueIds = field(default_factory=UniqueIds)
    count: int = 0


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
        whole, size, torn = _read(earlier)
        if torn and output.endswith((".gz", ".zst")):
            _write_anew(output, whole, mode)
        elif torn:
            os.truncate(output, size)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NoInputError(f"{output}: {error.strerror}") from error
    return earlier


def _read(earlier: Earlier) -> tuple[int, int, bool]:
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
                return number, size, torn or bool(line)
            number += 1
            size += bytes_read
            earlier.count += earlier.ids.add(_id_of(line, earlier.output, number))


def _id_of(line: bytes, output: str, number: int) -> str:
    try:
        found = orjson.loads(line)["id"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        found = None
    if not isinstance(found, str):
        raise _no_record(output, number)
    return found


def _no_record(output: str, number: int) -> DataError:
    return DataError(f"{output}:{number}: cannot resume: expected a record with an id, as an earlier run writes them; the file is left as it is")


def _write_anew(output: str, count: int, mode: int) -> None:
    """The first `count` lines in the place of all: beside the file under a name that nobody has, so that a crash loses nothing."""
    place = Path(os.path.realpath(output))
    try:
        number, beside = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=place.suffix)
    except OSError as error:
        raise OutputError(f"{output}: cannot write beside it: {error.strerror}") from error
    try:
        os.fchmod(number, stat.S_IMODE(mode))
        os.close(number)
        writer = Writer(beside)
        with place.open("rb") as raw:
            lines = islice(decompressed(raw, place.name), count)
            while block := list(islice(lines, 256)):
                writer.write_bytes(b"".join(block))
        writer.close()
        os.replace(beside, place)
    except BaseException:
        os.unlink(beside)
        raise


class Remaining:
    """The lines of an input that an output does not have yet, in order; bad ones are tried again.

    `wrote` is told which lines were done, and `told` says at the end where the output is not what one run would have written.
    """

    def __init__(self, earlier: Earlier, source: str) -> None:
        self._earlier, self._source = earlier, source
        self._found, self._last_found, self._ended = 0, 0, False
        # Written records behind which something was found that the output had; those behind which nothing was yet, when the last was `_settled_at`.
        self._late, self._waiting, self._settled_at = 0, 0, 0

    def lines(self, lines: Iterable[Line | BadLine]) -> Iterator[Line | BadLine]:
        """Raises DataError when the input ends soon and holds no record that the output has: it is another one's."""
        looking = self._earlier.count > 0
        head: list[Line | BadLine] = []
        try:
            for line in lines:
                known = isinstance(line, Line) and line.record["id"] in self._earlier.ids
                if known:
                    self._found += 1
                    self._last_found = line.number
                elif looking:
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
            raise DataError(f"{self._source}: cannot resume: none of the {count_of(self._earlier.count, 'record')} in {self._earlier.output} is in this input")
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
                f"{self._earlier.output} had already {'was' if self._late == 1 else 'were'} added at its end"
            )
        if self._ended and (gone := self._earlier.count - self._found):
            are, stay = ("is", "it stays") if gone == 1 else ("are", "they stay")
            said.append(f"{count_of(gone, 'record')} of {self._earlier.output} {are} not in {self._source}; {stay} in it")
        return said
