"""The records that a training reads, each with its place, so that a bad one can be found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import orjson

from blendkit.errors import DataError, RecordError
from blendkit.records import Record, check_is_record, place_of, validate
from blendkit.streams.lines import BadLine, Line, Reader
from blendkit.training.examples import Example


class PlacedRecords:
    """Records in memory; `place` says where the last one stood."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = records
        self.place = ""

    def __iter__(self) -> Iterator[Record]:
        """The records, checked.

        Raises:
            RecordError: a field is of the wrong type.
        """
        for place, record in enumerate(self._records):
            self.place = place_of(place)
            check_is_record(record)
            validate(record)
            yield record


class RecordFiles(PlacedRecords):
    """The records of several files, one file after the other.

    Raises:
        NoInputError: a file does not exist.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(())
        self._readers = [Reader(path) for path in paths]

    def __iter__(self) -> Iterator[Record]:
        """The records as they were written: one without an id has none.

        Raises:
            RecordError: a line is no record.
        """
        for reader in self._readers:
            for line in reader.records():
                self.place = f"{reader.name}:{line.number}"
                if isinstance(line, BadLine):
                    raise line.error
                yield _as_written(line)


def _as_written(line: Line) -> Record:
    """The record without the id that a reader makes of the line's number: in another file, that number is another record's."""
    if line.record["id"] == str(line.number) and "id" not in orjson.loads(line.raw):
        return {name: value for name, value in line.record.items() if name != "id"}
    return line.record


def read_examples(records: Iterable[Record], make: Callable[[Iterable[Record]], list[Example]]) -> list[Example]:
    """What `make` makes of the records, read one at a time.

    Raises:
        DataError: a record is bad; the message names its place.
    """
    placed = records if isinstance(records, PlacedRecords) else PlacedRecords(records)
    try:
        return make(placed)
    except RecordError as error:
        raise DataError(f"{placed.place}: {error}") from error
