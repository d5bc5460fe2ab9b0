"""What a form is, and how its rows become records that `blendkit check` takes, and records its rows.

A new form is a function or two in a file beside, and a row in FORMS (blendkit/sources/__init__.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.records import Record, as_line, source_text, validate
from blendkit.sources import FORMS
from blendkit.sources.preferences import PairOptions
from blendkit.sources.rows import Fields, Losses, SourceRow, Taken
from blendkit.streams.lines import MAX_LINE_BYTES
from blendkit.streams.unique_ids import UniqueIds
from blendkit.terminal_text import Counted

# Records, each with the first row that it comes from.
Placed = Iterator[tuple[SourceRow, Record]]
# What becomes of a row or a record that is bad: raises, or notes it.
Faulty = Callable[[SourceRow, RecordError], None]

TWICE = "id was there before: #2, #3… was put behind it", "ids were there before: #2, #3… was put behind them"


@dataclass
class Writing:
    """How records are written: which of their candidates are better, and whether texts are lists of messages. `left_out` counts what is not written."""

    labels: PairOptions = field(default_factory=PairOptions)
    as_messages: bool = False
    left_out: Counter[Counted] = field(default_factory=Counter)


@dataclass(frozen=True)
class Form:
    """`read` makes a record of a row and its number, `write` the rows of a record; None where the form has no such way.

    `array`: the file is one JSON array. `joins` gives the key by which rows become one record, with the candidates of all.
    """

    read: Callable[[Taken, int], Record] | None
    write: Callable[[Taken, Writing], Iterator[Fields]] | None = None
    array: bool = False
    joins: Callable[[Record], object] | None = None


def fail(row: SourceRow, error: RecordError) -> None:
    """Raises DataError, with the row's place."""
    raise DataError(f"{row.place}: {error}") from error


def read_form(name: str, rows: Iterable[SourceRow], losses: Losses | None = None, faulty: Faulty = fail) -> Placed:
    """Rows of a form as records with ids of their own, each with the first row that it comes from.

    Raises:
        UsageError: there is no such form, or it is only written.
        DataError: a row is not of that form, unless `faulty` takes it.
    """
    form: Form = FORMS.load(name, "--from")
    if form.read is None:
        raise UsageError(f"data convert --from {name}: this form is only written")
    losses = losses or Losses()
    read = _read_each(name, form.read, rows, losses, faulty, joined=form.joins is not None)
    return _whole(_joined(read, form.joins, losses, name, faulty) if form.joins else read, losses, faulty)


def _read_each(name: str, read: Callable[[Taken, int], Record], rows: Iterable[SourceRow], losses: Losses, faulty: Faulty, joined: bool) -> Placed:
    about = f"; {name} is {FORMS[name].about}"
    for number, row in enumerate(rows, 1):
        try:
            taken = row.taken()
            with readable(about):
                record = read(taken, number)
            taken.keep(record)
            if joined:
                # What is wrong with a row is told of it, and not of the row that it is joined to.
                validate(record)
            losses.add(taken.dropped, name, taken.notes)
        except RecordError as error:
            faulty(row, error)
            continue
        yield row, record


def published(read: Callable[[Fields, int], Record | None], rows: Iterable[SourceRow], what: str) -> Iterator[Record]:
    """The records of a data set in its published form; a row of which `read` makes None is left out. Rows are counted from 0.

    Raises:
        DataError: a row is not of that form; with its place.
    """
    for number, row in enumerate(rows):
        try:
            fields = row.taken().fields
            with readable(f"; expected a row {what}"):
                record = read(fields, number)
            if record is not None:
                acceptable(record)
        except RecordError as error:
            fail(row, error)
        else:
            if record is not None:
                yield record


