"""What --dtype int8 gains and loses: PairRanker in float32 and in int8 over the same records, in one process.

    bin/bench int8                                  60 dev records, the embedded ranker
    bin/bench int8 --held held.jsonl.gz --every 5   also how far both agree with labels, set by set, of records as docs/experiments has them

Of the records: how many a second of processor time, by turns; how often both have the same best candidate, and the same three best.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
import warnings
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import numpy as np
from pair import DEV, ROOT, processor, read_records

sys.path.insert(0, str(ROOT / "docs" / "experiments"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench int8", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--records", type=int, default=60, help="dev records; none with 0")
    parser.add_argument("--held", type=Path, help="labelled records, JSON lines, with `set` and scores named `oracle`")
    parser.add_argument("--every", type=int, default=1, help="of the labelled records each so many-th")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "int8"], help="the first is what the others are compared with")
    return parser.parse_args()


def compared(stages: dict, records: list[dict], share: int) -> tuple[list[dict], dict[str, float]]:
    """The records with everyone's comparisons, and processor seconds; the types take turns, `share` records at a time."""
    from blendkit.pipeline.runner import apply

    done, seconds = [], dict.fromkeys(stages, 0.0)
    for start in range(0, len(records), share):
        found: dict[str, list[dict]] = {}
        for name, stage in stages.items():
            some = deepcopy(records[start : start + share])
            began = time.process_time()
            found[name] = list(apply(stage, some))
            seconds[name] += time.process_time() - began
        for row in zip(*found.values(), strict=True):
            done.append(row[0] | {"comparisons": {name: record["comparisons"][name] for name, record in zip(stages, row, strict=True)}})
    return done, seconds


def losses(records: list[dict], name: str, base: str) -> dict[str, float]:
    """Percent of records with the same first and the same three first candidates, and differences of logits."""
    from blendkit.aggregate import matrix, max_logits

    first, three, off = [], [], []
    for record in records:
        scores = [max_logits(matrix(record["comparisons"][one]["pairs"], len(record["candidates"]))) for one in (base, name)]
        best = [np.argsort(-np.asarray(values), kind="stable") for values in scores]
        first.append(best[0][0] == best[1][0])
        three.append(set(best[0][:3]) == set(best[1][:3]))
        off += [abs(a[2] - b[2]) for a, b in zip(*(record["comparisons"][one]["pairs"] for one in (base, name)), strict=True)]
    return {
        "same_first": 100 * float(np.mean(first)),
        "same_three": 100 * float(np.mean(three)),
        "mean_difference": float(np.mean(off)),
        "largest_difference": float(np.max(off)),
    }


def main() -> None:
    options = arguments()
    import torch

    from blendkit.errors import BlendkitWarning
    from blendkit.rankers.pairranker import PairRanker

    warnings.simplefilter("ignore", BlendkitWarning)
    base, *others = options.dtypes
    stages = {dtype: PairRanker(options.model, dtype, device="cpu", dtype=dtype) for dtype in options.dtypes}
    compared(stages, read_records(1), 1)
    if options.records:
        records = read_records(options.records)
        done, seconds = compared(stages, records, 4)
        print(f"{options.model}, {len(done)} records of {'dev' if DEV.is_file() else 'docs/examples'}, {torch.get_num_threads()} threads of {processor()}\n")
        print("| | records/s of processor time | ratio | same first | same three | logits differ in the mean by | at most by |\n|---|---|---|---|---|---|---|")
        print(f"| {base} | {len(done) / seconds[base]:.2f} | 1 | | | | |")
        for name in others:
            lost = losses(done, name, base)
            print(
                f"| {name} | {len(done) / seconds[name]:.2f} | {seconds[base] / seconds[name]:.2f} | {lost['same_first']:.1f} % | {lost['same_three']:.1f} % "
                f"| {lost['mean_difference']:.4f} | {lost['largest_difference']:.3f} |",
                flush=True,
            )
    if options.held:
        agreement(options, stages)


def agreement(options: argparse.Namespace, stages: dict) -> None:
    """How far each agrees with the labels, as docs/experiments/people.py has it, and their paired difference."""
    import people

    with (gzip.open if options.held.suffix == ".gz" else open)(options.held) as file:
        records = [json.loads(line) for line in file][:: options.every]
    done, seconds = compared(stages, records, 64)
    by_set = defaultdict(list)
    for record in done:
        if (found := people.counted(record, [*stages])) is not None:
            by_set[record.get("set", "people")].append(found)
    rng = np.random.default_rng(0)
    tables = {name: people.table(np.array(found), rng) for name, found in by_set.items()}
    chosen = {"all sets": tables, "those of people and RMB": {name: tables[name] for name in people.PEOPLE if name in tables}}
    print(f"\n{len(done)} labelled records; " + ", ".join(f"{name} {len(done) / took:.2f} a second" for name, took in seconds.items()))
    for which, parts in chosen.items():
        for place, name in enumerate(stages):
            if parts:
                value, drawn = (np.mean([part[k][..., place, 0] for part in parts.values()], 0) for k in (0, 1))
                print(f"{name}, mean over {which}: agrees {people.with_interval(float(value), drawn)}")
                if place:
                    value, drawn = (np.mean([part[k][..., place, 0] - part[k][..., 0, 0] for part in parts.values()], 0) for k in (0, 1))
                    print(f"{name} over {next(iter(stages))}: {people.with_interval(float(value), drawn, '+')}")


if __name__ == "__main__":
    main()
