"""What a pipe costs whose stages compute on the same cores: seconds of its stages one after the other, and of the whole pipe.

    bin/bench pipe [--records 20] [--window 4] [--rounds 1]

pair | rank | fuse | score | judge with the embedded model, on dev records of eleven candidates (the repository's examples where those are
not at hand). Each round runs the stages one after the other, the pipe as it is by default (in turns), and the pipe with all cores for each
stage, first with GNU OpenMP's own wait of idle threads, then with blendkit's short one. Start-up is in all figures: `import torch` and the
models, in each stage. Small windows make the stages of a short stream work side by side, as those of a long one do.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from pair import DEV, EXAMPLES

from blendkit.pipeline.turns import cores

STAGES = {
    "pair": ["--schedule", "swiss:4"],
    "rank": ["--top", "3"],
    "fuse": ["--model", "consensus"],
    "score": ["--metric", "bertscore", "--metric", "bleu"],
    "judge": ["--model", "embedded", "--schedule", "swiss:4"],
}


ALL = str(len(cores()))
# What GNU OpenMP does where nothing is said.
LONG_WAIT = {"GOMP_SPINCOUNT": "300000"}


def command(name: str, window: int, threads: str | None = None) -> list[str]:
    """The stage in this interpreter; `rank` runs no model."""
    forced = ["--threads", threads] if threads and name != "rank" else []
    return [sys.executable, "-m", "blendkit", name, *STAGES[name], "-q", "--window", str(window), *forced]


def in_turn(source: Path, folder: Path, window: int) -> dict[str, float]:
    """Seconds of each stage, which reads the file that the one before it has written."""
    seconds = {}
    for name in STAGES:
        started, target = time.monotonic(), folder / f"{name}.jsonl"
        with source.open("rb") as given, target.open("wb") as taken:
            subprocess.run(command(name, window), stdin=given, stdout=taken, check=True)
        seconds[name] = time.monotonic() - started
        source = target
    return seconds


def piped(source: Path, target: Path, window: int, threads: str | None, env: dict[str, str]) -> tuple[float, float]:
    """Seconds of the whole pipe, and until its first record came out."""
    started = time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    with source.open("rb") as given:
        for name in STAGES:
            before = running[-1].stdout if running else given
            running.append(subprocess.Popen(command(name, window, threads), stdin=before, stdout=subprocess.PIPE, env={**os.environ, **env}))
            before.close()
    first = 0.0
    with target.open("wb") as taken:
        for line in running[-1].stdout:
            first = first or time.monotonic() - started
            taken.write(line)
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"exit codes {codes}")
    return time.monotonic() - started, first


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(prog="bin/bench pipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--window", type=int, default=4, help="of every stage")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print("| records | how | seconds | to the first record | of the stages one after the other |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="blendkit-pipe-") as name:
        folder = Path(name)
        source = folder / "given.jsonl"
        with gzip.open(DEV) if DEV.is_file() else EXAMPLES.open("rb") as lines:
            source.write_bytes(b"".join(islice(lines, options.records)))
        for _ in range(options.rounds):
            stages = in_turn(source, folder, options.window)
            whole, before = sum(stages.values()), sum(seconds for stage, seconds in stages.items() if stage != "judge")
            told = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
            print(f"| {options.records} | one after the other ({told}) | {whole:.1f} | after {before:.1f} | 1 |", flush=True)
            for how, threads, env in (
                ("pipe", None, {}),
                (f"pipe, --threads {ALL}, OpenMP's own wait", ALL, LONG_WAIT),
                (f"pipe, --threads {ALL}", ALL, {}),
            ):
                seconds, first = piped(source, folder / "piped.jsonl", options.window, threads, env)
                same = (folder / "piped.jsonl").read_bytes() == (folder / "judge.jsonl").read_bytes()
                print(f"| {options.records} | {how}{'' if same else ' (OTHER OUTPUT)'} | {seconds:.1f} | {first:.1f} | {seconds / whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
