"""Whose preference the consensus weighs by: that of the ranking behind `top`, whatever else the record holds."""

from __future__ import annotations

import copy

import pytest

import blendkit as library
from blendkit.fusers.consensus import preference

RECORD = {
    "id": "a",
    "instruction": "x",
    "candidates": [{"model": name, "text": name, "scores": {"q": score}} for name, score in (("p", 1.0), ("q", 5.0), ("r", 3.0))],
    "comparisons": {
        "first": {"pairs": [[0, 1, 6.0], [1, 0, -6.0], [0, 2, 6.0], [2, 0, -6.0], [1, 2, 0.0], [2, 1, 0.0]]},
        "second": {"pairs": [[0, 1, -1.0], [1, 0, 1.0], [0, 2, 0.0], [2, 0, 0.0], [1, 2, 1.0], [2, 1, -1.0]]},
    },
}


def weights(*rankings):
    record = copy.deepcopy(RECORD)
    for ranking in rankings:
        (record,) = library.rank([record], **ranking)
    return record["top"], preference(record, record["top"]).tolist()


def softmax_of_second():
    # Mean logits: q 4/3, p and r -2/3 each.
    from math import exp

    q, others = exp(4 / 3), exp(-2 / 3)
    return pytest.approx([q / (q + 2 * others), others / (q + 2 * others), others / (q + 2 * others)])


@pytest.mark.parametrize("aggregate", [None, "copeland"])
def test_consensus_weighs_by_the_comparisons_that_top_comes_from(aggregate):
    assert weights({"by": "first"}, {"by": "second", "aggregate": aggregate}) == ([1, 0, 2], softmax_of_second())


def test_the_last_ranking_counts_where_several_agree_with_top():
    assert weights({"by": "second"}, {"by": "score:q", "name": "mine"}, {"by": "second"}) == ([1, 0, 2], softmax_of_second())


def test_consensus_weighs_a_ranking_without_comparisons_by_its_ranks():
    assert weights({"by": "first"}, {"by": "score:q"}) == ([1, 2, 0], pytest.approx([6 / 11, 3 / 11, 2 / 11]))


def test_ties_of_the_ranking_weigh_the_same():
    record = copy.deepcopy(RECORD)
    record["candidates"][2]["scores"]["q"] = 5.0
    (record,) = library.rank([record], "score:q")
    assert preference(record, record["top"]).tolist() == pytest.approx([3 / 7, 3 / 7, 1 / 7])


def test_a_top_that_no_ranking_explains_is_weighed_by_place():
    (record,) = library.rank([copy.deepcopy(RECORD)], "first")
    assert preference(record, [2, 1]).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_comparisons_with_a_fused_answer_do_not_disturb_the_weights():
    (record,) = library.rank([copy.deepcopy(RECORD)], "second")
    record["candidates"].append({"model": "fused", "text": "f", "sources": [0]})
    record["comparisons"]["second"]["pairs"] += [[3, 0, 9.0], [0, 3, -9.0]]
    assert preference(record, record["top"]).tolist() == softmax_of_second()