@contextmanager
def readable(about: str) -> Iterator[None]:
    """Whatever goes wrong with a row inside becomes a RecordError that ends with `about`: a reader may be another package's."""
    try:
        yield
    except RecordError as error:
        raise RecordError("", f"{error}{about}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise RecordError("", f"{said}{about}") from error


def _joined(read: Placed, key: Callable[[Record], object], losses: Losses, name: str, faulty: Faulty) -> Placed:
    """Records of one key as one, in the order of their first rows."""
    found: dict[object, tuple[SourceRow, Record]] = {}
    for row, record in read:
        first = found.setdefault(key(record), (row, record))[1]
        if first is not record:
            unlike = [field_name for field_name in {*first} & {*record} - {"candidates", "id"} if first[field_name] != record[field_name]]
            if first["id"] != record["id"] == str(row.value.get("id")):
                unlike.append("id")
            try:
                losses.add(Counter(f"{field_name} of a further row" for field_name in unlike), name)
            except RecordError as error:
                faulty(row, error)
            else:
                _join(first, record)
    yield from found.values()


def _join(first: Record, other: Record) -> None:
    for candidate in other.pop("candidates", []):
        same = [
            one
            for one in first.get("candidates", [])
            if one.get("scores") and candidate.get("scores") and not {*one["scores"]} & {*candidate["scores"]}
            and all(one[shared] == candidate[shared] for shared in {*one} & {*candidate} - {"scores"})
        ]  # fmt: skip
        if same:
            # Another measure of the same answer.
            same[0]["scores"].update(candidate["scores"])
            same[0].update({name: value for name, value in candidate.items() if name not in same[0]})
        else:
            first.setdefault("candidates", []).append(candidate)
    for field_name, value in other.items():
        first.setdefault(field_name, value)


def _whole(read: Placed, losses: Losses, faulty: Faulty) -> Placed:
    """The records that `check` takes, each with an id that was not there before."""
    ids, times = UniqueIds(), Counter[str]()
    for row, record in read:
        try:
            acceptable(record)
        except RecordError as error:
            faulty(row, error)
            continue
        first = record["id"]
        while not ids.add(record["id"]):
            times[first] += 1
            record["id"] = f"{first}#{times[first] + 1}"
        if record["id"] != first:
            losses.notes[TWICE] += 1
        yield row, record


def acceptable(record: Record) -> None:
    """Raises RecordError for a record that has no x, or that `blendkit check` would refuse."""
    validate(record)
    source_text(record)
    try:
        size = len(as_line(record))
    except (TypeError, RecursionError) as error:
        raise RecordError("", f"cannot be written as JSON: {error}") from error
    if size > MAX_LINE_BYTES:
        raise RecordError("", f"expected a record of at most {MAX_LINE_BYTES >> 20} MB, got {size >> 20} MB")


def write_form(name: str, records: Iterable[tuple[SourceRow, Record]], writing: Writing, losses: Losses, faulty: Faulty = fail) -> Iterator[Fields]:
    """Records as rows of a form.

    Raises:
        UsageError: there is no such form, or it is only read.
        DataError: a record lacks what the form needs, unless `faulty` takes it.
    """
    form: Form = FORMS.load(name, "--to")
    if form.write is None:
        raise UsageError(f"data convert --to {name}: this form is only read")
    for row, record in records:
        taken = Taken(record)
        taken.use("id")
        try:
            written = list(form.write(taken, writing))
            if written:
                _beside(taken, written)
                losses.add(taken.dropped, name)
        except RecordError as error:
            faulty(row, error)
            continue
        yield from written


def _beside(record: Taken, written: list[Fields]) -> None:
    """What no form knows goes into every row under its own name."""
    kept: dict[str, Any] = dict(written[0])
    known = set(kept)
    record.keep(kept)
    for fields in written:
        for name, value in kept.items():
            if name not in known:
                fields.setdefault(name, value)


def of_x(record: Record) -> object:
    """What is the same in records of one x."""
    return repr((record.get("instruction"), record.get("input"), record.get("messages")))


def identity(row: Taken, number: int | str, *names: str) -> str:
    """The record's id: the first of the fields that is there, or the row's number, or what else is made of it.

    Raises:
        RecordError: it is neither a text nor a number.
    """
    for name in names:
        if row.left.get(name) is not None:
            return str(row.need(name, str | int | float))  # type: ignore[arg-type]
    return str(number)
