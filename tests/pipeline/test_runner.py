"""The runner: batches by tokens, equal work once, halving when memory runs out, results that do not depend on batches."""

from __future__ import annotations

import pytest
from conftest import examples

from blendkit.errors import NoInputError, OutOfMemory
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import apply, process
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.streams.lines import Line


class Squares(Stage):
    """Squares numbers, and fails above a number of tokens a batch as a full GPU would."""

    name = "squares"

    def __init__(self, room: int = 10**9, budgeted: bool = True, fault: Exception | None = None) -> None:
        self.room, self.batches, self.fault, self.closed = room, [], fault or MemoryError(), 0
        self.job = Job("squares", self.square, budgeted, self.count_closing)

    def count_closing(self):
        self.closed += 1

    def plan(self, record):
        return [Work(self.job, n, n, n) for n in record["numbers"]]

    def square(self, payloads):
        if max(payloads) * len(payloads) > self.room:
            raise self.fault
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
    with pytest.raises(OutOfMemory, match="squares: not enough memory for one input of 6 tokens"):
        run(Squares(room=5), [[1, 6]])


WORDS = [
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12",
    "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 384 KB, max allowed: 18.1 GB).",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA out of memory. Tried to allocate 20.00 MiB.",
]


@pytest.mark.parametrize("words", WORDS)
def test_the_words_of_every_allocator_are_known(words):
    squares, counts = run(Squares(room=20, fault=RuntimeError(words)), [list(range(1, 11))], batch_tokens=100)
    assert squares == [[n * n for n in range(1, 11)]] and counts.budget_halvings > 0


def test_what_torch_says_here_when_memory_runs_out_is_known():
    import torch

    from blendkit.errors import out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("expected a tensor")) and not out_of_memory(ValueError("out of memory"))


def test_a_job_without_a_budget_halves_its_batches_too_and_never_tries_the_same_batch_for_ever():
    stage = Squares(room=20, budgeted=False)
    squares, counts = run(stage, [list(range(1, 11))])
    assert squares == [[n * n for n in range(1, 11)]] and counts.budget_halvings > 0
    with pytest.raises(OutOfMemory):
        run(Squares(room=5, budgeted=False), [[1, 6]])


def test_memory_is_free_again_before_a_smaller_batch_is_tried():
    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    seen = []

    def square(payloads):
        seen.append(Held.alive)
        batch = [Held() for _ in payloads]
        if len(batch) > 2:
            raise MemoryError
        return [n * n for n in payloads]

    stage = Squares()
    stage.job = Job("squares", square)
    squares, _ = run(stage, [[1, 2, 3, 4, 5, 6, 7, 8]])
    assert squares == [[1, 4, 9, 16, 25, 36, 49, 64]]
    assert len(seen) > 4 and set(seen) == {0}


def test_jobs_that_have_run_are_closed_at_the_end():
    stage = Squares()
    assert [record["squares"] for record in apply(stage, [{"instruction": "x", "numbers": [2]}])] == [[4]]
    assert stage.closed == 1


def test_two_jobs_of_one_name_share_no_work():
    stage = Squares()
    one, other = Job("n", lambda payloads: ["one"] * len(payloads)), Job("n", lambda payloads: ["other"] * len(payloads))
    stage.plan = lambda record: [Work(one, 1, 1, None), Work(other, 1, 1, None)]
    assert run(stage, [[1]])[0] == [["one", "other"]]


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


@pytest.mark.parametrize("fault", [IndexError("index out of range in self"), ValueError("math domain error"), None], ids=["index", "value", "count"])
def test_a_model_that_fails_as_it_computes_is_no_fault_of_ours(fault):
    """Whatever a library raises over a checkpoint whose files do not fit together; a job without a model has no such excuse."""

    def failing(payloads):
        if fault is None:
            return payloads[1:]
        raise fault

    for budgeted, expected in ((True, NoInputError), (False, type(fault or ValueError()))):
        stage = Squares()
        stage.job = Job("squares", failing, budgeted)
        with pytest.raises(expected, match=str(fault or "1 result of 2 inputs")):
            run(stage, [[1, 2]])
