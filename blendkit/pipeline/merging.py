"""`merge`: the outputs of shards back in one stream, in the order of the original."""

from __future__ import annotations

from collections.abc import Iterator

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.pipeline.stage import Stage
from blendkit.records import Record
from blendkit.streams.lines import MAX_LINE_BYTES, BadLine, Line, Reader


class _Part:
    """Reads one shard's output, one record ahead."""

    def __init__(self, path: str, max_line_bytes: int) -> None:
        self.path = path
        self._lines: Iterator[Line | BadLine] = Reader(path, max_line_bytes=max_line_bytes).records()
        self.next: Line | None = None
        self.step()

    def step(self) -> None:
        """Reads the next record.

        Raises:
            DataError: the record is bad, or its id has occurred before.
        """
        line = next(self._lines, None)
        if isinstance(line, BadLine):
            raise DataError(f"{self.path}:{line.number}: {line.error}")
        self.next = line


class Merging(Stage):
    """Replaces each record of the original with the one of the same id in a part. Parts keep the original's order, so one record of each is in memory."""

    name = "merge"

    def __init__(self, paths: list[str], max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """Raises UsageError when there is none, NoInputError when one does not exist, and DataError when one begins badly."""
        if not paths:
            raise UsageError("no parts given: name the outputs of all shards")
        self._parts = [_Part(path, max_line_bytes) for path in paths]
        self._heads: dict[str, _Part] = {}
        for part in self._parts:
            self._wait(part)

    def _wait(self, part: _Part) -> None:
        if part.next is not None:
            identity = part.next.record["id"]
            other = self._heads.setdefault(identity, part)
            if other is not part:
                assert other.next is not None
                raise DataError(f"{part.path}:{part.next.number}: id: {identity!r} is in {other.path}, too (line {other.next.number})")

    def finish(self, record: Record, results: list[object]) -> None:
        """Takes the record over from the part that has it next."""
        part = self._heads.pop(record["id"], None)
        if part is None or part.next is None:
            raise RecordError("id", f"no part has {record['id']!r} next; {self._waiting()}")
        found = part.next.record
        record.clear()
        record.update(found)
        part.step()
        self._wait(part)

    def ending(self) -> bytes:
        """Writes nothing, but checks that all parts are at their end.

        Raises:
            DataError: a part has a record that the original does not have, has earlier, or has once only.
        """
        if self._heads:
            raise DataError(f"left over at the end of the original: {self._waiting()}")
        return b""

    def _waiting(self) -> str:
        heads = [f"{part.path}:{part.next.number} has {identity!r}" for identity, part in self._heads.items() if part.next]
        return ", ".join(heads[:4]) + (f" and {len(heads) - 4} more" if len(heads) > 4 else "") or "all parts are at their end"
