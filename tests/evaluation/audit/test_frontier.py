"""What quality costs: subsets of models against a plain loop over them, prices, and the front."""

from __future__ import annotations

import itertools

import numpy as np
import orjson
import pytest

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation.audit import frontier
from blendkit.evaluation.audit.frontier import Frontier, pareto


def stream(count: int = 30, models: int = 4, seed: int = 0) -> list[dict]:
    g = np.random.default_rng(seed)
    records = []
    for number in range(count):
        scores = g.normal(size=models) + np.arange(models) / 2
        candidates = [
            {"model": f"m{place}", "text": "x", "scores": {"q": float(score), "perplexity": float(-score)}, "usage": {"cost": 0.001 * (place + 1) ** 2}}
            for place, score in enumerate(scores)
        ]
        noisy = scores + g.normal(size=models) * 0.5
        ranks = [int((noisy > one).sum()) + 1 for one in noisy]
        order = g.permutation(models)
        shuffled = {"id": str(number), "candidates": [candidates[place] for place in order], "ranks": {"r": [ranks[place] for place in order]}}
        records.append(shuffled)
    return records


def rows_of(records: list[dict], quality: str = "score:q", everything: bool = True, notes: list[str] | None = None, **settings) -> list[dict]:
    found = Frontier("r", quality, **settings)
    for record in records:
        found.add(record, record.get("verdicts", {}))
    return found.rows([] if notes is None else notes, everything)


def by_loop(records: list[dict], subset: tuple[str, ...]) -> float:
    """The mean score of the candidate that ranks first of the subset."""
    total = 0.0
    for record in records:
        inside = [place for place, candidate in enumerate(record["candidates"]) if candidate["model"] in subset]
        total += record["candidates"][min(inside, key=lambda place: record["ranks"]["r"][place])]["scores"]["q"]
    return total / len(records)


def test_every_subset_is_what_a_plain_loop_finds():
    records = stream()
    rows = {row["method"]: row for row in rows_of(records)}
    # The first record decides the models' order in names.
    names = [candidate["model"] for candidate in records[0]["candidates"]]
    assert len(rows) == 15
    for size in range(1, 5):
        for subset in itertools.combinations(names, size):
            row = rows[" + ".join(subset)]
            assert row["quality"] == pytest.approx(by_loop(records, subset), abs=1e-4) and row["models"] == size
            assert row["price"] == pytest.approx(sum((int(name[1]) + 1) ** 2 for name in subset), abs=1e-6)
            beaten = [other for other in rows.values() if other["price"] <= row["price"] and other["quality"] > row["quality"]]
            assert row["front"] is not bool(beaten)
            if row["front"]:
                low, high = row["intervals"]["quality"]
                assert low < row["quality"] < high
    shown = rows_of(records, everything=False)
    orjson.dumps(shown)
    assert {row["method"] for row in shown} >= {*names, " + ".join(names)} and len(shown) < 15
    assert [row["price"] for row in shown] == sorted(row["price"] for row in shown)


def test_a_score_that_is_better_when_lower():
    records = stream()
    lower, higher = rows_of(records, "score:perplexity"), rows_of(records)
    assert [(row["method"], -row["quality"], row["front"]) for row in lower] == [(row["method"], row["quality"], row["front"]) for row in higher]
    low, high = next(row["intervals"]["quality"] for row in lower if row["front"])
    assert low < high


def test_quality_by_a_judge_is_the_win_rate_over_the_others():
    record = stream(1, 3)[0] | {"ranks": {"r": [1, 2, 3]}}
    verdicts = [{"a": 0, "b": 1, "verdict": "A"}, {"a": 0, "b": 2, "verdict": "tie-good"}, {"a": 1, "b": 2, "verdict": "B", "probability": 0.25}]
    names = [candidate["model"] for candidate in record["candidates"]]
    rows = {row["method"]: row["quality"] for row in rows_of([record | {"verdicts": {"j": verdicts}}], "judge:j")}
    assert (rows[names[0]], rows[names[1]], rows[names[2]]) == (75.0, 12.5, 62.5) and rows[" + ".join(names)] == 75.0


def test_prices_by_tokens_and_what_is_missing():
    record = stream(1, 2)[0]
    model = record["candidates"][0]["model"]
    record["candidates"][0]["usage"] = {"prompt_tokens": 1000, "completion_tokens": 500}
    rows = {row["method"]: row["price"] for row in rows_of([record], prices={model: (2.0, 8.0)})}
    assert rows[model] == 6.0
    without = [{**candidate, "usage": None} for candidate in record["candidates"]]
    for wrong, says, settings in (
        (record, r"candidates\[0\].usage.cost: expected an amount in \$, or a price of the model", {}),
        (record | {"candidates": without}, r"candidates\[0\].usage: expected prompt_tokens and completion_tokens", {"prices": {model: (1.0, 1.0)}}),
        (record | {"ranks": {}}, r"ranks.r: expected ranks of 2 candidates", {}),
        (record, r"verdicts.j: expected a verdict on candidate 0", {"quality": "judge:j"}),
        (record, r"candidates\[0\].scores.z: expected a number", {"quality": "score:z"}),
        (record | {"candidates": [record["candidates"][0]] * 2}, "expected one candidate a model", {}),
    ):
        with pytest.raises(RecordError, match=says):
            rows_of([wrong], **settings)
    with pytest.raises(UsageError):
        Frontier("r", "q")
    assert Frontier("r", "score:q").rows([]) == []


def test_records_of_other_models_are_left_out_and_told():
    notes: list[str] = []
    records = stream(3)
    records[1]["candidates"][0]["model"] = "other"
    rows_of(records, notes=notes)
    assert notes[0].startswith("frontier: 1 of 3 records have other models than m")


def test_many_models_grow_one_at_a_time(monkeypatch):
    records = stream(200, 6)
    exact = rows_of(records)
    monkeypatch.setattr(frontier, "ALL_OF", 5)
    notes: list[str] = []
    grown = rows_of(records, notes=notes)
    assert "6 models have too many subsets" in notes[0] and len(grown) < len(exact) == 63
    by_name = {row["method"]: row["quality"] for row in exact}
    assert all(row["quality"] == pytest.approx(by_name[row["method"]], abs=2e-4) for row in grown)
    assert max(row["quality"] for row in grown) >= max(by_name.values()) - 0.05
    with pytest.raises(DataError, match="at most 64 models"):
        rows_of(stream(1, 65))


def test_the_front_by_hand():
    price, quality = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 0.5]), np.array([5.0, 6.0, 6.0, 7.0, 7.0, -1.0])
    assert pareto(price, quality).tolist() == [False, True, False, True, False, True]
