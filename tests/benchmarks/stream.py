"""How fast records stream through the stages that run no model, beside a bare loop of orjson over the same file in the same run.

    bin/bench stream [--records 200000] [--folder DIR] [--runs 1]
    bin/bench stream --lengths 50000,200000,1000000     peak memory of streams of these lengths
    bin/bench stream --pipe 5000                        the pipe with the embedded ranker, its memory sampled while it runs

Synthetic records: eleven candidates, all 110 comparisons, scores of two metrics, verdicts of a judge on all 55 pairs; about 10 kB each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

BARE = """
import sys, orjson
out = open(sys.argv[2], "wb", buffering=1 << 20)
with open(sys.argv[1], "rb") as source:
    for line in source:
        out.write(orjson.dumps(orjson.loads(line), option=orjson.OPT_APPEND_NEWLINE))
"""
# The same records over and over, with new ids.
FEED = """
import sys, itertools
count, out = int(sys.argv[2]), sys.stdout.buffer
for turn in itertools.count():
    with open(sys.argv[1], "rb") as source:
        for line in itertools.islice(source, count):
            out.write(line.replace(b'"id":"', b'"id":"%d/' % turn, 1))
            count -= 1
    if not count:
        break
"""
MODELS = [f"model-{letter}" for letter in "abcdefghijk"]


def records(count: int, words: list[str]):
    """Made-up records, the same every time; texts are drawn from a pool, so that making them is quick."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(10, 100))) for _ in range(2000)]
    n = len(MODELS)
    for number in range(count):
        quality = [rng.gauss(0, 1) for _ in MODELS]
        pairs = [[i, j, round(quality[i] - quality[j] + rng.gauss(0, 1), 6)] for i, j in itertools.permutations(range(n), 2)]
        verdicts = [
            {"a": i, "b": j, "verdict": "A" if quality[i] + rng.gauss(0, 1) > quality[j] else "B", "shown": [i, j]}
            for i, j in itertools.combinations(range(n), 2)
        ]
        yield {
            "id": f"synthetic/{number}",
            "instruction": rng.choice(texts),
            "input": "",
            "output": rng.choice(texts),
            "candidates": [
                {"model": model, "text": rng.choice(texts), "scores": {"bleu": round(50 + 10 * q, 4), "bertscore": round(0.8 + q / 20, 6)}}
                for model, q in zip(MODELS, quality, strict=True)
            ],
            "comparisons": {"pairrm": {"pairs": pairs, "model": "synthetic", "schedule": "full"}},
            "verdicts": {"gpt": verdicts},
        }


