"""Records planned in a thread ahead of a device: full batches, a slow source, faults in their place, and no more ahead than a window."""

from __future__ import annotations

import threading
import time

import pytest
from conftest import examples
from test_runner import Squares, run

from blendkit.errors import RecordError
from blendkit.pipeline import ahead
from blendkit.pipeline.ahead import gathered
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import apply, process
from blendkit.streams.lines import BadLine, Line


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No window ends early because this machine is busy. A source that ends is not waited for."""
    monkeypatch.setattr(ahead, "PATIENCE", 60.0)


def same(item):
    return item


def test_a_window_is_as_many_items_as_fill_it_and_no_more_than_allowed():
    assert [len(window) for window in gathered(same, [3] * 25, same, 100, 30)] == [10, 10, 5]
    assert [len(window) for window in gathered(same, [3] * 25, same, 4, 30)] == [4] * 6 + [1]
    assert list(gathered(same, [40, 1, 50, 2, 2, 60], same, 100, 30)) == [[40], [1, 50], [2, 2, 60]]
    assert list(gathered(same, [], same, 4, 30)) == []


def test_a_slow_sources_items_do_not_wait_for_those_that_follow(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.2)
    more = threading.Event()

    def source():
        yield from (1, 2)
        more.wait(60)
        yield 3

    windows = gathered(same, source(), same, 100, 1000)
    assert next(windows) == [1, 2]
    more.set()
    assert list(windows) == [[3]]


def test_items_are_begun_while_a_window_is_worked_on_and_no_more_than_a_window_of_them():
    begun = []
    windows = gathered(lambda item: begun.append(item) or item, range(1000), lambda item: 10, 50, 100)
    next(windows)
    end = time.monotonic() + 60
    while len(begun) < 20 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(begun) == 20
    windows.close()


@pytest.mark.parametrize("where", ["source", "item"])
def test_a_fault_is_raised_behind_what_came_before_it(where):
    def source():
        yield from (1, 2)
        if where == "source":
            raise ValueError(where)
        yield 0

    def begin(item):
        if not item:
            raise ValueError("item")
        return item

    found = []
    with pytest.raises(ValueError, match=where):
        for window in gathered(begin, source(), same, 100, 1000):
            found += window
    assert found == [1, 2]


def test_a_stage_fills_its_batches_over_many_records_and_results_keep_their_order():
    stage = Squares()
    stage.ahead, stage.window = 1000, 2
    numbers = [[k % 7 + 1, 5] for k in range(200)]
    squares, counts = run(stage, numbers, batch_tokens=60, window=stage.in_flight)
    assert squares == [[n * n for n in row] for row in numbers]
    # What is equal in a window is done once.
    assert counts.records == 200 and len(stage.batches) <= 200 * 9 / (60 * ahead.BATCHES) + 2


@pytest.mark.parametrize("skips", [True, False])
def test_bad_records_are_told_in_order_and_all_before_the_first_is_given(skips):
    stage, told = Squares(), []
    stage.ahead = 4
    lines = [Line(k, b"", {"id": str(k), "numbers": [k]}) for k in range(1, 30)]
    lines[9] = BadLine(10, b"", RecordError("", "nine"))
    lines[19].record["numbers"] = None
    stage.plan = lambda record, plan=stage.plan: plan(record) if record["numbers"] else refuse()

    def refuse():
        raise RecordError("numbers", "none")

    plan = Plan(window=4, on_bad=(lambda bad: told.append(bad.number)) if skips else None)
    found = []
    try:
        for window in process(stage, lines, plan):
            found += [line.record["id"] for line in window]
        assert skips
    except RecordError as error:
        assert not skips and "nine" in str(error)
    good = [str(k) for k in range(1, 30) if k not in (10, 20)]
    assert (found, told) == ((good, [10, 20]) if skips else (good[:9], []))


def test_a_callers_generator_is_read_by_the_callers_thread():
    readers = []

    def source():
        for number in range(5):
            readers.append(threading.current_thread())
            yield {"id": str(number), "numbers": [number + 1]}

    stage = Squares()
    stage.ahead = 4
    assert len(list(apply(stage, source()))) == 5
    assert set(readers) == {threading.current_thread()}


def test_pairs_are_those_of_a_stage_that_plans_each_window_in_its_turn(tiny_ranker):
    from blendkit.rankers.pairranker import PairRanker

    for settings in ({}, {"schedule": "swiss:3"}, {"prefilter": "length:4"}):
        stages = [PairRanker(str(tiny_ranker), device="cpu", **settings) for _ in range(2)]
        stages[1].ahead = 16
        found = [list(apply(stage, examples(5), window=5)) for stage in stages]
        assert found[0] == found[1]
        assert stages[0].describe() == stages[1].describe()
