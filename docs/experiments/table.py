"""The table of the experiment: python table.py DEV.jsonl AUTOJ.jsonl [HELD.jsonl], with scores and comparisons of every ranker and seed.

A figure of a ranker is the mean over its seeds; intervals are bootstrap 95 % over records, each with its mean over seeds. Of HELD, held-out
records as ranker_data.py writes them, a second table has the agreement with their labels, set by set (people.py says which pairs count).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from people import PEOPLE, RESAMPLES, pairs_of
from scipy.stats import rankdata

from blendkit.aggregate import matrix, max_logits
from blendkit.evaluation.statistics import bootstrap

ORACLE = "gpt4_pref"
COLUMNS = ("Spearman × 100", "footrule", "oracle rank", "top-3 %", "human agreement %")
Values = dict[str, list[list[float]]]


def rankings(record: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every ranker's scores of the candidates, higher is better."""
    candidates = record["candidates"]
    for name in candidates[0]["scores"]:
        if name not in (ORACLE, "oracle"):
            yield name, np.array([candidate["scores"][name] for candidate in candidates])
    for name, found in record.get("comparisons", {}).items():
        yield name, max_logits(matrix(found["pairs"], len(candidates)))


def of_dev(record: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Spearman, footrule, rank of the choice under the oracle, and whether it is among the top three; ties share their mean rank."""
    oracle = rankdata([-candidate["scores"][ORACLE] for candidate in record["candidates"]])
    for name, scores in rankings(record):
        ranks = rankdata(-scores)
        choice = oracle[int(np.argmax(scores))]
        spearman = np.corrcoef(ranks, oracle)[0, 1] if ranks.std() and oracle.std() else 0.0
        yield name, [100 * float(spearman), float(np.abs(ranks - oracle).sum()), float(choice), 100.0 * (choice <= 3)]


def of_people(record: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """100 where the ranker prefers what people prefer, 50 where it sees no difference."""
    if record["human"] != "tie":
        for name, (a, b) in rankings(record):
            yield name, [50.0 if a == b else 100.0 * ((a > b) == (record["human"] == "A"))]


def of_labels(record: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """The percentage of the record's pairs on which a ranker agrees with the labels, under the name of its set and its own."""
    pairs = list(pairs_of(record))
    for ranker, scores in rankings(record) if pairs else ():
        yield f"{record['set']} {ranker}", [float(np.mean([50 + 50 * np.sign(scores[better] - scores[worse]) for better, worse, _ in pairs]))]


def by_set(path: str) -> None:
    """Prints the second table; its last column is the mean over the sets."""
    values = {tuple(name.split(" ", 1)): np.array(found)[:, 0] for name, found in collected(path, of_labels).items()}
    sets = [name for name in PEOPLE if (name, "length") in values]
    rng = np.random.default_rng(0)
    print("\n| ranker |" + "|".join(f" {name} ({len(values[name, 'length'])}) " for name in sets) + "| mean |\n|" + "---|" * (len(sets) + 2))
    rows = []
    for kind in dict.fromkeys(kind for _, kind in values):
        found = [values[name, kind] for name in sets]
        drawn = [one[rng.integers(len(one), size=(RESAMPLES, len(one)))].mean(1) for one in found]
        means = [float(one.mean()) for one in found]
        rows.append((float(np.mean(means)), kind, [*zip(means, drawn, strict=True), (float(np.mean(means)), np.mean(drawn, 0))]))
    for _, kind, cells in sorted(rows, reverse=True, key=lambda row: row[0]):
        shown = [f"{value:.1f} ({low:.1f} to {high:.1f})" for value, part in cells for low, high in [np.quantile(part, (0.025, 0.975))]]
        print(f"| {kind} | " + " | ".join(shown) + " |")


def collected(path: str, figures: Any) -> Values:
    """By ranker, without the seed: for every record the figures' mean over seeds."""
    values: Values = defaultdict(list)
    with open(path, "rb") as file:
        for line in file:
            by_kind: dict[str, list[list[float]]] = defaultdict(list)
            for name, found in figures(orjson.loads(line)):
                by_kind[re.sub(r"-\d+$", "", name)].append(found)
            for kind, seeds in by_kind.items():
                values[kind].append(np.mean(seeds, axis=0).tolist())
    return values


def main() -> None:
    """Prints the table as Markdown."""
    dev, people = collected(sys.argv[1], of_dev), collected(sys.argv[2], of_people)
    print("| ranker |" + "|".join(f" {column} " for column in COLUMNS) + "|\n|" + "---|" * (len(COLUMNS) + 1))
    for kind in sorted(dev, key=lambda name: -np.mean([row[0] for row in dev[name]])):
        cells = []
        for values in (np.array(dev[kind]), np.array(people[kind])):
            cells += [f"{mean:.1f} ({low:.1f} to {high:.1f})" for mean, (low, high) in zip(values.mean(axis=0), bootstrap(values, seed=0), strict=True)]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    if len(sys.argv) > 3:
        by_set(sys.argv[3])


if __name__ == "__main__":
    main()
