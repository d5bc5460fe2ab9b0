"""What the engines share: windows go to workers, results come back in order, and a dead worker's window goes to another.

A worker runs the very code of the local engine on its window (`do_window`), with all bad records noted instead of told;
this side tells them in the order of the stream, so that messages, exit codes and rejects are those of one process.
"""

from __future__ import annotations

import heapq
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from blendkit.errors import BlendkitError, RecordError, WorkerLost
from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.plan import Plan, Window
from blendkit.pipeline.runner import do_window
from blendkit.pipeline.stage import Account, Stage
from blendkit.records import as_line, read
from blendkit.streams.counts import Counts
from blendkit.streams.lines import BadLine, Line

# When a window has ended this many workers, it ends the run.
TRIES = 3

# What travels: a line's number with the line, which is sent faster than the record that it was read as, or with what is wrong with it.
Slim = tuple[int, bytes | RecordError]


@dataclass
class Outcome:
    """What became of a window: the lines of finished records by number, bad lines in the order they were found, the fault that ended it."""

    done: list[tuple[int, bytes]]
    bad: list[tuple[int, RecordError]]
    fault: BaseException | None
    counts: Counts


@dataclass
class About:
    """What this side must know of the stage that the workers have."""

    name: str
    window: int
    batch_tokens: int
    passes_records: bool


@dataclass
class Said:
    """What a worker's stage says at the end: its account of itself, its warnings, and what the run is judged by."""

    described: dict[str, Any]
    warnings: list[str]
    account: Account | None


class WorkerDied(Exception):
    """A worker ended before its answer; `reason` says how."""


class Worker(Protocol):
    """A replica of the stage outside this process. Every call raises WorkerDied when the replica is gone."""

    def about(self) -> About: ...

    def work(self, window: list[Slim], batch_tokens: int) -> Outcome: ...

    def describe(self) -> Said: ...

    def end(self) -> None: ...


class Replica:
    """The far side: a stage and its plan, which remembers what memory allowed."""

    def __init__(self, make: Callable[[], Stage]) -> None:
        self.stage = make()
        self.plan: Plan | None = None

    def about(self) -> About:
        """What the pool must know of this replica's stage."""
        return About(self.stage.name, self.stage.window, self.stage.batch_tokens, self.stage.passes_records)

    def work(self, window: list[Slim], batch_tokens: int) -> Outcome:
        """One window, its bad records left out; what is worse than a bad record is the outcome's fault."""
        bad: list[tuple[int, RecordError]] = []
        if self.plan is None:
            self.plan = Plan(batch_tokens=batch_tokens)
        self.plan.counts = Counts()
        self.plan.on_bad = lambda line: bad.append((line.number, line.error))
        lines: Window = [BadLine(number, b"", what) if isinstance(what, RecordError) else Line(number, b"", read(what, number)) for number, what in window]
        done, fault = do_window(self.stage, lines, self.plan)
        return Outcome([(line.number, as_line(line.record)) for line in done], bad, fault, self.plan.counts)

    def describe(self) -> Said:
        """What the stage says at the end."""
        return Said(self.stage.described(), self.stage.warnings(), self.stage.account())


class Idle:
    """Workers that wait for windows. The earliest window that waits gets the next one: while it is not done, none behind it can be written or make room."""

    def __init__(self) -> None:
        self._lock, self._numbers = threading.Lock(), count()
        self._workers: deque[tuple[int, Worker]] = deque()
        self._waiting: list[tuple[int, int, queue.SimpleQueue[tuple[int, Worker]]]] = []

    def put(self, place: int, worker: Worker) -> None:
        """This worker is idle."""
        with self._lock:
            if self._waiting:
                heapq.heappop(self._waiting)[2].put((place, worker))
            else:
                self._workers.append((place, worker))

    def get(self, line: int) -> tuple[int, Worker]:
        """A worker and its place for the window that begins with this line, once there is one."""
        mine: queue.SimpleQueue[tuple[int, Worker]] = queue.SimpleQueue()
        with self._lock:
            if self._workers:
                return self._workers.popleft()
            heapq.heappush(self._waiting, (line, next(self._numbers), mine))
        return mine.get()

    def all(self) -> dict[int, Worker]:
        """Takes all that are idle now."""
        with self._lock:
            found = dict(sorted(self._workers, key=lambda one: one[0]))
            self._workers.clear()
        return found


