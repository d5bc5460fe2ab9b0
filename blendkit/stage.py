"""The runner that all stages share: window → plan → batches by length → results → records in order.

A stage says three things: which pieces of work a record needs (`plan`), how a batch of pieces is done
(`run`), and what a record gains from the results (`finish`). One whose next work depends on earlier results says
so in `rounds`, and the rounds of all records of a window run level by level. Everything else is here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import orjson

from blendkit.errors import BlendkitError, OutOfMemory, RecordError, out_of_memory
from blendkit.jsonl import BadLine, Line
from blendkit.overlapping import overlapped
from blendkit.records import Record, validate

Results = dict[tuple[str, Hashable], Any]
Window = list[Line | BadLine]
Rounds = Generator[list["Work"], list[Any], None]
T = TypeVar("T")
Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work. Equal keys within a group are done once a window; groups never share a batch.

    `length` is in tokens: it sorts the batches and counts against the token budget.
    """

    group: str
    key: Hashable
    length: int
    payload: Any


class Stage:
    """What one command does to a record. `window` is its default number of records in flight."""

    name: ClassVar[str]
    window: int = 64
    # Tokens a batch unless the user says otherwise.
    batch_tokens: int = 8192
    # Windows in work at a time: more than one for a stage that waits for servers, and whose `run` bears several threads.
    overlap: int = 1
    # False: the stage reads records and writes `rows` at the end instead of them.
    passes_records: bool = True

    def plan(self, record: Record) -> list[Work]:
        """The record's work, none by default. Raises RecordError when the record lacks what is needed."""
        return []

    def budgeted(self, group: str) -> bool:
        """Whether batches of a group keep to the token budget; an endpoint gets all of a window's work at once."""
        return True

    def run(self, group: str, payloads: list[Any]) -> list[Any]:
        """One result a payload; an exception among them becomes the fault of the records that need it."""
        return [None for _ in payloads]

    def finish(self, record: Record, results: list[Any]) -> None:
        """Adds to the record; `results` stand in the order of its plan."""
        raise NotImplementedError

    def rounds(self, record: Record) -> Rounds:
        """A record's work, round after round: yields lists of works and is sent their results; then the record is done.

        One round unless a stage says otherwise: its plan, then `finish`.
        """
        self.finish(record, (yield self.plan(record)))

    def work(self, window: Window, plan: Plan) -> tuple[list[Line], BaseException | None]:
        """The window's finished lines up to the first fault that ends the run, and that fault."""
        return _do_window(self, window, plan)

    def rows(self) -> list[dict[str, Any]]:
        """What a stage that does not pass records on writes at the end."""
        return []

    def ending(self) -> bytes:
        """The rows as they are written: JSON lines, unless a stage has another form."""
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in self.rows())

    def describe(self) -> dict[str, Any]:
        """What decided the results (signature, models, device), for the manifest."""
        return {}

    def warnings(self) -> list[str]:
        """What a person should know at the end, one line each."""
        return []

    def close(self) -> None:
        """Gives back connections and the like at the end of a run; the stage may run again."""


@dataclass
class Counts:
    """What a run did; `tokens` counts every piece of work once, as it was run."""

    records: int = 0
    skipped: int = 0
    input_bytes: int = 0
    works: int = 0
    computed: int = 0
    tokens: int = 0
    budget_halvings: int = 0


@dataclass
class Plan:
    """How the runner works: records in flight, tokens a batch, and where bad lines go.

    `on_bad` raises (the default: the first bad record ends the run) or takes note and returns.
    """

    window: int = 64
    batch_tokens: int = 8192
    on_bad: Callable[[BadLine], None] | None = None
    tick: Callable[[Counts], None] = lambda counts: None
    counts: Counts = field(default_factory=Counts)


def process(stage: Stage, lines: Iterable[Line | BadLine], plan: Plan) -> Iterator[list[Line]]:
    """Windows of finished records, in input order.

    When a record is bad, all records before it are yielded first.
    """
    for window, done, fault in _worked(stage, windows(lines, plan.window), plan):
        plan.counts.records += len(done)
        plan.counts.input_bytes += sum(len(line.raw) + 1 for line in window)
        if done:
            yield done
        if fault is not None:
            raise fault
        plan.tick(plan.counts)


def _worked(stage: Stage, parts: Iterator[Window], plan: Plan) -> Iterator[tuple[Window, list[Line], BaseException | None]]:
    """Each window, its finished lines and its fault, in order."""
    if stage.overlap == 1:
        for window in parts:
            yield window, *stage.work(window, plan)
        return

    def do(window: Window, my_turn: Callable[[], None]) -> tuple[Window, list[Line], BaseException | None]:
        def on_bad(bad: BadLine) -> None:
            # Bad lines are told in the order of the stream.
            my_turn()
            if plan.on_bad is None:
                raise bad.error
            plan.on_bad(bad)

        return window, *stage.work(window, replace(plan, on_bad=on_bad))

    yield from overlapped(do, parts, stage.overlap)


