"""What the way to other processes costs, through a stage that does nothing, in this process and by workers; and how many GPUs it keeps busy.

    bin/bench engines [--records 20000] [--workers 2] [--ray]
    bin/bench engines --simulate 64 [--rate 1490] [--pairs 110] [--seconds 20]

--simulate has as many workers as there would be GPUs, which sleep for the time in which one would compute `pairs` comparisons a record at
`rate` comparisons a second. All else is as in a run: lines of a file are read and checked and sent through sockets, finished lines sent back
and written. Since two cores cannot hold 64 processes, the workers are threads of two other processes, which
use the cores that the one that sends and writes would have for itself: it has a machine's less than it would have.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import orjson
from stream import records

from blendkit.pipeline.engines import distributed
from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.engines.pool import Distributed, Pool
from blendkit.pipeline.engines.worker import Asking, Served, pickled
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.runner import process
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.records import as_line
from blendkit.streams import collect_seldom
from blendkit.streams.lines import Line

HOSTS = 2


class Idle(Stage):
    """Touches each record."""

    name = "idle"

    def finish(self, record, results):
        record["touched"] = True


@dataclass
class Modelled(Stage):
    """Sleeps for as long as a GPU would compare, and adds comparisons as `pair` does."""

    rate: float
    pairs: int
    window: int
    name = "modelled"

    def __post_init__(self):
        rng = random.Random(0)
        places = itertools.islice(itertools.cycle(itertools.permutations(range(11), 2)), self.pairs)
        self.compared = [[i, j, round(rng.gauss(0, 1), 6)] for i, j in places]
        self.job = Job("modelled", self.compute, budgeted=False)

    def compute(self, payloads):
        time.sleep(len(payloads) * self.pairs / self.rate)
        return payloads

    def plan(self, record):
        return [Work(self.job, record["id"], 1, None)]

    def finish(self, record, results):
        record["comparisons"] = {"pairrm": {"pairs": self.compared, "model": "modelled", "schedule": "full"}}


def host(connections, stage: bytes) -> None:
    """Some of the workers, a thread each, until they are killed."""

    def serve(connection):
        served = Served(stage)
        while True:
            connection.send(served.answer(*connection.recv()))

    threads = [threading.Thread(target=serve, args=(connection,), daemon=True) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Simulated(Pool):
    """Workers that sleep, in a few processes."""

    def __init__(self, make, options: EngineOptions) -> None:
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(options.workers)]
        self.near = [near for near, _ in pipes]
        ends = [far for _, far in pipes]
        self.hosts = [spawn.Process(target=host, args=(ends[number::HOSTS], pickled(make)), daemon=True) for number in range(HOSTS)]
        for one in self.hosts:
            one.start()
        # The hosts have them now: one that dies is met as an end of its pipes.
        for end in ends:
            end.close()
        super().__init__(make, options)

    def start(self, place: int) -> Asking:
        connection = self.near[place]

        def ask(question, arguments):
            connection.send((question, arguments))
            return connection.recv()

        return Asking(ask, lambda: None)

    def close(self) -> None:
        super().close()
        for one in self.hosts:
            one.kill()
            one.join()


def simulated(folder: Path, workers: int, rate: float, pairs: int, seconds: float, window: int) -> tuple[int, float, float]:
    """Records, seconds, and the share of the workers' time in which they computed; the output is `out.jsonl`."""
    # As many windows for each worker: that some are idle at the very end is of no weight in a long run.
    count = max(1, round(seconds * rate / pairs / window)) * window * workers
    made = [
        {name: record[name] for name in ("id", "instruction", "input", "output", "candidates")} for record in records(500, Path(__file__).read_text().split())
    ]
    with (folder / "in.jsonl").open("wb") as file:
        for number in range(count):
            file.write(orjson.dumps(made[number % len(made)] | {"id": f"simulated/{number}"}, option=orjson.OPT_APPEND_NEWLINE))
    pool = Simulated(partial(Modelled, rate, pairs, window), EngineOptions(workers=workers))
    started = time.monotonic()
    run_stage(lambda: Distributed(pool), RunOptions(command="modelled", input=str(folder / "in.jsonl"), output=str(folder / "out.jsonl"), quiet=True))
    taken = time.monotonic() - started
    return count, taken, count * pairs / rate / (workers * taken)


def ways(options) -> None:
    """Records/s through a stage that does nothing."""
    made = list(records(2000, Path(__file__).read_text().split()))
    size = sum(len(orjson.dumps(record)) for record in made) / len(made)
    print(f"{options.records:,} records of {size / 1000:.1f} kB\n\n| engine | records/s | MB/s |\n|---|---|---|")
    engines = {"this process": EngineOptions(), f"local, {options.workers} workers": EngineOptions(workers=options.workers)}
    if options.ray:
        engines[f"Ray, {options.workers} workers"] = EngineOptions(engine="ray", workers=options.workers)
    # As a reader has them: the clock does not count lines made for the way to a worker.
    read = [(as_line(record).rstrip(b"\n"), record) for record in made]
    for name, engine in engines.items():
        stage = distributed(Idle, engine)
        lines = (Line(number, *read[number % len(read)]) for number in range(options.records))
        started = time.monotonic()
        for done in process(stage, lines, Plan(window=stage.window)):
            b"".join(line.written() for line in done)
        rate = options.records / (time.monotonic() - started)
        stage.close()
        print(f"| {name} | {rate:,.0f} | {rate * size / 1e6:,.0f} |")


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(prog="bin/bench engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--simulate", type=int, metavar="GPUS")
    parser.add_argument("--rate", type=float, default=1490, help="comparisons a second and GPU, 1490 (docs/scaling.md)")
    parser.add_argument("--pairs", type=int, nargs="+", default=[110], help="comparisons a record")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--window", type=int, default=8, help="records a window, 8 as `pair`'s own for a ranker that reads each pair")
    options = parser.parse_args()
    # As the console script does.
    collect_seldom()
    if not options.simulate:
        ways(options)
        return
    print("| workers | comparisons a record | records | records/s | busy |\n|---|---|---|---|---|")
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory(prefix="blendkit-engines-") as folder:
            count, taken, busy = simulated(Path(folder), options.simulate, options.rate, pairs, options.seconds, options.window)
        print(f"| {options.simulate} | {pairs} | {count:,} | {count / taken:,.0f} | {busy:.1%} |", flush=True)


if __name__ == "__main__":
    main()
