"""What the consensus fuser is worth: against the ranker's first choice, the best single LLM and the oracle.

Metrics compare with the reference: BERTScore F1 with the embedded encoder, ROUGE, and the length in characters. Intervals
are of the difference to the ranker's first choice, over records.

    bin/bench consensus                 ../shared/data/dev.jsonl.gz, compared by swiss:4
    bin/bench consensus paired.jsonl    comparisons that are there already
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from rich.console import Console
from rich.table import Table
from schedules import DEV, interval

import blendkit
from blendkit.streams.lines import Line, Reader

METRICS = ("bertscore", "rouge1", "rouge2", "rougeL", "length")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bin/bench consensus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="?", default=str(DEV))
    parser.add_argument("--oracle", default="gpt4_pref")
    options = parser.parse_args()
    if not Path(options.input).is_file():
        sys.exit(f"{options.input} is not there: give a file of records with references, whose candidates have scores.{options.oracle}")
    records = [line.record for line in Reader(options.input).records() if isinstance(line, Line)]
    if "comparisons" not in records[0]:
        records = list(blendkit.pair(records, schedule="swiss:4"))
    for k in (2, 3, 5):
        records = list(blendkit.fuse(blendkit.rank(records, top=k), name=f"consensus, K={k}"))
    records = list(blendkit.score(records, METRICS))
    llms = [candidate["model"] for candidate in records[0]["candidates"] if "sources" not in candidate]
    oracle = np.array([[candidate["scores"][options.oracle] for candidate in record["candidates"][: len(llms)]] for record in records])
    best = int(oracle.mean(axis=0).argmax())
    picks = {
        "first choice of the ranker": [int(np.argmin(record["ranks"]["pairrm"])) for record in records],
        **{f"consensus, K={k}": [len(llms) + place] * len(records) for place, k in enumerate((2, 3, 5))},
        f"best single LLM ({llms[best]})": [best] * len(records),
        f"oracle ({options.oracle})": oracle.argmax(axis=1).tolist(),
    }
    table = Table(title=f"{len(records)} records, fused by the embedded consensus", title_justify="left")
    for column in ("", *METRICS, "BERTScore against the first choice", "ROUGE-2 × 100 against it"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    values = {
        name: np.array([[record["candidates"][index]["scores"][metric] for metric in METRICS] for record, index in zip(records, chosen, strict=True)])
        for name, chosen in picks.items()
    }
    base = next(iter(values.values()))
    for name, found in values.items():
        means = found.mean(axis=0)
        cells = [f"{means[0]:.4f}", *(f"{value:.4f}" for value in means[1:4]), f"{means[4]:,.0f}"]
        table.add_row(name, *cells, interval(100 * (found[:, 0] - base[:, 0])), interval(100 * (found[:, 2] - base[:, 2])))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
