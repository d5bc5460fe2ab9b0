"""The figures of a ranker's model card: python card.py DEV.jsonl PEOPLE.jsonl [NAME …], streams with full comparisons NAME.

Spearman, oracle rank and top-3 with bootstrap 95 % intervals, each also against the longest candidate (paired); agreement with
people; how often a ranker agrees with length; how often swapping the candidates turns its verdict; and how well σ(logit) is a
probability (expected calibration error over ten bins), as it is and with the temperature that fits DEV best.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import orjson
from scipy.optimize import minimize_scalar
from table import ORACLE, of_dev, of_people

from blendkit.aggregate import matrix
from blendkit.evaluation.statistics import bootstrap

Values = np.ndarray
LONGEST = "length"


def read(path: str) -> list[dict[str, Any]]:
    """The records, with length as a score."""
    records = [orjson.loads(line) for line in open(path, "rb")]  # noqa: SIM115
    for record in records:
        for candidate in record["candidates"]:
            candidate.setdefault("scores", {})[LONGEST] = float(len(candidate["text"]))
    return records


def logits(records: list[dict[str, Any]], name: str) -> tuple[Values, Values, Values, Values]:
    """Of every pair in both orders: s_ij, -s_ji, whether i is better by the label (0.5 where it says nothing), whether i is longer."""
    rows = []
    for record in records:
        m = matrix(record["comparisons"][name]["pairs"], len(record["candidates"]))
        truth = label(record)
        lengths = [candidate["scores"][LONGEST] for candidate in record["candidates"]]
        for i in range(len(m)):
            for j in range(len(m)):
                if i != j:
                    rows.append((m[i, j], -m[j, i], truth[i, j], 0.5 + 0.5 * np.sign(lengths[i] - lengths[j])))
    return tuple(np.array(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def label(record: dict[str, Any]) -> Values:
    """[n, n]: 1 where i is better than j, 0 where it is worse, 0.5 where they tie."""
    if "human" in record:
        values = {"A": (1.0, 0.0), "B": (0.0, 1.0), "tie": (0.0, 0.0)}[record["human"]]
    else:
        values = tuple(candidate["scores"][ORACLE] for candidate in record["candidates"])
    found = np.array(values)
    return 0.5 + 0.5 * np.sign(found[:, None] - found)


def calibration(s: Values, truth: Values, temperature: float, bins: int = 10) -> float:
    """Expected calibration error, in points: |confidence - accuracy| over bins of σ(s/T), weighted by size."""
    p, known = 1 / (1 + np.exp(-s / temperature)), truth != 0.5
    p, truth = p[known], truth[known]
    place = np.minimum((p * bins).astype(int), bins - 1)
    return 100 * sum(abs(p[place == k].mean() - truth[place == k].mean()) * (place == k).mean() for k in range(bins) if (place == k).any())


def fitted(s: Values, truth: Values) -> float:
    """The temperature with the least log loss."""
    s, truth = s[truth != 0.5], truth[truth != 0.5]

    def loss(log_t: float) -> float:
        scaled = s / np.exp(log_t)
        return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def shown(values: Values) -> str:
    """The mean with its interval."""
    low, high = bootstrap(values[:, None], seed=0)[0]
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Prints a block for each ranker."""
    dev, people = read(sys.argv[1]), read(sys.argv[2])
    names = sys.argv[3:] or list(dev[0]["comparisons"])
    by_dev = [dict(of_dev(record)) for record in dev]
    by_people = [dict(of_people(record)) for record in people if record["human"] != "tie"]
    for name in [LONGEST, *names]:
        print(f"## {name}")
        for place, figure in ((0, "Spearman × 100"), (1, "footrule"), (2, "oracle rank"), (3, "top-3 %")):
            own, longest = (np.array([found[of][place] for found in by_dev]) for of in (name, LONGEST))
            print(f"{figure}: {shown(own)}" + ("" if name == LONGEST else f"; over longest {shown(own - longest)}"))
        own, longest = (np.array([found[of][0] for found in by_people]) for of in (name, LONGEST))
        print(f"people %: {shown(own)}" + ("" if name == LONGEST else f"; over longest {shown(own - longest)}"))
        if name == LONGEST:
            continue
        temperature = fitted(*logits(dev, name)[::2][:2])
        print(f"temperature that fits dev: {temperature:.3f}")
        for where, records in (("dev", dev), ("people", people)):
            s, swapped, truth, longer = logits(records, name)
            turned = 100 * np.mean(np.sign(s) != np.sign(swapped))
            with_length = 100 * np.mean((s + swapped > 0) == (longer > 0.5))
            errors = f"{calibration(s, truth, 1.0):.1f}, at that temperature {calibration(s, truth, temperature):.1f}"
            print(f"{where}: swapping turns {turned:.1f} % of verdicts; agrees with length in {with_length:.1f} %; calibration error {errors}")


if __name__ == "__main__":
    main()
