"""Time and peak memory of `evaluate` with all that it says of judges, on made-up streams of so many verdicts.

    bin/bench trust [--verdicts 100000]

Two models, three judges that see both orders, labels on all pairs: six verdicts a record. Ends with 1 where the memory is more than 600 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation" / "audit"))
from simulated import biased_stream

A_RECORD, PART = 6, 500
ALL = ["--audit", "human", "--ratings", "--correct-with", "human", "--control", "length,markdown", "--frontier", "r", "--baseline", "r"]
PRICES = "[ours-7b]\nprice_in = 1\nprice_out = 4\n[other-7b]\nprice_in = 2\nprice_out = 8\n"


def write(path: Path, records: int) -> None:
    """Records with a ranking and usage beside their verdicts; every tenth has no label, so that there are pairs to draw."""
    with path.open("wb") as file:
        for part in range(0, records, PART):
            for number, record in enumerate(biased_stream(part, min(PART, records - part)), part):
                record |= {"id": str(number), "instruction": "i", "ranks": {"r": [1, 2] if number % 2 else [2, 1]}}
                for candidate in record["candidates"]:
                    candidate["usage"] = {"prompt_tokens": 100, "completion_tokens": len(candidate["text"])}
                if number % 10 == 0:
                    del record["human"]
                file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def measured(verdicts: int, folder: Path) -> tuple[float, float]:
    """(seconds, peak MB) of one run over a stream of so many verdicts."""
    stream, prices = folder / "judged.jsonl", folder / "prices.toml"
    write(stream, verdicts // A_RECORD)
    prices.write_text(PRICES)
    files = ["--prices", str(prices), "--label-next", str(folder / "forms.csv"), "--report", str(folder / "out"), "--plot", str(folder / "p.svg")]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "blendkit", "evaluate", "-q", "-i", str(stream), "-o", str(folder / "tables.jsonl"), *ALL, *files]
    manifest = folder / "manifest.json"
    subprocess.run([*command, "--manifest", str(manifest)], stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin, orjson.loads(manifest.read_bytes())["peak_memory_bytes"]["process"] / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory = measured(asked.verdicts, Path(folder))
    print(f"{asked.verdicts:,} verdicts: {seconds:.1f} s, {memory:.0f} MB")
    sys.exit(memory > 600)


if __name__ == "__main__":
    main()
