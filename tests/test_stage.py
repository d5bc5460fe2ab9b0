"""The runner: batches by tokens, equal work once, halving when memory runs out, results that do not depend on batches."""

from __future__ import annotations

import pytest
from conftest import examples

from blendkit.errors import OutOfMemory
from blendkit.jsonl import Line
from blendkit.stage import Plan, Stage, Work, apply, process


class Squares(Stage):
    """Squares numbers, and fails above a number of tokens a batch as a full GPU would."""

    name = "squares"

    def __init__(self, room: int = 10**9) -> None:
        self.room, self.batches = room, []

    def plan(self, record):
        return [Work("n", n, n, n) for n in record["numbers"]]

    def run(self, group, payloads):
        if max(payloads) * len(payloads) > self.room:
            raise MemoryError
        self.batches.append(payloads)
        return [n * n for n in payloads]

    def finish(self, record, results):
        record["squares"] = results


def run(stage, numbers, **plan):
    given = Plan(**plan)
    lines = [Line(k, b"", {"id": str(k), "numbers": row}) for k, row in enumerate(numbers)]
    return [line.record["squares"] for window in process(stage, lines, given) for line in window], given.counts


def test_batches_are_sorted_and_keep_to_the_budget():
    stage = Squares()
    squares, _ = run(stage, [[3, 9, 1], [2, 8, 5]], batch_tokens=18)
    assert squares == [[9, 81, 1], [4, 64, 25]]
    assert stage.batches == [[9, 8], [5, 3, 2], [1]]


def test_equal_work_is_done_once_a_window():
    stage = Squares()
    squares, counts = run(stage, [[4, 4], [4, 2]])
    assert squares == [[16, 16], [16, 4]]
    assert (counts.works, counts.computed) == (4, 2)


def test_out_of_memory_halves_the_budget_and_goes_on():
    stage = Squares(room=20)
    squares, counts = run(stage, [list(range(1, 11))], batch_tokens=100)
    assert squares == [[n * n for n in range(1, 11)]]
    assert counts.budget_halvings > 0


def test_out_of_memory_with_one_item_is_the_end():
    with pytest.raises(OutOfMemory):
        run(Squares(room=5), [[1, 6]])


@pytest.mark.parametrize("settings", [{"batch_tokens": 1}, {"batch_tokens": 300}, {"window": 1}, {"window": 100}])
def test_logits_do_not_depend_on_batches_and_windows(tiny_ranker, settings):
    from blendkit.rankers.pairranker import PairRanker

    stage = PairRanker(str(tiny_ranker), device="cpu")
    whole = [record["comparisons"]["pairrm"]["pairs"] for record in apply(stage, examples(4))]
    other = [record["comparisons"]["pairrm"]["pairs"] for record in apply(stage, examples(4), **settings)]
    assert any(abs(logit) > 0.01 for pairs in whole for *_, logit in pairs)
    for mine, theirs in zip(whole, other, strict=True):
        for (i, j, logit), (k, m, again) in zip(mine, theirs, strict=True):
            assert (i, j) == (k, m)
            assert logit == pytest.approx(again, abs=1e-4)
