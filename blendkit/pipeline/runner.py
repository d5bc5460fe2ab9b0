"""The runner that all stages share: window → works → batches of one job by length → results → records in order.

A stage says two things: which works a record needs (`plan`), and what a record gains from their results (`finish`). Each
work carries the job that does it. A stage whose next work depends on earlier results says so in `rounds`, and the rounds of
all records of a window run level by level. Everything else is here, once.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from blendkit.errors import BlendkitError, BlendkitWarning, Interrupted, NoInputError, OutOfMemory, RecordError, expect_at_least, out_of_memory
from blendkit.models.pretrained import reason
from blendkit.pipeline.ahead import BATCHES, gathered
from blendkit.pipeline.plan import Plan, Window
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.threads import overlapped
from blendkit.pipeline.work import Job, Rounds, Work
from blendkit.records import Record, check_is_record, copied, place_of, validate
from blendkit.streams.lines import BadLine, Line
from blendkit.terminal_text import count_of

Results = dict[tuple[Job, Hashable], Any]


def process(stage: Stage, lines: Iterable[Line | BadLine], plan: Plan) -> Iterator[list[Line]]:
    """Windows of finished records, in input order.

    When a record is bad, all records before it are yielded first.
    """
    for window, done, fault in _worked(stage, lines, plan):
        plan.counts.add(records=len(done), input_bytes=sum(len(line.raw) + 1 for line in window))
        if done:
            yield done
        if fault is not None:
            raise fault
        plan.tick(plan.counts)


def _worked(stage: Stage, lines: Iterable[Line | BadLine], plan: Plan) -> Iterator[tuple[Window, list[Line], BaseException | None]]:
    """Each window, its finished lines and its fault, in order."""
    if stage.ahead and plan.ahead:
        yield from _planned_ahead(stage, lines, plan)
        return
    work = stage.elsewhere or partial(do_window, stage)
    if stage.overlap == 1:
        for window in windows(lines, plan.window):
            yield window, *work(window, plan)
        return

    def do(window: Window, my_turn: Callable[[], None]) -> tuple[Window, list[Line], BaseException | None]:
        def on_bad(bad: BadLine) -> None:
            # Bad lines are reported in the order of the stream.
            my_turn()
            if plan.on_bad is None:
                raise bad.error
            plan.on_bad(bad)

        return window, *work(window, replace(plan, on_bad=on_bad))

    yield from overlapped(do, windows(lines, plan.window), stage.overlap)


def _planned_ahead(stage: Stage, lines: Iterable[Line | BadLine], plan: Plan) -> Iterator[tuple[Window, list[Line], BaseException | None]]:
    """`_worked` for a stage whose records are read and planned in a thread while a device computes."""
    # A stage's planning is one thread's at a time.
    planning = threading.Lock()

    def begin(line: Line | BadLine) -> _InFlight:
        with planning:
            return _begun(stage, line)

    def tokens(flight: _InFlight) -> int:
        return sum(work.length for work in flight.works or () if work.job.budgeted)

    for flights in gathered(begin, lines, tokens, plan.window, BATCHES * plan.batch_tokens):
        window = [flight.line for flight in flights]
        yield window, *_finished(flights, window, plan, planning)


@dataclass
class _InFlight:
    """A record between its rounds: what it waits for, or the fault that ended it."""

    line: Line | BadLine
    rounds: Rounds[None] | None
    works: list[Work] | None = None
    fault: Exception | None = None
    done: bool = False

    def go_on(self, results: Results) -> None:
        """Sends the round's results in, and takes the next round's works out; the first call starts the first round."""
        assert self.rounds is not None
        try:
            if self.works is None:
                self.works = next(self.rounds)
                return
            found = [results[work.job, work.key] for work in self.works]
            for result in found:
                if isinstance(result, Exception):
                    raise result
            self.works = self.rounds.send(found)
        except StopIteration:
            self.done = True
        except BlendkitError as error:
            self.fault, self.done = error, True

    def has_all(self, results: Results) -> bool:
        """Whether all that it waits for is there."""
        return all((work.job, work.key) in results for work in self.works or ())


def _begun(stage: Stage, line: Line | BadLine) -> _InFlight:
    """A record whose first round is planned; of a bad line, its fault."""
    if isinstance(line, BadLine):
        return _InFlight(line, None, fault=line.error, done=True)
    flight = _InFlight(line, stage.rounds(line.record))
    flight.go_on({})
    return flight


def do_window(stage: Stage, window: Window, plan: Plan) -> tuple[list[Line], BaseException | None]:
    """Works on one window: its finished lines before the first fault that ends the run, and that fault.

    An interrupt is such a fault: the records before the first one that still waits for results are finished.
    """
    return _finished((_begun(stage, line) for line in window), window, plan, nullcontext())


def _finished(begun: Iterable[_InFlight], window: Window, plan: Plan, planning: AbstractContextManager[Any]) -> tuple[list[Line], BaseException | None]:
    """`do_window` for records as they are begun; no round goes on outside of `planning`."""
    size = {"records": len(window), "input_bytes": sum(len(line.raw) + 1 for line in window)}
    plan.counts.take(**size)
    flights: list[_InFlight] = []
    fault: BaseException | None = None
    for flight in begun:
        if flight.fault is None:
            flights.append(flight)
            continue
        fault = _reject(plan, flight.line, flight.fault) if isinstance(flight.fault, RecordError) else flight.fault
        if fault is not None:
            break
    results: Results = {}
    stopped: Interrupted | None = None
    while stopped is None and (waiting := [flight for flight in flights if not flight.done]):
        try:
            run_works([work for flight in waiting for work in flight.works or ()], plan, results)
        except Interrupted as signal:
            stopped = signal
        with planning:
            for flight in waiting:
                if stopped is not None and not flight.has_all(results):
                    break
                flight.go_on(results)
    plan.counts.take(**{name: -number for name, number in size.items()}, works=-len(results), computed=-len(results))
    done: list[Line] = []
    for flight in flights:
        if not flight.done:
            break
        if flight.fault is None and isinstance(flight.line, Line):
            done.append(flight.line)
        elif not isinstance(flight.fault, RecordError):
            return done, flight.fault
        elif early := _reject(plan, flight.line, flight.fault):
            return done, early
    return done, stopped or fault


def _reject(plan: Plan, line: Line | BadLine, error: RecordError) -> BaseException | None:
    bad = BadLine(line.number, line.raw, error)
    if plan.on_bad is None:
        return error
    try:
        plan.on_bad(bad)
    except BlendkitError as fatal:
        return fatal
    plan.counts.add(skipped=1)
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


def run_works(works: list[Work], plan: Plan, results: Results) -> None:
    """Fills `results` by (job, key): every key once, longest first, in batches of at most the job's budget of padded tokens."""
    by_job: dict[Job, dict[Hashable, Work]] = {}
    for work in works:
        if (work.job, work.key) not in results:
            by_job.setdefault(work.job, {}).setdefault(work.key, work)
    plan.counts.add(works=len(works))
    plan.counts.take(works=sum(map(len, by_job.values())))
    for job, unique in by_job.items():
        plan.budgets.setdefault(job, plan.batch_tokens if job.budgeted else math.inf)
        waiting = sorted(unique.values(), key=lambda work: -work.length)
        while waiting:
            # Longest first: the first piece's length is the width of the padded batch.
            size = max(1, int(min(len(waiting), plan.budgets[job] // max(1, waiting[0].length))))
            batch, waiting = waiting[:size], waiting[size:]
            with plan.turn() if job.budgeted else nullcontext():
                found = _run_batch(job, batch)
            if found is None:
                plan.budgets[job] = max(1, batch[0].length * len(batch) // 2)
                plan.counts.add(budget_halvings=1)
                waiting = batch + waiting
                free_memory()
                continue
            for work, result in zip(batch, found, strict=True):
                results[job, work.key] = result
            plan.counts.add(computed=len(batch), tokens=sum(work.size for work in batch))
            plan.counts.take(computed=len(batch))
            plan.tick(plan.counts)


def _run_batch(job: Job, batch: list[Work]) -> list[Any] | None:
    """One result a work; None when memory ran out and a smaller batch may fit. After it returns, no traceback keeps the batch in memory.

    Raises:
        OutOfMemory: not even one work fits.
        NoInputError: a model fails as it computes, such as one whose tokenizer knows tokens that its weights do not.
    """
    try:
        found = job.run([work.payload for work in batch])
        if len(found) != len(batch):
            raise ValueError(f"{count_of(len(found), 'result')} of {count_of(len(batch), 'input')}")
        return found
    except Exception as error:
        if not out_of_memory(error):
            if isinstance(error, BlendkitError) or not job.budgeted:
                raise
            raise NoInputError(
                f"{job.name}: the model fails as it computes; its files may not fit together: {reason(error)} (see it whole with --debug)"
            ) from error
        if len(batch) == 1:
            raise OutOfMemory(
                f"{job.name}: not enough memory for one input of {count_of(batch[0].size, 'token')}: use a smaller model or a larger device"
            ) from error
    return None


def free_memory() -> None:
    """Gives cached device memory back before a smaller batch is tried."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def apply(stage: Stage, records: Iterable[Record], *, window: int | None = None, batch_tokens: int | None = None) -> Iterator[Record]:
    """The library's way in: records through one stage, lazily, in order. The caller's records stay as they are.

    What a person should know is a BlendkitWarning at the end.

    Raises:
        UsageError: a window or a batch of less than 1.
        RecordError: the first bad record, after those before it.
        BlendkitError: what is wrong with the run as a whole, after all records.
    """
    expect_at_least({"window": 1, "batch_tokens": 1}, {"window": window, "batch_tokens": batch_tokens})
    lines = (_line(place, record) for place, record in enumerate(records))
    # A caller's generator runs in the caller's thread, as it may hold a cursor or another stage.
    plan = Plan(window or stage.in_flight, batch_tokens or stage.batch_tokens, ahead=isinstance(records, list | tuple))
    try:
        for done in stage.passing(process(stage, lines, plan)):
            for line in done:
                yield line.record
    finally:
        plan.close()
        stage.close()
    if not stage.passes_records:
        stage.rows()  # they bring notes of their own
    for warning in stage.warnings():
        warnings.warn(warning, BlendkitWarning, stacklevel=_level_of_caller())
    if (account := stage.account()) and (fault := account.fault()):
        raise fault


def _level_of_caller() -> int:
    """How many frames above the function that asks the code is that is not blendkit's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "blendkit":
        frame, level = frame.f_back, level + 1
    return level


def _line(place: int, record: Record) -> Line | BadLine:
    try:
        check_is_record(record)
        record = copied(record)
        record.setdefault("id", str(place + 1))
        validate(record)
    except RecordError as error:
        return BadLine(place + 1, b"", RecordError("", f"{place_of(place)}: {error}"))
    return Line(place + 1, b"", record)