@dataclass
class _InFlight:
    """A record between its rounds: what it waits for, or the fault that ended it."""

    line: Line
    rounds: Rounds
    works: list[Work] | None = None
    fault: Exception | None = None
    done: bool = False

    def go_on(self, results: Results) -> None:
        """Sends the round's results in, and takes the next round's works out; the first call starts the first round."""
        try:
            if self.works is None:
                self.works = next(self.rounds)
                return
            found = [results[work.group, work.key] for work in self.works]
            for result in found:
                if isinstance(result, Exception):
                    raise result
            self.works = self.rounds.send(found)
        except StopIteration:
            self.done = True
        except BlendkitError as error:
            self.fault, self.done = error, True


def _do_window(stage: Stage, window: list[Line | BadLine], plan: Plan) -> tuple[list[Line], BaseException | None]:
    flights: list[_InFlight] = []
    fault: BaseException | None = None
    for line in window:
        try:
            if isinstance(line, BadLine):
                raise line.error
            flight = _InFlight(line, stage.rounds(line.record))
            flight.go_on({})
            if flight.fault is not None:
                raise flight.fault
            flights.append(flight)
        except RecordError as error:
            if fault := _reject(plan, line, error):
                break
        except BlendkitError as error:
            fault = error
            break
    results: Results = {}
    while waiting := [flight for flight in flights if not flight.done]:
        run_works(stage, [work for flight in waiting for work in flight.works or ()], plan, results)
        for flight in waiting:
            flight.go_on(results)
    done: list[Line] = []
    for flight in flights:
        if flight.fault is None:
            done.append(flight.line)
        elif not isinstance(flight.fault, RecordError):
            return done, flight.fault
        elif early := _reject(plan, flight.line, flight.fault):
            return done, early
    return done, fault


def _reject(plan: Plan, line: Line | BadLine, error: RecordError) -> BaseException | None:
    bad = BadLine(line.number, line.raw, error)
    if plan.on_bad is None:
        return error
    try:
        plan.on_bad(bad)
    except BlendkitError as fatal:
        return fatal
    plan.counts.skipped += 1
    return None


def windows(lines: Iterable[Line | BadLine], size: int) -> Iterator[list[Line | BadLine]]:
    """Lists of `size`; when reading fails, what was read before is yielded first."""
    window: list[Line | BadLine] = []
    try:
        for line in lines:
            window.append(line)
            if len(window) == size:
                yield window
                window = []
    except BlendkitError:
        if window:
            yield window
        raise
    if window:
        yield window


def run_works(stage: Stage, works: Iterable[Work], plan: Plan, results: Results) -> None:
    """Fills `results` by (group, key): every key once, longest first, in batches of at most `batch_tokens` padded tokens."""
    groups: dict[str, dict[Hashable, Work]] = {}
    for work in works:
        plan.counts.works += 1
        if (work.group, work.key) not in results:
            groups.setdefault(work.group, {}).setdefault(work.key, work)
    for group, unique in groups.items():
        waiting = sorted(unique.values(), key=lambda work: -work.length)
        while waiting:
            budget = plan.batch_tokens if stage.budgeted(group) else math.inf
            # Longest first: the first piece's length is the width of the padded batch.
            size = max(1, int(min(len(waiting), budget // max(1, waiting[0].length))))
            batch = waiting[:size]
            try:
                found = stage.run(group, [work.payload for work in batch])
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise OutOfMemory(f"not enough memory for one input of {batch[0].length} tokens: use a smaller model or a larger device") from error
                plan.batch_tokens = max(1, batch[0].length * len(batch) // 2)
                plan.counts.budget_halvings += 1
                free_memory()
                continue
            for work, result in zip(batch, found, strict=True):
                results[group, work.key] = result
            plan.counts.computed += len(batch)
            plan.counts.tokens += sum(work.length for work in batch)
            waiting = waiting[size:]
            plan.tick(plan.counts)


def together(parts: list[Generator[list[Work], list[Any], Any]]) -> Generator[list[Work], list[Any], list[Any]]:
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


def owned(rounds: Generator[list[Work], list[Any], T], owner: Owner, owners: dict[str, Owner]) -> Generator[list[Work], list[Any], T]:
    """Passes the rounds on, and notes in `owners` who does the works of which group; returns what they return."""
    results: list[Any] | None = None
    while True:
        try:
            works: list[Work] = next(rounds) if results is None else rounds.send(results)
        except StopIteration as done:
            returned: T = done.value
            return returned
        for work in works:
            owners.setdefault(work.group, owner)
        results = yield works


def free_memory() -> None:
    """Gives cached device memory back before a smaller batch is tried."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def apply(stage: Stage, records: Iterable[Record], *, window: int | None = None, batch_tokens: int | None = None) -> Iterator[Record]:
    """The library's way in: records through one stage, lazily, in order. The records are changed in place.

    Raises:
        RecordError: the first bad record, after those before it.
    """
    lines = (_line(number, record) for number, record in enumerate(records, 1))
    try:
        for done in process(stage, lines, Plan(window or stage.window, batch_tokens or stage.batch_tokens)):
            for line in done:
                yield line.record
    finally:
        stage.close()


def _line(number: int, record: Record) -> Line | BadLine:
    record.setdefault("id", str(number))
    try:
        validate(record)
    except RecordError as error:
        return BadLine(number, b"", RecordError(f"record {number}", str(error)))
    return Line(number, b"", record)
