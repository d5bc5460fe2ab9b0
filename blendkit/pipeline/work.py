"""What a stage asks for: pieces of work, each of which carries the job that does it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

Returned = TypeVar("Returned")


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Job:
    """One model doing one thing, such as BERTScore's encoder encoding texts. Works of one job share batches.

    `run` gives one result a payload, in order; an exception among the results is the fault of the records that need it.
    Batches of a `budgeted` job keep to the token budget; another job (an endpoint, a text metric) gets all that a window has
    for it at once. `close` gives back connections when a run ends; the job may run again. `name` is for messages.

    A job is known by its identity: two objects that want to share works share the job.
    """

    name: str
    run: Callable[[list[Any]], list[Any]]
    budgeted: bool = True
    close: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work. Equal keys of a job are done once a window.

    `length` is in tokens: it sorts the batches and counts against the token budget. `tokens` are those that it has, where its length
    is what it will need room for.
    """

    job: Job
    key: Hashable
    length: int
    payload: Any
    tokens: int | None = None

    @property
    def size(self) -> int:
        """Tokens, as they are told to a person."""
        return self.length if self.tokens is None else self.tokens


# A record's work, round after round: it yields lists of works and is sent their results, in the same order.
Rounds = Generator[list[Work], list[Any], Returned]


def together(parts: list[Rounds[Any]]) -> Rounds[list[Any]]:
    """Runs generators of rounds side by side: one round of all at a time. Returns what each of them returns."""
    returned: list[Any] = [None] * len(parts)
    waiting: dict[int, list[Work]] = {}

    def go_on(number: int, results: list[Any] | None) -> None:
        try:
            waiting[number] = next(parts[number]) if results is None else parts[number].send(results)
        except StopIteration as done:
            returned[number] = done.value

    for number in range(len(parts)):
        go_on(number, None)
    while waiting:
        asked, waiting = waiting, {}
        results = yield [work for works in asked.values() for work in works]
        start = 0
        for number, works in asked.items():
            end = start + len(works)
            go_on(number, results[start:end])
            start = end
    return returned
