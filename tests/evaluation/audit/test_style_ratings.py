"""Ratings at equal style: a judge's known weakness for long or marked-up answers is taken away, and nothing else."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from blendkit.errors import DataError
from blendkit.evaluation.audit.style_ratings import StyledRatings, comparable

# Strengths in logits, and how long each model writes; `wordy` owes its wins to that.
STRENGTHS, SIZES = {"good": 0.8, "wordy": 0.0, "plain": -0.8}, {"good": 300, "wordy": 900, "plain": 250}
EFFECT, BOLD = 2.5, -0.5  # log-odds for a normalised difference of 1


def arena(seed: int, count: int) -> StyledRatings:
    g = np.random.default_rng(seed)
    ratings = StyledRatings("j")
    for number in range(count):
        texts = {}
        for name, size in SIZES.items():
            bold = int(g.integers(4))
            texts[name] = "**b** " * bold + "x" * int(size * g.uniform(0.4, 1.6))
        names = [str(name) for name in g.permutation(list(STRENGTHS))]
        rows = []
        for a, b in ((0, 1), (0, 2), (1, 2)):
            one, other = texts[names[a]], texts[names[b]]
            x = (len(one) - len(other)) / (len(one) + len(other))
            bold = [text.count("**") // 2 for text in (one, other)]
            marks = (bold[0] - bold[1]) / (sum(bold) or 1)
            p = 1 / (1 + np.exp(-(STRENGTHS[names[a]] - STRENGTHS[names[b]] + EFFECT * x + BOLD * marks)))
            rows.append({"a": a, "b": b, "verdict": "A" if g.random() < p else "B"})
        record = {"id": str(number), "candidates": [{"model": name, "text": texts[name]} for name in names]}
        ratings.add(record, {"j": rows})
    return ratings


def deviations(ratings: StyledRatings) -> np.ndarray:
    return np.array(ratings._styles).reshape(-1, 4).std(axis=0)


def test_style_control_returns_the_planted_coefficients_and_strengths():
    ratings = arena(0, 1500)
    rows = ratings.rows()
    effects = {row["method"]: row for row in rows if row["table"] == "style effects"}
    length, _, _, bold = deviations(ratings)
    for name, truth in (("length", EFFECT * length), ("bold", BOLD * bold)):
        low, high = effects[name]["intervals"]["coefficient"]
        assert low <= truth <= high and high - low < 0.4
        assert effects[name]["odds_ratio"] == pytest.approx(np.exp(effects[name]["coefficient"]), abs=1e-3)
    # There are no headers and no lists.
    assert effects["headers"]["coefficient"] is None and effects["lists"]["intervals"] == {}
    found = {row["method"]: row for row in rows if row["table"] == "style"}
    for name, strength in STRENGTHS.items():
        low, high = found[name]["intervals"]["styled"]
        assert low <= 1500 + strength * 400 / np.log(10) <= high
    # Without style, the wordy model comes first; at equal style, the good one does.
    assert found["wordy"]["rating"] > found["good"]["rating"] and [row["method"] for row in rows[:3]] == ["good", "wordy", "plain"]
    assert found["wordy"]["change"] < -100 and found["wordy"]["verdicts"] == 3000
    orjson.dumps(rows)  # plain numbers
    assert sum(row["styled"] for row in rows[:3]) == pytest.approx(4500, abs=0.2)


@pytest.mark.slow
def test_intervals_of_style_control_cover_the_truth():
    covered = dict.fromkeys(("length", "bold", *STRENGTHS), 0)
    for seed in range(100):
        ratings = arena(seed, 200)
        length, _, _, bold = deviations(ratings)
        truth = {"length": EFFECT * length, "bold": BOLD * bold} | {name: 1500 + strength * 400 / np.log(10) for name, strength in STRENGTHS.items()}
        for row in ratings.rows():
            if row["method"] in truth:
                low, high = row["intervals"]["coefficient" if row["table"] == "style effects" else "styled"]
                covered[row["method"]] += low <= truth[row["method"]] <= high
    assert {name: count for name, count in covered.items() if not 90 <= count <= 99} == {}


def test_a_model_that_never_won_has_no_rating_and_blurs_no_other():
    ratings = StyledRatings("j")
    for number in range(300):
        candidates = [{"model": name, "text": name * (number % 7 + 1)} for name in ("a", "b", "never")]
        rows = [{"a": 0, "b": 1, "verdict": "AB"[number % 3 == 0]}, {"a": 0, "b": 2, "verdict": "A"}, {"a": 1, "b": 2, "verdict": "A"}]
        ratings.add({"candidates": candidates}, {"j": rows})
    found = {row["method"]: row for row in ratings.rows() if row["table"] == "style"}
    assert found["never"]["rating"] is None and found["never"]["change"] is None
    low, high = found["a"]["intervals"]["rating"]
    assert low < found["a"]["rating"] < high and found["a"]["rating"] - found["b"]["rating"] == pytest.approx(np.log(2) * 400 / np.log(10), abs=3)
    assert StyledRatings("j").rows() == []
    one_sided = StyledRatings("j")
    one_sided.add({"candidates": candidates}, {"j": [{"a": 0, "b": 1, "verdict": "A"}]})
    assert {row.get("rating") for row in one_sided.rows()} == {row.get("coefficient") for row in one_sided.rows()} == {None}


def test_comparable_models_by_hand():
    def games(*pairs):
        first, second, won = zip(*pairs, strict=True)
        return comparable(np.array(first), np.array(second), np.array(won), 4).tolist()

    # 0 beats 1 beats 2 beats 0; 3 only loses.
    assert games((0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (0, 3, 1.0)) == [True, True, True, False]
    # Ties are something of a win for both; two groups that never met.
    assert games((0, 1, 0.5), (2, 3, 1.0)) == [True, True, False, False]
    assert games((0, 1, 1.0), (2, 3, 1.0)) == [False] * 4


def test_too_many_models_are_refused():
    ratings = StyledRatings("j")
    with pytest.raises(DataError, match="more than 200 models"):
        for number in range(101):
            candidates = [{"model": f"{number} {side}", "text": ""} for side in "ab"]
            ratings.add({"candidates": candidates}, {"j": [{"a": 0, "b": 1, "verdict": "tie-bad"}]})
