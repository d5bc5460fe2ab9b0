"""An output's fingerprint: what made it and from which records, in a file beside it, so that `--resume` mixes no two runs.

`out.jsonl.run.ndjson` are JSON lines. The first is the run: command, version, flags, models. The others are added as the run
goes on, each before the records that it speaks of are written: `{"inputs": "…"}`, 24 hex digits a record (8 of a hash of its
id, 16 of one of its input line), and `{"skipped": ID}`. A file that was cut off or outlived records of its output thus says
too much at most, and is read beside the output, whose ids say what it holds.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec
import orjson

from blendkit.errors import OutputError
from blendkit.records import as_line
from blendkit.streams.lines import Line, Writer
from blendkit.terminal_text import shown
from blendkit.version import VERSION

SUFFIX = ".run.ndjson"
# Bytes of a record in the file: a hash of its id, then one of its input line.
ID_BYTES, INPUT_BYTES = 4, 8
ENTRY_BYTES = ID_BYTES + INPUT_BYTES
# The input of a record that an older version has written.
UNKNOWN = bytes(INPUT_BYTES)
# What the first line keeps of a manifest's account of a model.
MODEL = ("model", "base_url")
# Characters of either end of a value, in a message.
LONGEST = 80


def path_of(output: str) -> str | None:
    """Where the fingerprint of an output lies, by the file's own name and not by a link's; None for what is no file, such as a pipe."""
    real = os.path.realpath(output)
    return f"{real}{SUFFIX}" if os.path.isfile(real) or not os.path.exists(real) else None


def id_hash(identity: str) -> bytes:
    """By which an entry is found."""
    return hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=ID_BYTES).digest()


def entry_of(line: Line) -> bytes:
    """What the file says of a record: by the hash of its line, an edited one is known."""
    return id_hash(line.record["id"]) + hashlib.blake2b(line.raw, digest_size=INPUT_BYTES).digest()


class MadeBy(msgspec.Struct, frozen=True):
    """What decides the records of an output: the first line of the file."""

    blendkit: str
    command: str
    flags: dict[str, Any]
    models: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, command: str, flags: Mapping[str, Any], models: Mapping[str, Any]) -> MadeBy:
        """This version's; of what the manifest says of each model, its name and hash and where it is."""
        found = {name: {key: said[key] for key in MODEL if key in said} if isinstance(said, Mapping) else {"hash": said} for name, said in models.items()}
        # As it is read back, without tuples.
        return msgspec.json.decode(orjson.dumps({"blendkit": VERSION, "command": command, "flags": flags, "models": found}), type=cls)

    def differences(self, earlier: MadeBy) -> list[str]:
        """What an earlier run had otherwise, such as `--schedule: full then, single now`; the version alone is no difference."""
        if earlier.command != self.command:
            return [_difference("command", earlier.command, self.command)]
        if earlier.models.keys() != self.models.keys():
            models = [_difference("models", ", ".join(earlier.models), ", ".join(self.models))]
        else:
            models = [
                _difference(f'model "{shown(name)}"{"" if key == "model" else f", {key}"}', then.get(key), now.get(key))
                for name, now in self.models.items()
                for then in [earlier.models[name]]
                for key in {**then, **now}
                if then.get(key) != now.get(key)
            ]
        # Another version may know other flags.
        same = earlier.blendkit == self.blendkit
        names = [name for name in {**earlier.flags, **self.flags} if same or (name in earlier.flags and name in self.flags)]
        found = [
            _difference(name, earlier.flags.get(name), self.flags.get(name)) for name in names if _one(earlier.flags.get(name)) != _one(self.flags.get(name))
        ]
        return models + [line for line in found if not models or not line.startswith("--model:")]


class _Said(msgspec.Struct):
    """Any other line."""

    inputs: str = ""
    skipped: str | None = None


