"""The contract of a stage: what one command does to a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

import orjson

from blendkit.errors import BlendkitError
from blendkit.models.attention_forms import Attending
from blendkit.pipeline.plan import Plan, Window
from blendkit.pipeline.work import Rounds, Work
from blendkit.records import Record
from blendkit.streams.lines import Line


class Account(Protocol):
    """What a stage counts over a run, by which the run as a whole may fail though every record is written. It can be pickled."""

    def merge(self, other: Any) -> None:
        """Adds another worker's."""

    def fault(self) -> BlendkitError | None:
        """What is wrong with the run, if anything; its notes are told before it, a line each."""


class Stage:
    """What one command does to a record. `window` is its default number of records in flight."""

    name: ClassVar[str]
    window: int = 64
    # Tokens a batch unless the user says otherwise.
    batch_tokens: int = 8192
    # Windows in work at a time: more than one for a stage that waits for servers, and whose jobs may run in several threads.
    overlap: int = 1
    # Records that a window may have where a thread reads and plans them while a device computes, and a window ends when its first round
    # fills batches; 0 for a stage that plans each window when its turn comes. No job of such a stage may share with the planning what only
    # one thread may use, such as a tokenizer.
    ahead: int = 0
    # Set by an engine: it has a whole window worked on outside this process, and returns the lines that were finished before the
    # first fault that ends the run, and that fault. None: the runner does the work in this process.
    elsewhere: Callable[[Window, Plan], tuple[list[Line], BaseException | None]] | None = None
    # False: the stage reads records and writes `rows` at the end instead of them.
    passes_records: bool = True
    # How its packed encoders attend, for a stage that was made within `attending`.
    attending: Attending | None = None

    @property
    def in_flight(self) -> int:
        """Records of a window at most, unless the user says otherwise."""
        return self.ahead or self.window

    def plan(self, record: Record) -> list[Work]:
        """The record's work, none by default. Raises RecordError when the record lacks what is needed."""
        return []

    def finish(self, record: Record, results: list[Any]) -> None:
        """Adds to the record; `results` stand in the order of its plan."""
        raise NotImplementedError

    def rounds(self, record: Record) -> Rounds[None]:
        """A record's work, round after round; when it ends, the record is done.

        One round unless a stage says otherwise: its plan, then `finish`.
        """
        self.finish(record, (yield self.plan(record)))

    def passing(self, windows: Iterator[list[Line]]) -> Iterator[list[Line]]:
        """Windows of finished records on their way out: as they come, unless a stage must have seen the whole stream before the first one passes."""
        return windows

    def skipped(self, place: str, problem: str) -> None:
        """Hears of a bad record that the run passes over: where it stood, and what is wrong with it."""

    def rows(self) -> list[dict[str, Any]]:
        """What a stage that does not pass records on writes at the end."""
        return []

    def ending(self) -> bytes:
        """The rows as they are written: JSON lines, unless a stage has another form."""
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in self.rows())

    def describe(self) -> dict[str, Any]:
        """What decided the results (signature, models, device), for the manifest."""
        return {}

    def described(self) -> dict[str, Any]:
        """`describe`, and in which form encoders attend."""
        return {**self.describe(), **(self.attending.described() if self.attending else {})}

    def warnings(self) -> list[str]:
        """What a person should know at the end, one line each."""
        return []

    def account(self) -> Account | None:
        """What the run is judged by when it ends; None where records are all that counts."""
        return None

    def close(self) -> None:
        """Ends what the stage itself has started, such as workers. The runner closes the jobs."""
