"""Records of made-up models with scores, verdicts, ranks and comparisons, for tests of the tables."""

from __future__ import annotations

import numpy as np

MODELS = ["a", "b", "c", "d"]
WORDS = ("A is better", "B is better", "Same good", "Same bad")


def made_up(count: int = 200, seed: int = 5) -> list[dict]:
    """MixInstruct-form records with scores, one ranking, and a fused answer that a second judge's verdicts know."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        strength = rng.normal(size=4) + np.array([0.8, 0.4, 0.0, -0.4])
        candidates = [
            {
                "model": model,
                "text": "x" * int(rng.integers(5, 60)),
                "scores": {"bleu": round(float(rng.normal(20, 5)), 3), "perplexity": round(float(rng.uniform(2, 9)), 3)},
            }
            for model in MODELS
        ]
        results = {}
        for i in range(4):
            for j in range(i + 1, 4):
                difference = strength[i] - strength[j]
                word = WORDS[0] if difference > 0.3 else WORDS[1] if difference < -0.3 else WORDS[int(rng.integers(2, 4))]
                results[f"{MODELS[i]},{MODELS[j]}"] = word
        ranks = (np.argsort(np.argsort(-(strength + rng.normal(size=4)))) + 1).tolist()
        records.append({"id": str(number), "instruction": "i", "output": "o", "candidates": candidates, "cmp_results": results, "ranks": {"r": ranks}})
    return records


def with_comparisons(records: list[dict]) -> list[dict]:
    rng = np.random.default_rng(2)
    for record in records:
        pairs = [[i, j, round(float(rng.normal()), 3)] for i in range(4) for j in range(4) if i != j]
        record["comparisons"] = {"p": {"pairs": pairs, "schedule": "full"}}
    return records
