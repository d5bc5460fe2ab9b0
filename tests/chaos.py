"""Kills random parts of a running pipe, resumes it until it is done, and compares with the undisturbed run.

    bin/chaos [--rounds 20] [--seed 0] [--copies 24] [--model embedded]

The pipe is score | pair --workers 2 -o paired.jsonl --resume, then rank | fuse | judge -o out.jsonl --resume. In each round its
processes, workers too, get SIGKILL or SIGTERM at random times until one of the commands has ended. Ends with 0 when nothing was
lost, and nothing is there twice.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import orjson
from comparing import close

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "candidates.jsonl"
BLENDKIT = [sys.executable, "-m", "blendkit"]


def halves(folder: Path, model: str, workers: int) -> list[list[list[str]]]:
    """The pipe's two halves, each a list of commands; the last of each writes a file, and goes on where that ends."""
    paired, out = str(folder / "paired.jsonl"), str(folder / "out.jsonl")
    score = [*BLENDKIT, "score", "--metric", "rouge2", "-i", str(folder / "in.jsonl")]
    pair = [*BLENDKIT, "pair", "--model", model, "--window", "4", "--workers", str(workers), "-o", paired, "--resume"]
    rank, fuse = [*BLENDKIT, "rank", "-i", paired], [*BLENDKIT, "fuse"]
    return [[score, pair], [rank, fuse, [*BLENDKIT, "judge", "--window", "4", "-o", out, "--resume"]]]


def start(commands: list[list[str]]) -> list[subprocess.Popen[bytes]]:
    """The commands with pipes between them."""
    processes: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands):
        source = processes[-1].stdout if processes else subprocess.DEVNULL
        target = subprocess.PIPE if number < len(commands) - 1 else None
        processes.append(subprocess.Popen(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL))
        if number:
            processes[-2].stdout.close()  # type: ignore[union-attr]
    return processes


def children(pid: int) -> list[int]:
    """Of a process, where /proc tells."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def disturbed(commands: list[list[str]], rng: random.Random, longest: float) -> str:
    """Runs the commands and kills parts of them until one of the commands ends; says what was killed, or nothing."""
    processes = start(commands)
    said = []
    while True:
        time.sleep(rng.uniform(0, longest))
        alive = {process.pid: str(process.args[3]) for process in processes if process.poll() is None}  # type: ignore[index]
        if len(alive) < len(processes):
            break
        victims = [*alive.items(), *((child, "a worker") for pid in alive for child in children(pid))]
        (pid, name), number = rng.choice(victims), rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            said.append(f"{number.name} to {name}")
        if pid in alive:
            break
    for process in processes:
        process.wait(timeout=300)
    return ", ".join(said)


def undisturbed(commands: list[list[str]]) -> None:
    """Runs the commands to their end."""
    codes = [process.wait() for process in start(commands)]
    if any(codes):
        sys.exit(f"chaos: an undisturbed run ended with {codes}")


def read(path: Path) -> list[dict]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bin/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--copies", type=int, default=24, help="of the 12 example records")
    parser.add_argument("--longest", type=float, default=6.0, help="seconds before a kill, at most")
    parser.add_argument("--model", default="embedded")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder, calm = (Path(tempfile.mkdtemp(prefix="blendkit-chaos-")) for _ in range(2))
    records = [orjson.loads(line) for line in EXAMPLES.read_bytes().splitlines()]
    stream = [record | {"id": f"{copy}/{record['id']}"} for copy in range(options.copies) for record in records]
    for place in (folder, calm):
        (place / "in.jsonl").write_bytes(b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in stream))
    first, second = halves(folder, options.model, 2)
    for number in range(options.rounds):
        # The second half reads what the first one has so far: an upstream that is not done yet.
        half = first if number % 3 < 2 else second
        if half is second and not (folder / "paired.jsonl").exists():
            half = first
        said = disturbed(half, rng, options.longest)
        done = [len((folder / name).read_bytes().splitlines()) if (folder / name).exists() else 0 for name in ("paired.jsonl", "out.jsonl")]
        print(f"round {number + 1:2}: {said or 'done before anything was killed'}; {done[0]} paired, {done[1]} judged", flush=True)
    undisturbed(first)
    undisturbed(second)
    for half in halves(calm, options.model, 1):
        undisturbed(half)
    found, expected = read(folder / "out.jsonl"), read(calm / "out.jsonl")
    ids = [record["id"] for record in found]
    lost, twice = len({record["id"] for record in stream} - set(ids)), len(ids) - len(set(ids))
    # Batches fall otherwise after a kill, so that floats differ a little.
    different = sum(not close(one, other) for one, other in zip(found, expected, strict=False))
    print(f"{options.rounds} rounds: {len(stream)} records, {lost} lost, {twice} there twice, {different} different from the undisturbed run")
    if lost or twice or different or len(found) != len(stream):
        sys.exit(f"chaos: the files are in {folder} and {calm}")
    for place in (folder, calm):
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