def _one(value: Any) -> Any:
    """A flag that may be given several times, given once, is as one that may not: it may have been one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _difference(what: str, then: Any, now: Any) -> str:
    return f"{what}: {_brief(then)} then, {_brief(now)} now"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    text = shown("none" if value in (None, "") else {True: "yes", False: "no"}[value] if isinstance(value, bool) else value)
    return text if len(text) <= 2 * LONGEST else f"{text[:LONGEST]} […] {text[-LONGEST:]}"


class Past:
    """A fingerprint as it was left, read along with its output. `run` is None where there is none; `skipped` is whole when all was read."""

    def __init__(self, path: str | None) -> None:
        self.run: MadeBy | None = None
        self.skipped: dict[str, None] = {}
        self._file: IO[bytes] = io.BytesIO()
        if path is not None:
            with suppress(OSError):
                self._file = Path(path).open("rb")  # noqa: SIM115
        with suppress(msgspec.MsgspecError, UnicodeError):
            self.run = msgspec.json.decode(self._file.readline(), type=MadeBy)
        self._entries = self._read()

    def _read(self) -> Iterator[bytes]:
        for line in self._file:
            # What was cut off says nothing.
            with suppress(msgspec.MsgspecError, ValueError):
                said = msgspec.json.decode(line, type=_Said)
                if said.skipped is not None:
                    self.skipped[said.skipped] = None
                entries = bytes.fromhex(said.inputs)
                yield from (entries[place : place + ENTRY_BYTES] for place in range(0, len(entries), ENTRY_BYTES))

    def entry(self, identity: str) -> bytes:
        """That of the output's next record; those of records that were never written, or are there no longer, are passed over."""
        wanted = id_hash(identity)
        for found in self._entries:
            if found.startswith(wanted) and len(found) == ENTRY_BYTES:
                return found
        return wanted + UNKNOWN

    def close(self) -> None:
        """Reads to the end."""
        for _ in self._entries:
            pass
        self._file.close()


def _rows(run: MadeBy, entries: Iterable[bytes], skipped: Iterable[str]) -> Iterator[dict[str, Any]]:
    yield msgspec.to_builtins(run)
    waiting = iter(entries)
    while block := list(islice(waiting, 256)):
        yield {"inputs": b"".join(block).hex()}
    yield from ({"skipped": identity} for identity in skipped)


class Fingerprint:
    """The file as the run adds to it; without a path it is none, and takes everything."""

    def __init__(self, output: str | None, run: MadeBy | None, entries: Iterable[bytes] = (), skipped: Iterable[str] = ()) -> None:
        """Puts a file with these entries in the place of an earlier one, at once and as a whole; the output is there already.

        Raises:
            OutputError: it cannot be written.
        """
        self._writer: Writer | None = None
        path = path_of(output) if output is not None else None
        if output is None or path is None or run is None:
            return
        write_anew(Path(path), os.stat(output).st_mode & 0o666, map(as_line, _rows(run, entries, skipped)))
        self._writer = Writer(path, append=True)

    def add(self, lines: Iterable[Line]) -> None:
        """Their output is about to be written."""
        if self._writer is not None and (found := b"".join(entry_of(line) for line in lines)):
            self._writer.write([{"inputs": found.hex()}])

    def skip(self, identity: str) -> None:
        """A record that is left out."""
        if self._writer is not None:
            self._writer.write([{"skipped": identity}])

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def write_anew(place: Path, mode: int, lines: Iterable[bytes]) -> None:
    """Puts a file of these whole lines in the place of an earlier one, at once: a crash before that loses nothing. Raises as `replacing` does."""
    waiting = iter(lines)
    with replacing(place, mode) as beside:
        writer = Writer(beside)
        while block := list(islice(waiting, 256)):
            writer.write_bytes(b"".join(block))
        writer.close()


@contextmanager
def replacing(place: Path, mode: int) -> Iterator[str]:
    """Within it, a new file lies beside `place` under a name that nobody has; at its end it takes that place, unless something failed.

    `place` must be no link, which would become a file.

    Raises:
        OutputError: there cannot be a file beside it.
    """
    try:
        number, beside = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=place.suffix)
    except OSError as error:
        raise OutputError(f"{place}: cannot write beside it: {error.strerror}") from error
    try:
        os.fchmod(number, stat.S_IMODE(mode))
        os.close(number)
        yield beside
        os.replace(beside, place)
    except BaseException:
        os.unlink(beside)
        raise