def run(command: list[str], feed: list[str] | None = None) -> tuple[float, float]:
    """Seconds and peak megabytes of a process, with the output of `feed` as its input."""
    started = time.monotonic()
    feeding = subprocess.Popen(feed, stdout=subprocess.PIPE) if feed else None
    process = subprocess.Popen(command, stdin=feeding.stdout if feeding else None, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{said}")
    return time.monotonic() - started, used.ru_maxrss / 1024


def lengths(folder: Path, counts: list[int]) -> None:
    """Runs the stages that keep something of each record on streams of these lengths, and prints the peak memory of each."""
    source = folder / "synthetic.jsonl"
    write(source, records(min(counts), Path(__file__).read_text().split()))
    print("| stage | " + " | ".join(f"{count:,} records, MB" for count in counts) + " |\n|---" + "|---" * len(counts) + "|")
    for name in ("check", "rank", "evaluate"):
        command = [sys.executable, "-m", "blendkit", name, "-q"]
        peaks = [run(command, [sys.executable, "-c", FEED, str(source), str(count)])[1] for count in counts]
        print(f"| {name} | " + " | ".join(f"{peak:,.0f}" for peak in peaks) + " |", flush=True)


def write(path: Path, found) -> None:
    """Records as JSON lines."""
    with path.open("wb", buffering=1 << 20) as file:
        for record in found:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def tokenizing(source: Path, count: int) -> tuple[float, float, int]:
    """Records, megabytes and tokens a second of the embedded ranker's tokenizer in one thread: x and each candidate once, as `pair` does."""
    from blendkit.rankers.pairranker import PairRanker
    from blendkit.records import source_text

    inputs = PairRanker("embedded", device="cpu").inputs
    with source.open("rb") as file:
        lines = list(itertools.islice(file, count))
    tokens, started = 0, time.monotonic()
    for line in lines:
        record = orjson.loads(line)
        x = inputs.source(source_text(record))
        tokens += len(x) + sum(map(len, inputs.candidates([candidate["text"] for candidate in record["candidates"]], x)))
    seconds = time.monotonic() - started
    return len(lines) / seconds, sum(map(len, lines)) / 1e6 / seconds, int(tokens / seconds)


def endurance(folder: Path, count: int) -> None:
    """Runs score | pair | rank | evaluate, and prints what memory each held in the quarters of the run."""
    source = folder / "pipe.jsonl"
    keep = ("id", "instruction", "input", "output", "candidates")
    write(source, ({name: record[name] for name in keep} for record in records(count, Path(__file__).read_text().split())))
    blendkit = [sys.executable, "-m", "blendkit"]
    commands = {
        "score": ["score", "--metric", "rouge2", "-i", str(source)],
        "pair": ["pair", "--schedule", "swiss:1", "--dtype", "bfloat16"],
        "rank": ["rank"],
        "evaluate": ["evaluate", "--oracle", "rouge2"],
    }
    running: dict[str, subprocess.Popen[bytes]] = {}
    before: subprocess.Popen[bytes] | None = None
    started = time.monotonic()
    for name, command in commands.items():
        target = subprocess.DEVNULL if name == "evaluate" else subprocess.PIPE
        now = subprocess.Popen([*blendkit, *command, "-q"], stdin=before.stdout if before else None, stdout=target, stderr=subprocess.DEVNULL)
        if before and before.stdout:
            before.stdout.close()
        running[name] = before = now
    held: dict[str, list[int]] = {name: [] for name in commands}
    while running["evaluate"].poll() is None:
        for name, process in running.items():
            if process.poll() is None:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                held[name].append(pages * os.sysconf("SC_PAGE_SIZE") >> 20)
        time.sleep(1)
    codes = {name: process.wait() for name, process in running.items()}
    seconds = time.monotonic() - started
    print(f"{count:,} records in {seconds:.0f} s ({count / seconds:.1f}/s), exit codes {codes}\n")
    print("| stage | MB in the quarters of its run, the most in each | | | |\n|---|---|---|---|---|")
    for name, values in held.items():
        quarter = max(1, len(values) // 4)
        print(f"| {name} | " + " | ".join(str(max(values[start : start + quarter], default=0)) for start in range(0, 4 * quarter, quarter)) + " |")


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--folder", help="where the files lie; a temporary one otherwise")
    parser.add_argument("--lengths", metavar="RECORDS,RECORDS,…", help="measure peak memory of streams of these lengths instead")
    parser.add_argument("--pipe", type=int, metavar="RECORDS", help="run the pipe instead, on so many records")
    parser.add_argument("--runs", type=int, default=1, help="the best of so many")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="blendkit-stream-"))
    folder.mkdir(parents=True, exist_ok=True)
    source, out = folder / "synthetic.jsonl", folder / "out.jsonl"
    blendkit = [sys.executable, "-m", "blendkit"]
    try:
        if options.lengths:
            lengths(folder, [int(count) for count in options.lengths.split(",")])
            return
        if options.pipe:
            endurance(folder, options.pipe)
            return
        print(f"writing {options.records:,} records", file=sys.stderr)
        write(source, records(options.records, Path(__file__).read_text().split()))
        parts = [folder / f"part-{number}.jsonl" for number in range(2)]
        for number, part in enumerate(parts):
            run([*blendkit, "rank", "-i", str(source), "-o", str(part), "--shard", f"{number}/2"])
        stages = {
            "bare loads and dumps": [sys.executable, "-c", BARE, str(source), str(out)],
            "check": [*blendkit, "check", "-i", str(source)],
            "rank": [*blendkit, "rank", "-i", str(source), "-o", str(out)],
            "rank --by score:bleu": [*blendkit, "rank", "--by", "score:bleu", "-i", str(source), "-o", str(out)],
            "merge of two parts": [*blendkit, "merge", *map(str, parts), "-i", str(source), "-o", str(out)],
            "evaluate": [*blendkit, "evaluate", "-i", str(source), "-o", str(out)],
        }
        size = source.stat().st_size
        print(f"{options.records:,} records, {size / 1e9:.2f} GB, best of {options.runs}\n")
        print("| stage | records/s | MB/s | time ÷ bare loop | peak memory, MB |\n|---|---|---|---|---|")
        bare = 0.0
        for name, command in stages.items():
            seconds, memory = min(run(command) for _ in range(options.runs))
            bare = bare or seconds
            print(f"| {name} | {options.records / seconds:,.0f} | {size / 1e6 / seconds:,.0f} | {seconds / bare:.2f} | {memory:,.0f} |", flush=True)
        rate, megabytes, tokens = tokenizing(source, 2000)
        print(f"| the embedded ranker's tokenizer, {tokens:,} tokens/s | {rate:,.0f} | {megabytes:,.0f} | | |")
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
