"""The sentence that all tables open with: who is best, by how much, how sure, and never surer than it may be."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import lines, parsed
from made_up import made_up

import blendkit as library
from blendkit.evaluation.statistics import MOST_PERMUTED, paired_p, randomization

SIGNATURES = {"judge:j": "judge:j|kind:stand-in"}


def judged(count=24, better=1.0, methods=("r",), models=3, seed=0, **more) -> list[dict]:
    """LLMs that are alike, with random scores and a judge that goes by them; each ranker takes the best with a chance of `better`, else any."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        worth = rng.normal(size=models)
        candidates = [{"model": f"m{k}", "text": "x", "scores": {"q": float(worth[k])}} for k in range(models)]
        verdicts = [{"a": a, "b": b, "verdict": "A" if worth[a] > worth[b] else "B"} for a in range(models) for b in range(a + 1, models)]
        ranks = {}
        for name in methods:
            first = int(worth.argmax()) if rng.random() < better else int(rng.integers(models))
            ranks[name] = [1 if k == first else 2 for k in range(models)]
        records.append({"id": str(number), "candidates": candidates, "verdicts": {"j": verdicts}, "ranks": ranks, "signatures": SIGNATURES} | more)
    return records


def the_answer(records, **arguments) -> dict:
    return library.evaluate(records, **arguments)[0]


def test_every_form_opens_with_it(called):
    stream = lines(judged())
    code, out, err = called("evaluate", stdin=stream)
    first = parsed(out)[0]
    assert code == 0 and (first["table"], first["method"], first["told_apart"]) == ("answer", "r", True)
    assert err.splitlines()[0] == first["line"] and first["line"].startswith("r beats the best single LLM, m")
    assert first["line"].endswith(", p below 0.001, 24 records; the judge is the offline stand-in")
    rows = {row["method"]: row for row in parsed(out) if row["table"] == 2}
    assert first["mean"] == 1 and first["over_mean"] == min(rows[f"m{k}"]["stand_in_rank"] for k in range(3))
    assert first["advantage"] == pytest.approx(first["over_mean"] - 1, abs=1e-4) and first["low"] < first["advantage"] < first["high"]
    assert called("evaluate", "--format", "markdown", stdin=stream)[1].startswith("**r beats the best single LLM, m")
    assert called("evaluate", "--format", "latex", stdin=stream)[1].startswith("% r beats the best single LLM, m")
    assert called("evaluate", "--format", "table", stdin=stream)[1].startswith("r beats the best single LLM, m")


@pytest.mark.parametrize(
    ("records", "arguments", "said"),
    [
        (judged(better=0.0), {}, "cannot be told apart: "),
        (judged(methods=()), {}, "cannot be told apart: m2 and m0, the best 2 of 3 LLMs: mean rank "),
        (judged(), {"oracle": "q"}, "r beats the best single LLM, m2: mean rank by q 1.00 to "),
        (made_up(200), {}, "r beats the best single LLM, a: mean rank "),
        (judged(models=1, methods=()), {}, "nothing to compare: there is only m0; the judge is the offline stand-in"),
        (judged(verdicts={}), {}, "r beats the best single LLM, m"),
        ([{"id": "0", "candidates": [{"model": "a", "text": ""}]}], {}, "no judge's verdicts and no scores in the stream: nothing says"),
    ],
)  # fmt: skip
def test_what_it_says(records, arguments, said):
    assert the_answer(records, **arguments)["line"].startswith(said)


def test_without_a_judge_it_names_the_score_that_decides_and_not_the_ranking_by_that_score():
    found = the_answer(judged(methods=("score:q", "r"), better=0.4, verdicts={}))
    assert found["method"] != "score:q" and ": mean q " in found["line"] and found["line"].endswith("; no judge's verdicts, so by the score q")


def test_the_choice_of_the_best_is_paid_for():
    one = the_answer(judged(better=0.7, methods=("r",)))
    several = judged(better=0.7, methods=("r",))
    for record in several:
        record["ranks"] |= {f"like m{k}": [1 if k == j else 2 for j in range(3)] for k in range(3)}
    four = the_answer(several)
    assert (one["method"], one["chosen_from"], four["method"], four["chosen_from"]) == ("r", 1, "r", 4)
    assert four["p"] == pytest.approx(4 * one["p"], abs=1e-5) and "(corrected for the choice of 1 in 4)" in four["line"]


def test_it_seldom_claims_what_is_not_so():
    """Six rankers that guess among four LLMs that are alike: whatever it says beats another is a false claim."""
    claims = [the_answer(judged(12, 0.0, tuple("abcdef"), 4, seed), seed=seed)["told_apart"] for seed in range(25)]
    assert np.mean(claims) <= 0.1


def test_a_model_of_a_few_records_is_not_the_best_one():
    records = judged(12)
    for record in records[:2]:
        record["candidates"].append({"model": "rare", "text": "x", "scores": {"q": 9.0}})
        record["verdicts"]["j"] += [{"a": k, "b": 3, "verdict": "B"} for k in range(3)]
        record["ranks"] = {"r": [*record["ranks"]["r"], 2]}
    assert "rare" not in the_answer(records)["line"]


def test_the_test_of_a_long_stream_is_the_limit_of_the_short_ones():
    differences = np.random.default_rng(0).normal(0.06, 1, size=(MOST_PERMUTED + 1, 1))
    assert paired_p([differences[:, 0]], 0)[0] == pytest.approx(randomization(differences, 0)[0], abs=0.005)
    assert paired_p([np.zeros(MOST_PERMUTED + 1)], 0)[0] == 1
    assert np.isnan(paired_p([np.full(MOST_PERMUTED + 1, np.nan)], 0)[0])


def test_what_beats_the_best_one_wherever_they_meet_speaks_against_it():
    """The means are of different records: c has the lower one, and is better than a in every record of both."""
    kinds = ({"a": 2.0, "b": 1.0}, {"a": 0.0, "c": 1.0}, {"b": 0.0}, {"c": -1.0})
    records = [
        {"id": f"{kind}.{number}", "candidates": [{"model": name, "text": name, "scores": {"q": value}} for name, value in scores.items()]}
        for kind, scores in enumerate(kinds)
        for number in range(30)
    ]
    row = the_answer(records)
    assert (row["method"], row["over"], row["mean"], row["over_mean"]) == ("a", "b", 2.0, 1.0)
    assert row["p"] == 1.0 and not row["told_apart"] and row["line"].startswith("cannot be told apart: a and b")
