"""Panels of unequal judges: Dawid and Skene's model against EM spelled out in plain loops, and against the majority where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest

from blendkit.errors import DataError
from blendkit.evaluation.audit.panel import Panel
from blendkit.judges.dawid_skene import CLOSE, NONE, SMOOTH, dawid_skene, settle


def unequal(seed: int, size: int, good: float = 0.9, bad: float = 0.45, absent: float = 0.1):
    """Truths [size], and votes [size, 5] of two good judges and three bad ones; a judge that is wrong says either of the others."""
    g = np.random.default_rng(seed)
    truth = g.choice(3, size, p=[0.4, 0.2, 0.4])
    votes = np.empty((size, 5), np.int8)
    for judge, right in enumerate((good, good, bad, bad, bad)):
        wrong = (truth + g.integers(1, 3, size)) % 3
        votes[:, judge] = np.where(g.random(size) < right, truth, wrong)
    votes[g.random((size, 5)) < absent] = NONE
    votes[(votes == NONE).all(axis=1), 0] = 1
    return truth, votes


def slow_em(votes: list[list[int]]) -> tuple[list[float], list[list[list[float]]], list[list[float]]]:
    """Dawid and Skene 1979, equations 2.3 to 2.5, in plain loops, an item at a time."""
    items, judges = len(votes), len(votes[0])
    posterior = []
    for row in votes:
        there = [vote for vote in row if vote != NONE]
        posterior.append([there.count(k) / len(there) for k in range(3)])
    for _ in range(1000):
        shares = [SMOOTH + sum(posterior[i][k] for i in range(items)) for k in range(3)]
        shares = [share / sum(shares) for share in shares]
        confusion = []
        for j in range(judges):
            table = [[SMOOTH + sum(posterior[i][k] for i in range(items) if votes[i][j] == said) for said in range(3)] for k in range(3)]
            confusion.append([[cell / sum(row) for cell in row] for row in table])
        new = []
        for row in votes:
            likely = [shares[k] * math.prod(confusion[j][k][vote] for j, vote in enumerate(row) if vote != NONE) for k in range(3)]
            new.append([one / sum(likely) for one in likely])
        change = max(abs(a - b) for old, now in zip(posterior, new, strict=True) for a, b in zip(old, now, strict=True))
        posterior = new
        if change < CLOSE:
            break
    return shares, confusion, posterior


def test_em_is_that_of_plain_loops():
    _, votes = unequal(0, 120)
    rows, back, counts = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    fit = dawid_skene(rows, counts.astype(float))
    shares, confusion, posterior = slow_em(votes.tolist())
    np.testing.assert_allclose(fit.shares, shares, atol=1e-6)
    np.testing.assert_allclose(fit.confusion, confusion, atol=1e-6)
    np.testing.assert_allclose(fit.posterior[back.ravel()], posterior, atol=1e-6)


def records_of(truth, votes, labels=True) -> list[dict]:
    words = ("B", "tie-good", "A")
    records = []
    for number, (label, row) in enumerate(zip(truth, votes, strict=True)):
        verdicts = {f"j{judge}": [{"a": 0, "b": 1, "verdict": words[vote]}] for judge, vote in enumerate(row) if vote != NONE}
        record = {"id": str(number), "candidates": [{"model": name, "text": name} for name in "mn"], "verdicts": verdicts}
        records.append(record | ({"human": words[label].removesuffix("-good")} if labels else {}))
    return records


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(40), marks=pytest.mark.slow)])
def test_weighed_judges_beat_the_majority_where_they_are_unequal(seeds):
    ahead = []
    for seed in seeds:
        truth, votes = unequal(seed, 400)
        panel = Panel(labels="human")
        for record in records_of(truth, votes):
            panel.add(record, record["verdicts"])
        row = panel.fitted().rows()[-1]
        ahead.append(row["weighed"] - row["majority"])
    assert min(ahead) > 0 and np.mean(ahead) > 8


def test_what_a_panel_says_of_its_judges():
    truth, votes = unequal(1, 1500)
    panel = Panel(labels="human")
    for record in records_of(truth, votes):
        panel.add(record, record["verdicts"])
    fitted = panel.fitted()
    *judges, together = fitted.rows()
    assert [row["method"] for row in judges][:2] in (["j0", "j1"], ["j1", "j0"])
    for row in judges:
        right = 90 if row["method"] in ("j0", "j1") else 45
        assert row["accuracy"] == pytest.approx(right, abs=6) and 1200 < row["pairs"] < 1500
        # log(0.9 / 0.05) and log(0.45 / 0.275).
        assert row["weight"] == pytest.approx(2.89 if right == 90 else 0.49, abs=1.0)
    orjson.dumps(fitted.rows())  # plain numbers
    assert together["pairs"] == 1500 and 0 < together["alpha"] < 1 and together["by"] == "errors"
    # The settled verdict is that of the fit, with its probability; a judge that is not of the panel counts for nothing.
    record = records_of([2], [[2, 2, 0, 0, 0]])[0]
    settled = settle(fitted.judges, fitted.fit, {**record["verdicts"], "other": [{"a": 0, "b": 1, "verdict": "B"}]})
    assert settled[0, 1].verdict == "A" and settled[0, 1].probability > 0.8
    assert settle(fitted.judges, fitted.fit, {"j0": [{"a": 0, "b": 1, "verdict": "unparsed"}]}) == {}


def test_judges_that_err_together_are_worth_fewer():
    g = np.random.default_rng(0)
    truth = g.choice([0, 2], 2000)
    right = g.random((2000, 4)) < 0.75
    apart = np.where(right, truth[:, None], 2 - truth[:, None]).astype(np.int8)
    copied = apart.copy()
    copied[:, 1:3] = copied[:, :1]
    found = {}
    for name, votes in (("apart", apart), ("copied", copied)):
        for labels in (True, False):
            panel = Panel(labels="human" if labels else None)
            for record in records_of(truth, votes, labels):
                panel.add(record, record["verdicts"])
            found[name, labels] = panel.fitted().rows()[-1]
    assert found["apart", True]["effective_judges"] == pytest.approx(4, abs=0.2)
    # Three of the four are one: of six correlations three are 1, the mean is 1/2.
    assert found["copied", True]["effective_judges"] == pytest.approx(4 / 2.5, abs=0.1)
    # Without labels the votes of good judges agree, too: a lower bound.
    assert found["apart", False]["effective_judges"] < 3 and found["apart", False]["by"] == "votes" and "majority" not in found["apart", False]


def test_a_panel_of_nobody_is_refused_and_one_judge_is_worth_itself():
    with pytest.raises(DataError, match="there are none: `blendkit judge` writes them"):
        Panel().fitted()
    panel = Panel()
    for record in records_of([2, 0, 1], [[2], [2], [1]], labels=False):
        panel.add(record, record["verdicts"])
    judge, together = panel.fitted().rows()
    assert judge["method"] == "j0" and together["effective_judges"] is None and together["alpha"] is None
    # Two that differ cannot say which of them is right.
    panel = Panel(labels="human")
    for record in records_of([2, 0, 1], [[2, 0], [2, 0], [1, 1]]):
        panel.add(record, record["verdicts"])
    *judges, together = panel.fitted().rows()
    assert (
        {row["weight"] for row in judges} == {row["accuracy"] for row in judges} == {None} and together["weighed"] is None and together["majority"] == 33.3333
    )
    with pytest.raises(DataError, match="a panel is weighed from 3 judges on, and there are j0, j1"):
        settle(panel.judges, panel.fitted().fit, record["verdicts"])
    crowd = Panel()
    with pytest.raises(DataError, match="more than 100 judges"):
        crowd.add({"candidates": []}, {f"j{number}": [] for number in range(101)})
