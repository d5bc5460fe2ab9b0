"""Rows of a file that are taken apart: each field is used, kept under its own name, or counted as dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from blendkit.errors import RecordError
from blendkit.records import Candidate, RecordSchema, as_line
from blendkit.terminal_text import Counted, count_of, shown
from blendkit.untrusted import kind_of, typed

Fields = dict[str, Any]
T = TypeVar("T")
# What means something in a stream of ours. A row's field of such a name that its form knows nothing of would be taken for it.
OUR_FIELDS = frozenset(RecordSchema.__annotations__) | {"human"}
MOST_NAMES = 1000
OUR_CANDIDATE_FIELDS = frozenset(Candidate.__annotations__)


@dataclass(slots=True)
class SourceRow:
    """What stands at a place of a file, which errors name; a RecordError where it cannot be read."""

    place: str
    number: int
    value: Any

    def taken(self) -> Taken:
        """The row to be taken apart. Raises RecordError where it could not be read, or is no object."""
        if isinstance(self.value, RecordError):
            raise self.value
        return Taken(self.value)

    def raw(self) -> bytes:
        """The row as it goes to the rejects."""
        try:
            return as_line(self.value).rstrip(b"\n")
        except (TypeError, RecursionError):
            return repr(self.value).encode(errors="replace")


class Taken:
    """The fields of an object, each taken once. What nobody took is `left`; what has no place is counted in `dropped`."""

    def __init__(self, value: object, path: str = "", dropped: Counter[str] | None = None) -> None:
        """Raises RecordError where the value is no object. `path` is its own path, with `[]` for any element of a list."""
        if not isinstance(value, dict):
            raise RecordError(path, f"expected an object, got {kind_of(value)}")
        self.fields: Fields = value
        self.left = dict(value)
        self.path, self.dropped = path, Counter() if dropped is None else dropped
        # What a person should know of the row, each told once with its count.
        self.notes: list[Counted] = []

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def need(self, name: str, kind: type[T]) -> T:
        """A field that must be there.

        Raises:
            RecordError: it is not, or of another type.
        """
        if name not in self.left:
            raise RecordError(self.at(name), "expected a value, but the field is missing")
        return typed(_of_text(self.left.pop(name), kind), kind, self.at(name))

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """A field that may be missing or null.

        Raises:
            RecordError: it is there, and of another type.
        """
        value = self.left.pop(name, None)
        return None if value is None else typed(_of_text(value, kind), kind, self.at(name))

    def use(self, *names: str) -> None:
        """Says that fields were used in another way."""
        for name in names:
            self.left.pop(name, None)

    def drop(self, what: str) -> None:
        """Counts something for which there is no place."""
        self.dropped[what] += 1

    def drop_rest(self) -> None:
        """Counts all that is left, but for nulls."""
        for name, value in self.left.items():
            if value is not None:
                self.drop(self.at(name))
        self.left.clear()

    def keep(self, into: Fields, ours: frozenset[str] = OUR_FIELDS) -> None:
        """Puts what is left into a record or a row under its own name; what would be taken for something else there is dropped."""
        for name, value in self.left.items():
            if value is None:
                continue
            reference = name == "output" and isinstance(value, str)
            if name in into or (name in ours and not reference) or not _json(value):
                self.drop(self.at(name))
            else:
                into[name] = value
        self.left.clear()


def _of_text(value: object, kind: object) -> object:
    """A number or a truth value that is written as a text, as all cells of a CSV file are; truth values are also written 1 and 0."""
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            return number if isfinite(number := float(value)) else value
    if kind is bool and isinstance(value, (str, int)):
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), value)
    return value


def _json(value: object) -> bool:
    try:
        as_line(value)
    except (TypeError, RecursionError, ValueError):
        return False
    return True


class Losses:
    """What a conversion has no place for, over all rows. With `strict`, the first is an error."""

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.dropped, self.notes = strict, Counter[str](), Counter[Counted]()

    def add(self, dropped: Counter[str], form: str, notes: Iterable[Counted] = ()) -> None:
        """Counts what a row lost, and its notes.

        Raises:
            RecordError: with `strict`, it lost something.
        """
        if self.strict and dropped:
            raise RecordError(next(iter(dropped)), f"--strict: the form {form} has no place for it")
        self.notes.update(notes)
        for what, count in dropped.items():
            place = f"{what} ({form})"
            # A file may have other names in each of its rows.
            self.dropped[place if place in self.dropped or len(self.dropped) < MOST_NAMES else "other fields"] += count

    def told(self) -> Iterator[str]:
        """Lines for the end: one of all that was dropped, and one a note."""
        if self.dropped:
            listed = ", ".join(f"{shown(what)} {count:,}" for what, count in self.dropped.most_common(20))
            more = f" and {count_of(len(self.dropped) - 20, 'more field')}" if len(self.dropped) > 20 else ""
            yield f"dropped, as there is no place for it: {listed}{more}; --strict makes it an error"
        for note, count in self.notes.items():
            yield count_of(count, *note)
