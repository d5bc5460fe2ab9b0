"""What ranking and fusing do for one small real LLM: python realmodel.py prompts DEV > PROMPTS, and python realmodel.py table SCORED > TABLE.

The table of the paper's appendix in small: N samples of one model, a choice among them by every ranker, two fusions, greedy decoding
and the oracles. Intervals are bootstrap 95 % over records, p is approximate randomization against the first sample.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from blendkit.evaluation.statistics import bootstrap, randomization

METRICS = ("rougeL", "chrf", "bertscore")
Record = dict[str, Any]


def prompts(path: str) -> None:
    """Prints the records without their candidates."""
    with gzip.open(path, "rb") as file:
        for line in file:
            record = orjson.loads(line)
            sys.stdout.buffer.write(orjson.dumps({key: record[key] for key in ("id", "instruction", "input", "output") if key in record}) + b"\n")


def samples(record: Record) -> list[Record]:
    """The candidates to choose from."""
    return [candidate for candidate in record["candidates"] if candidate["model"] == "sample"]


def by_score(name: str) -> Callable[[Record], Record]:
    """The sample with the highest score."""
    return lambda record: max(samples(record), key=lambda candidate: candidate["scores"][name])


def by_rank(name: str) -> Callable[[Record], Record]:
    """The sample that a ranker puts first."""
    return lambda record: samples(record)[int(np.argmin(record["ranks"][name][: len(samples(record))]))]


def written_by(model: str) -> Callable[[Record], Record]:
    """The one candidate of a model."""
    return lambda record: next(candidate for candidate in record["candidates"] if candidate["model"] == model)


CHOICES: dict[str, Callable[[Record], Record]] = {
    "first sample": lambda record: samples(record)[0],
    "random": by_score("random"),
    "longest": by_score("length"),
    "likeliest (perplexity)": by_score("logprobs"),
    "mbr by BERTScore": by_score("mbr"),
    "PairRanker, embedded, full": by_rank("full"),
    "PairRanker, embedded, swiss:4": by_rank("swiss4"),
    "greedy": written_by("greedy"),
    "fused: consensus of the top 3": written_by("consensus"),
    "fused: SmolLM2 reads the top 3": written_by("chat"),
    **{f"oracle ({metric})": by_score(metric) for metric in METRICS},
}


def table(path: str) -> None:
    """Prints Markdown."""
    with open(path, "rb") as file:
        records = [orjson.loads(line) for line in file]
    values: dict[str, np.ndarray] = {}
    for name, choose in CHOICES.items():
        chosen = [choose(record) for record in records]
        values[name] = np.array([[100 * one["scores"]["rougeL"], one["scores"]["chrf"], 100 * one["scores"]["bertscore"], len(one["text"])] for one in chosen])
    print("| method | ROUGE-L | chrF | BERTScore | characters | p (ROUGE-L, chrF, BERTScore) |\n|---|---|---|---|---|---|")
    first = values["first sample"]
    for name, found in values.items():
        cells = [f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, (low, high) in zip(found.mean(axis=0), bootstrap(found, seed=0), strict=True)]
        cells[-1] = f"{found[:, -1].mean():.0f}"
        p = randomization(found[:, :3] - first[:, :3], seed=0)
        print(f"| {name} | " + " | ".join(cells) + f" | {'–' if found is first else ', '.join(f'{value:.2g}' for value in p)} |")


if __name__ == "__main__":
    {"prompts": prompts, "table": table}[sys.argv[1]](sys.argv[2])
