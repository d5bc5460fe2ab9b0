"""The figures of the embedded generators' card: python generators.py DEV.jsonl.gz TRAIN.jsonl.gz [MODEL …]

How often an answer ends by itself, how often it says five words in a row twice, how many of its words are words (of the answers
in TRAIN, seen at least three times there, or in the question), and how long it is; over the instructions of DEV, sampled as by
default.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

from blendkit.generators.generating import Generating
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.models.loading import EMBEDDED_GENERATORS
from blendkit.pipeline.runner import apply
from blendkit.streams.lines import Line, Reader

RUN = 5


def words(text: str) -> list[str]:
    """In lower case, without marks."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def main() -> None:
    """Prints the table as Markdown."""
    dev, train, *models = sys.argv[1:]
    models = models or [f"embedded:{name}" for name in EMBEDDED_GENERATORS]
    known = Counter(word for line in Reader(train).records() if isinstance(line, Line) for one in line.record["candidates"] for word in words(one["text"]))
    records = [line.record | {"candidates": []} for line in Reader(dev).records() if isinstance(line, Line)]
    stage = Generating([f"{number}={model}" for number, model in enumerate(models)], Sampling(), EndpointOptions())
    answers: dict[str, list[tuple[str, dict]]] = {model: [] for model in models}
    for record in apply(stage, records):
        for candidate in record["candidates"]:
            answers[models[int(candidate["model"])]].append((f"{record['instruction']} {record.get('input') or ''}", candidate))
    print(f"| model | ends by itself % | {RUN} words in a row twice % | words that are words % | tokens | words |\n|---|---|---|---|---|---|")
    for model, found in answers.items():
        ends = sum(candidate["finish_reason"] == "stop" for _, candidate in found)
        loops = good = total = 0
        for question, candidate in found:
            said = words(candidate["text"])
            runs = Counter(tuple(said[start : start + RUN]) for start in range(len(said) - RUN + 1))
            loops += any(count > 1 for count in runs.values())
            asked = set(words(question))
            good += sum(known[word] >= 3 or word in asked for word in said)
            total += len(said)
        tokens = sum(candidate["usage"]["completion_tokens"] for _, candidate in found)
        n = len(found)
        print(f"| {model} | {100 * ends / n:.0f} | {100 * loops / n:.0f} | {100 * good / max(1, total):.1f} | {tokens / n:.0f} | {total / n:.0f} |")


if __name__ == "__main__":
    main()
