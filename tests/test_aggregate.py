"""Verdicts settled, matrices read as what they are, and Bradley-Terry strengths against a truth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import lines, parsed

from blendkit.aggregate import AGGREGATIONS, bradley_terry_strengths, matrix, settled, verdict_matrix, verdict_wins


def given(*words, **more):
    return [{"a": 0, "b": 1, "verdict": word, **more} for word in words]


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (("A", "unparsed"), "A"),
        (("unparsed", "B"), "B"),
        (("tie-bad", "unparsed"), "tie-bad"),
        (("A", "B", "unparsed"), "tie-good"),
        (("A", "A", "B", "unparsed", "unparsed"), "A"),
        (("unparsed",), "unparsed"),
        (("unparsed", "unparsed"), "unparsed"),
    ],
)
def test_what_could_not_be_read_counts_for_nothing(words, verdict):
    assert settled(given(*words))[0, 1].verdict == verdict
    m = verdict_matrix(given(*words), 2)
    assert np.isnan(m[0, 1]) == (verdict == "unparsed")
    assert np.isnan(m[0, 1]) or (m[0, 1] > m[1, 0], m[0, 1] < m[1, 0]) == (verdict == "A", verdict == "B")


def test_probabilities_are_averaged_over_what_could_be_read():
    both = [*given("A", probability=0.9), *given("unparsed")]
    assert settled(both)[0, 1].probability == 0.9
    assert settled([*both, *given("B", probability=0.3)])[0, 1].probability == pytest.approx(0.6)
    assert settled(given("unparsed", "unparsed"))[0, 1].probability is None


def test_a_verdict_is_a_whole_win():
    verdicts = [
        {"a": 0, "b": 1, "verdict": "A"},
        {"a": 0, "b": 2, "verdict": "tie-good"},
        {"a": 1, "b": 2, "verdict": "tie-bad"},
        {"a": 1, "b": 3, "verdict": "B", "probability": 0.2},
    ]
    wins = verdict_wins(verdict_matrix(verdicts, 4))
    assert (wins[0, 1], wins[1, 0]) == (1, 0)
    assert wins[0, 2] == wins[2, 0] == wins[1, 2] == wins[2, 1] == 0.5
    assert (wins[1, 3], wins[3, 1]) == (pytest.approx(0.2), pytest.approx(0.8))
    assert np.isnan(wins[0, 3]) and np.isnan(wins[2, 3])


@pytest.mark.parametrize("name", ["bradley-terry", "elo"])
def test_a_verdict_weighs_more_than_a_logit_of_one(name):
    m = verdict_matrix(given("A"), 2)
    as_win, as_logit = AGGREGATIONS[name](m, verdict_wins), AGGREGATIONS[name](m)
    assert as_win[0] - as_win[1] > 1.5 * (as_logit[0] - as_logit[1]) > 0


@pytest.mark.parametrize("aggregation", ["bradley-terry", "elo"])
def test_rank_reads_probabilities_of_a_judge_as_probabilities(blendkit, aggregation):
    """0 beats 1 for sure, and 2 beats 0 by a hair: the hair must not weigh what the win does."""
    verdicts = [
        {"a": 0, "b": 1, "verdict": "A", "probability": 1.0},
        {"a": 0, "b": 2, "verdict": "B", "probability": 0.45},
        {"a": 1, "b": 2, "verdict": "A", "probability": 0.6},
    ]
    record = {"id": "a", "candidates": [{"model": name, "text": name} for name in "xyz"], "verdicts": {"j": verdicts}}
    done = blendkit("rank", "--by", "judge:j", "--aggregate", aggregation, stdin=lines([record]))
    assert done.returncode == 0, done.stderr
    assert parsed(done.stdout)[0]["ranks"][f"judge:j:{aggregation}"] == [1, 3, 2]


def test_logits_are_read_as_log_odds():
    """Where every pair was compared often, the strengths that made the logits come back."""
    strengths = np.array([1.0, 0.4, -0.2, -1.2])
    m = matrix([(i, j, strengths[i] - strengths[j]) for i in range(4) for j in range(4) if i != j], 4)
    np.testing.assert_allclose(AGGREGATIONS["bradley-terry"](m), strengths - strengths.mean(), atol=0.02)


def test_bradley_terry_strengths_are_the_optimum():
    generator = np.random.default_rng(2)
    wins = generator.integers(0, 9, size=(5, 6, 6)).astype(float) * (1 - np.eye(6))
    wins[1, 0] = 0.0  # one that never won
    wins[2] = 0.0  # nobody played
    wins[3, :3, 3:] = wins[3, 3:, :3] = 0.0  # two groups that never met
    found = bradley_terry_strengths(wins, prior=0.1)
    played = (padded := wins + 0.1 * (1 - np.eye(6))) + padded.transpose(0, 2, 1)
    expected = played / (1 + np.exp(found[:, None, :] - found[:, :, None]))
    np.testing.assert_allclose(padded.sum(axis=2), (expected * (1 - np.eye(6))).sum(axis=2), atol=1e-8)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(found[2], 0, atol=1e-9)
    np.testing.assert_allclose(found[4], bradley_terry_strengths(wins[4], prior=0.1), atol=1e-9)


def test_bradley_terry_finds_the_strengths_that_made_the_wins():
    strengths = np.array([-1.0, -0.3, 0.2, 1.1])
    generator = np.random.default_rng(0)
    wins = np.zeros((4, 4))
    for i in range(4):
        for j in range(i):
            wins[i, j] = generator.binomial(4000, 1 / (1 + math.exp(strengths[j] - strengths[i])))
            wins[j, i] = 4000 - wins[i, j]
    np.testing.assert_allclose(bradley_terry_strengths(wins, prior=0.1), strengths, atol=0.1)


def test_one_that_won_always_stays_finite():
    wins = np.array([[0.0, 1000.0], [0.0, 0.0]])
    high, low = bradley_terry_strengths(wins, prior=0.01)
    assert high - low == pytest.approx(math.log(1000.01 / 0.01), abs=1e-6)
