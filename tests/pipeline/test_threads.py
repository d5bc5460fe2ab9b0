"""Windows in work side by side: order, faults in their place, a slow source, an early end."""

from __future__ import annotations

import threading
import time

import pytest

from blendkit.pipeline.threads import overlapped


def test_results_keep_the_order_and_run_side_by_side():
    running, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(4, timeout=60)

    def do(item, my_turn):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if item < 4:
            together.wait()
        time.sleep(0.02 if item % 4 == 0 else 0.001)
        with lock:
            running -= 1
        return item * 10

    assert list(overlapped(do, iter(range(20)), 4)) == [item * 10 for item in range(20)]
    assert most == 4


@pytest.mark.parametrize("where", ["work", "source"])
def test_a_fault_comes_behind_the_results_before_it(where):
    def source():
        yield from range(5)
        if where == "source":
            raise ValueError("source")
        yield from range(5, 9)

    def do(item, my_turn):
        if where == "work" and item == 5:
            raise ValueError("work")
        time.sleep(0.005 * (5 - item % 5))
        return item

    found = []
    with pytest.raises(ValueError, match=where):
        for result in overlapped(do, source(), 3):
            found.append(result)
    assert found == [0, 1, 2, 3, 4]


def test_turns_come_in_order():
    told = []

    def do(item, my_turn):
        time.sleep(0.01 * (3 - item % 3))
        my_turn()
        told.append(item)
        return item

    assert list(overlapped(do, iter(range(9)), 3)) == list(range(9))
    assert told == list(range(9))


def test_results_do_not_wait_for_a_slow_source():
    seen = threading.Event()

    def source():
        yield 1
        assert seen.wait(30), "the first result was kept until the source gave its second"
        yield 2

    results = overlapped(lambda item, my_turn: item, source(), 2)
    assert next(results) == 1
    seen.set()
    assert list(results) == [2]


def test_no_more_is_read_than_is_asked_for():
    read = []

    def source():
        for item in range(100):
            read.append(item)
            yield item

    results = overlapped(lambda item, my_turn: item, source(), 3)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    time.sleep(0.05)
    assert len(read) <= 8
    results.close()
    time.sleep(0.05)
    assert len(read) <= 8


def test_nothing_in_gives_nothing_out():
    assert list(overlapped(lambda item, my_turn: item, iter(()), 4)) == []
