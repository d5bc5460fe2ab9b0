"""How near `generate` comes to the ideal rate of an endpoint, and what it costs the client.

A server on the loopback interface answers after a fixed time; the ideal is concurrency / latency. Time and processor
time are of the whole stage: records in, requests, cache, records out.

    bin/bench generate
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(latency: float) -> None:
    from hostile import HostileServer

    print(HostileServer(latency=latency).url, flush=True)
    sys.stdin.read()


def main() -> None:
    options = arguments()
    if options.serve:
        serve(options.latency)
        return
    from pair import processor

    from blendkit.generators.generating import Generating
    from blendkit.generators.options import EndpointOptions, Sampling
    from blendkit.pipeline.runner import apply
    from blendkit.streams.lines import Writer

    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--latency", str(options.latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    prompts = [{"id": str(number), "instruction": f"question {number}: " + "why " * 50} for number in range(options.records)]
    print(f"{options.records} records, {options.concurrency} at a time, {options.latency * 1000:.0f} ms an answer, on {processor()}")
    ideal = options.concurrency / options.latency
    for cached in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            cache = f"{folder}/cache.sqlite" if cached else None
            stage = Generating(["m=openai:x"], Sampling(), EndpointOptions(base_url=url, concurrency=options.concurrency, cache=cache))
            list(apply(stage, [dict(prompts[0]) | {"id": "first"}]))
            writer = Writer(f"{folder}/out.jsonl")
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            writer.write(apply(stage, (json.loads(json.dumps(prompt)) for prompt in prompts)))
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF)
            cores = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds
            rate = options.records / seconds
            print(f"{'with' if cached else 'without'} cache: {rate:,.0f} answers/s, {rate / ideal:.0%} of the ideal {ideal:,.0f}; client: {cores:.2f} cores")
    assert isinstance(server.stdin, io.TextIOWrapper)
    server.stdin.close()
    server.wait(timeout=10)


if __name__ == "__main__":
    main()
