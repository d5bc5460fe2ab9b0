"""What the way to other processes costs: records/s through a stage that does nothing, in this process and by workers.

bin/bench engines [--records 20000] [--workers 2] [--ray]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import orjson
from stream import records

from blendkit.pipeline.engines import distributed
from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import process
from blendkit.pipeline.stage import Stage
from blendkit.streams.lines import Line


class Idle(Stage):
    """Touches each record."""

    name = "idle"

    def finish(self, record, results):
        record["touched"] = True


def main() -> None:
    parser = argparse.ArgumentParser(prog="bin/bench engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    made = list(records(2000, Path(__file__).read_text().split()))
    size = sum(len(orjson.dumps(record)) for record in made) / len(made)
    print(f"{options.records:,} records of {size / 1000:.1f} kB\n\n| engine | records/s | MB/s |\n|---|---|---|")
    engines = {"this process": EngineOptions(), f"local, {options.workers} workers": EngineOptions(workers=options.workers)}
    if options.ray:
        engines[f"Ray, {options.workers} workers"] = EngineOptions(engine="ray", workers=options.workers)
    for name, engine in engines.items():
        stage = distributed(Idle, engine)
        lines = (Line(number, b"", made[number % len(made)]) for number in range(options.records))
        started = time.monotonic()
        for done in process(stage, lines, Plan(window=stage.window)):
            b"".join(orjson.dumps(line.record) for line in done)
        rate = options.records / (time.monotonic() - started)
        stage.close()
        print(f"| {name} | {rate:,.0f} | {rate * size / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