class Pool(ABC):
    """Workers that wait for windows. Threads may call `work` side by side."""

    def __init__(self, make: Callable[[], Stage], options: EngineOptions) -> None:
        """Starts the workers, and waits until each has its stage."""
        self.make, self.options = make, options
        self._idle = Idle()
        self.workers: dict[int, Worker] = {}
        self._closed = False
        try:
            for place in range(options.workers):
                self.workers[place] = self.start(place)
            for place, worker in self.workers.items():
                try:
                    self.about = worker.about()
                except WorkerDied as error:
                    raise WorkerLost(f"a worker ended before it had its model: {error}") from error
                self._idle.put(place, worker)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def start(self, place: int) -> Worker:
        """A new worker; returns at once."""

    def work(self, window: list[Slim], batch_tokens: int) -> Outcome:
        """The window's outcome from the next idle worker; when that worker dies, another one tries.

        Raises:
            WorkerLost: several workers ended over this window.
        """
        reason = ""
        for _ in range(TRIES):
            place, worker = self._idle.get(window[0][0])
            try:
                return worker.work(window, batch_tokens)
            except WorkerDied as error:
                if self._closed:
                    break
                reason = str(error)
                worker = self.workers[place] = self.start(place)
            finally:
                # Whatever happened, the place is free for the next window.
                self._idle.put(place, worker)
        raise WorkerLost(
            f"{TRIES} workers ended over the records of the lines {window[0][0]} to {window[-1][0]} ({reason}); "
            "if memory ran out, take fewer --workers or a smaller --batch-tokens"
        )

    def describe(self) -> dict[int, Said]:
        """What each idle worker says; busy workers are not waited for."""
        found = {}
        for place, worker in self._idle.all().items():
            with suppress(WorkerDied):
                found[place] = worker.describe()
        return found

    def close(self) -> None:
        """Ends all workers."""
        self._closed = True
        for worker in self.workers.values():
            worker.end()
        self.workers = {}


class Distributed(Stage):
    """A stage whose windows a pool works on, several at a time."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        # To the runner this stage looks like the workers' stage.
        self.name = pool.about.name  # type: ignore[misc]
        self.window, self.passes_records = pool.about.window, pool.about.passes_records
        self.batch_tokens = pool.about.batch_tokens
        # Two windows a worker: one in work, one that waits for its turn, so that no worker waits for a slow window before its own.
        self.overlap = 2 * pool.options.workers
        self._said: dict[int, Said] = {}
        self._account: Account | None = None

    def elsewhere(self, window: Window, plan: Plan) -> tuple[list[Line], BaseException | None]:
        """Sends the window to a worker, and reports its bad records from here."""
        slim: list[Slim] = [(line.number, line.error if isinstance(line, BadLine) else line.raw) for line in window]
        for line in window:
            # Two windows a worker are on their way: as lines they are small, and give Python's garbage collector one object a record.
            if isinstance(line, Line):
                line.record = {"id": line.record["id"]}
        outcome = self.pool.work(slim, plan.batch_tokens)
        by_number = {line.number: line for line in window}
        fault, end = outcome.fault, float("inf")
        for number, error in outcome.bad:
            try:
                if plan.on_bad is None:
                    raise error
                plan.on_bad(BadLine(number, by_number[number].raw, error))
                plan.counts.add(skipped=1)
            except BlendkitError as fatal:
                if number < end:
                    fault, end = fatal, number
        done = []
        for number, text in outcome.done:
            if number < end:
                line = by_number[number]
                assert isinstance(line, Line)
                line.text = text
                done.append(line)
        plan.counts.add(**{name: number for name, number in outcome.counts.described().items() if name != "skipped"})
        return done, fault

    def close(self) -> None:
        """Asks the workers what they did, and ends them."""
        if self.pool.workers:
            self._said = self.pool.describe()
            for account in (said.account for said in self._said.values()):
                if self._account is None:
                    self._account = account
                elif account is not None:
                    self._account.merge(account)
            self.pool.close()

    def describe(self) -> dict[str, Any]:
        """The first worker's account and the engine; with several workers also the account of each, which counts its own records only."""
        accounts = [said.described for said in self._said.values()]
        if not accounts and self.pool.workers:
            # Before it has done anything: one speaks for all.
            try:
                accounts = [next(iter(self.pool.workers.values())).describe().described]
            except WorkerDied as error:
                raise WorkerLost(f"a worker ended before it had done anything: {error}") from error
        engine = {"engine": self.pool.options.engine, "workers": self.pool.options.workers}
        return {**(accounts[0] if accounts else {}), **engine, **({"by_worker": accounts} if len(accounts) > 1 else {})}

    def warnings(self) -> list[str]:
        """The warnings of all workers, each about its own records."""
        total = self.pool.options.workers
        return [f"worker {place + 1} of {total}: {line}" if total > 1 else line for place, said in self._said.items() for line in said.warnings]

    def account(self) -> Account | None:
        """That of all workers together."""
        return self._account
