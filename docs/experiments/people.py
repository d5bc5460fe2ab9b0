"""How far rankers agree with labels, set by set: python people.py STREAM.jsonl … — held-out records as ranker_data.py writes them, after `pair`.

Of several rankers' sum, too: --sum embedded+smollm2-ranker=2, names of comparisons with their weights.

Of each set and ranker: the share of pairs on which it agrees with `oracle`, how far that is above the longer answer's, and its share where
the shorter and where the longer answer is the better one. Every record counts the same, however many pairs it has; pairs whose labels differ
by 0.7 or less, or whose answers are equally long, are left out. Intervals are bootstrap 95 % over records, of differences paired.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import orjson

from blendkit.aggregate import matrix, max_logits, summed, weighed

MARGIN, RESAMPLES = 0.7, 2000
# Labels by people, and of those that a judge gave the ones that length decides least.
PEOPLE = ("tulu_human", "hh_harmless", "qa_feedback", "rmb_help", "rmb_harm")
Values = np.ndarray


def pairs_of(record: dict[str, Any]) -> Iterator[tuple[int, int, bool]]:
    """The better and the worse candidate of a pair, and whether the better one is the longer."""
    scores = [candidate["scores"]["oracle"] for candidate in record["candidates"]]
    lengths = [len(candidate["text"]) for candidate in record["candidates"]]
    for i, j in combinations(range(len(scores)), 2):
        better, worse = (i, j) if scores[i] > scores[j] else (j, i)
        if abs(scores[i] - scores[j]) > MARGIN and lengths[i] != lengths[j]:
            yield better, worse, lengths[better] > lengths[worse]


def terms(name: str, comparisons: dict[str, Any]) -> list[tuple[str, float]]:
    """Names of comparisons and their weights, of a sum or a single one."""
    return [(name, 1.0)] if name in comparisons else [weighed(part, comparisons) for part in name.split("+")]


def counted(record: dict[str, Any], names: list[str]) -> Values | None:
    """[rankers, 4]: of the record's pairs the shares that are right and shorter, shorter, right and longer, longer; the last ranker is length."""
    pairs = list(pairs_of(record))
    if not pairs:
        return None
    found = np.zeros((len(names) + 1, 4))
    n, comparisons = len(record["candidates"]), record["comparisons"]
    scores = [max_logits(summed((matrix(comparisons[part]["pairs"], n), weight) for part, weight in terms(name, comparisons))) for name in names]
    for better, worse, longer in pairs:
        right = [0.5 + 0.5 * np.sign(own[better] - own[worse]) for own in scores] + [float(longer)]
        found[:, 2 * longer] += right
        found[:, 2 * longer + 1] += 1
    return found / len(pairs)


def shares(total: Values) -> Values:
    """[…, 3] in percent: all, where the shorter is right, where the longer is."""
    with np.errstate(invalid="ignore"):
        parts = (total[..., 0] + total[..., 2]) / (total[..., 1] + total[..., 3]), total[..., 0] / total[..., 1], total[..., 2] / total[..., 3]
    return 100 * np.stack(parts, -1)


def table(records: Values, rng: np.random.Generator) -> tuple[Values, Values, Values]:
    """Of [records, rankers, 4]: shares [rankers, 3], resampled shares [resamples, rankers, 3], and those of the length alone."""
    weights = rng.multinomial(len(records), np.full(len(records), 1 / len(records)), RESAMPLES)
    drawn = shares(np.einsum("bn,nrk->brk", weights, records))
    return shares(records.sum(0)), drawn, drawn[:, -1]


def with_interval(value: float, drawn: Values, sign: str = "") -> str:
    """The value with its interval, or – where there is no such pair."""
    if np.isnan(value):
        return "–"
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def main() -> None:
    """Prints a table for each ranker, and the mean over the sets of people."""
    by_set: dict[str, list[Values]] = defaultdict(list)
    names: list[str] = []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("streams", nargs="+")
    parser.add_argument("--sum", action="append", default=[])
    flags = parser.parse_args()
    for path in flags.streams:
        with open(path, "rb") as file:
            for line in file:
                record = orjson.loads(line)
                names = names or [*record["comparisons"], *flags.sum]
                if (found := counted(record, names)) is not None:
                    by_set[record.get("set", "people")].append(found)
    rng = np.random.default_rng(0)
    tables = {name: table(np.array(found), rng) for name, found in by_set.items()}
    for place, name in enumerate(names):
        print(f"\n## {name}\n\n| set | records | longer is right | agrees | over length | shorter is right | longer is right |\n|---|---|---|---|---|---|---|")
        for own, (value, drawn, longest) in tables.items():
            gain = with_interval(value[place, 0] - value[-1, 0], drawn[:, place, 0] - longest[:, 0], "+")
            cells = [with_interval(value[place, part], drawn[:, place, part]) for part in range(3)]
            print(f"| {own} | {len(by_set[own])} | {value[-1, 0]:.0f} | {cells[0]} | {gain} | {cells[1]} | {cells[2]} |")
        chosen = [tables[own] for own in PEOPLE if own in tables]
        if chosen:
            value, drawn = np.mean([part[0][place] for part in chosen], 0), np.mean([part[1][:, place] for part in chosen], 0)
            print(
                f"| mean over {', '.join(own for own in PEOPLE if own in tables)} | | | "
                + " | | ".join(with_interval(value[k], drawn[:, k]) for k in (0, 1))
                + f" | {with_interval(value[2], drawn[:, 2])} |"
            )
    for which, chosen in (("all sets", list(tables.values())), ("those of people and RMB", [tables[own] for own in PEOPLE if own in tables])):
        for place, name in enumerate(names[1:], 1):
            if chosen:
                value, drawn = (np.mean([part[k][..., place, 0] - part[k][..., 0, 0] for part in chosen], 0) for k in (0, 1))
                print(f"\n{name} over {names[0]}, mean over {which}: {with_interval(float(value), drawn, '+')}")


if __name__ == "__main__":
    main()
