"""Schedules, prefilter, partial matrices: fewer comparisons, and what rank makes of them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import examples, lines, parsed
from hypothesis import given
from hypothesis import strategies as st

import blendkit as library
from blendkit.aggregate import AGGREGATIONS, StrengthPosterior, matrix, max_logits
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import apply, process
from blendkit.pipeline.work import Job, Work
from blendkit.rankers import SCHEDULES
from blendkit.rankers.pairranker import PairRanker
from blendkit.rankers.schedules import make_schedule


def drive(spec, n, logit, seed=0):
    """The pairs that a schedule asked for, its rounds, and its order."""
    run = make_schedule(spec)(n, random.Random(seed))
    asked, rounds = [], 0
    try:
        pairs = next(run)
        while True:
            rounds += 1
            asked += pairs
            pairs = run.send([logit(i, j) for i, j in pairs])
    except StopIteration as done:
        return asked, rounds, done.value


@given(n=st.integers(1, 16), seed=st.integers(0, 999), spec=st.sampled_from(["bubble", "bubble:3", "bubble:99", "sort"]))
def test_orders_are_exact_under_a_transitive_ranker(n, seed, spec):
    strengths = np.random.default_rng(seed).permutation(n)
    # Transitive, not additive, and in favour of whoever stands first.
    asked, _, order = drive(spec, n, lambda i, j: float(strengths[i] - strengths[j]) ** 3 + 0.4, seed)
    expected = np.argsort(-strengths).tolist()
    assert order == expected[: len(order)]
    assert len(order) == {"bubble": 1, "bubble:3": min(3, n)}.get(spec, n)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("spec", "comparisons", "rounds"),
    [("full", 110, 1), ("single", 55, 1), ("bubble", 20, 10), ("swiss:5", 25, 5), ("active:25", 25, 5)],
)
def test_the_cost_of_a_schedule(spec, comparisons, rounds):
    asked, found, _ = drive(spec, 11, lambda i, j: float(j - i))
    assert len(asked) == len(set(asked)) == comparisons
    assert found <= rounds
    assert all(i != j for i, j in asked)


def test_merge_insertion_is_near_the_least_number_of_comparisons():
    def cost(seed):
        order = np.random.default_rng(seed).permutation(11)
        return len(drive("sort", 11, lambda i, j: float(order[i] - order[j]), seed)[0])

    worst = max(cost(seed) for seed in range(50))
    assert worst == 2 * 26  # ceil(log2 11!) = 26, in both orders


@given(n=st.integers(2, 12), seed=st.integers(0, 99), spec=st.sampled_from(["single", "swiss:4", "active:30"]))
def test_partial_matrices_of_an_additive_ranker_rank_as_the_full_one(n, seed, spec):
    strengths = np.random.default_rng(seed).normal(size=n) * 2
    asked, _, _ = drive(spec, n, lambda i, j: strengths[i] - strengths[j] + 0.3, seed)
    m = matrix([(i, j, strengths[i] - strengths[j] + 0.3) for i, j in asked], n)
    if n > 3:
        scores = AGGREGATIONS["max-logits"](m)
        np.testing.assert_allclose(scores - scores.mean(), 2 * (strengths - strengths.mean()), atol=0.05)


def test_the_fit_of_a_full_matrix_is_max_logits():
    m = np.random.default_rng(0).normal(size=(7, 7))
    np.fill_diagonal(m, 0)
    exact = AGGREGATIONS["max-logits"](m)
    rows = [(i, j, m[i, j]) for i in range(7) for j in range(7) if i != j]
    np.testing.assert_allclose(2 * StrengthPosterior(rows, 7, noise=1e-3).strengths, exact, atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_finds_a_clear_order(name):
    full = matrix([(i, j, float(j - i)) for i in range(5) for j in range(5) if i != j], 5)
    assert np.argsort(-AGGREGATIONS[name](full)).tolist() == [0, 1, 2, 3, 4]
    some = matrix([(0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0), (3, 4, 1.0), (4, 0, -4.0)], 5)
    scores = AGGREGATIONS[name](some)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 0


def test_max_wins_and_copeland_on_a_known_matrix():
    m = matrix([(0, 1, 1.0), (1, 0, 2.0), (0, 2, 3.0), (2, 0, -1.0), (1, 2, 0.0), (2, 1, 0.0)], 3)
    assert AGGREGATIONS["max-wins"](m).tolist() == [3, 1, 0]
    assert AGGREGATIONS["copeland"](m).tolist() == [0, 1, -1]


@pytest.mark.slow
def test_schedules_through_the_pipe(blendkit, tiny_ranker):
    stdin = lines(examples(4))
    for spec, most in (("single", 10), ("bubble:2", 14), ("sort", 14), ("swiss:3", 6), ("active:7", 7)):
        done = blendkit("pair", "--model", tiny_ranker, "--schedule", spec, "--window", 3, stdin=stdin)
        assert done.returncode == 0, done.stderr
        for record in parsed(done.stdout):
            found = record["comparisons"]["pairrm"]
            assert found["schedule"] == spec
            assert 0 < len(found["pairs"]) <= most
        ranked = blendkit("rank", "--top", 2, stdin=done.stdout)
        for record in parsed(ranked.stdout):
            ranks, order = record["ranks"]["pairrm"], record["comparisons"]["pairrm"].get("order", [])
            assert [ranks[index] for index in order] == list(range(1, len(order) + 1))
            assert record["top"][: len(order)] == order[:2]


def test_a_schedule_is_drawn_by_seed_and_record_alone(tiny_ranker):
    def pairs(seed, window, turned=False):
        stage = PairRanker(str(tiny_ranker), device="cpu", schedule="single", seed=seed)
        records = examples(5)[:: -1 if turned else 1]
        return {record["id"]: [row[:2] for row in record["comparisons"]["pairrm"]["pairs"]] for record in apply(stage, records, window=window)}

    assert pairs(0, 8) == pairs(0, 1) == pairs(0, 2, turned=True)
    assert pairs(0, 8) != pairs(1, 8)


def test_the_same_logits_as_in_the_full_matrix(tiny_ranker):
    (full,) = library.pair(examples(1), str(tiny_ranker), device="cpu")
    known = {(i, j): logit for i, j, logit in full["comparisons"]["pairrm"]["pairs"]}
    for spec in ("single", "sort", "swiss:4", "active:9"):
        (some,) = library.pair(examples(1), str(tiny_ranker), device="cpu", schedule=spec)
        for i, j, logit in some["comparisons"]["pairrm"]["pairs"]:
            assert logit == pytest.approx(known[i, j], abs=1e-4)


def test_one_candidate_needs_no_comparison(tiny_ranker):
    for spec in ("full", "single", "bubble", "sort", "swiss:3", "active:5"):
        (paired,) = library.pair([{"instruction": "x", "candidates": [{"model": "m", "text": "t"}]}], str(tiny_ranker), schedule=spec)
        assert paired["comparisons"]["pairrm"]["pairs"] == []
        (ranked,) = library.rank([paired])
        assert ranked["ranks"]["pairrm"] == [1]


def test_equal_candidates_and_equal_pairs_are_computed_once(tiny_ranker):
    record = {"instruction": "x", "candidates": [{"model": m, "text": text} for m, text in zip("abcd", ["one", "two", "one", "two"], strict=True)]}
    stage = PairRanker(str(tiny_ranker), device="cpu")
    plan = Plan(window=8)
    from blendkit.streams.lines import Line

    (done,) = process(stage, [Line(n, b"", {**record, "id": str(n)}) for n in range(3)], plan)
    assert len(done) == 3
    # 12 pairs a record; of the texts there are (one, two), (two, one), (one, one) and (two, two).
    assert (plan.counts.works, plan.counts.computed) == (36, 4)


def test_levels_of_all_records_run_together():
    from blendkit.pipeline.stage import Stage
    from blendkit.streams.lines import Line

    class Counting(Stage):
        name = "counting"

        def __init__(self):
            self.batches = []
            self.job = Job("levels", self.count)

        def rounds(self, record):
            total = 0
            for level in range(record["levels"]):
                (found,) = yield [Work(self.job, (record["id"], level), 1, level)]
                total += found
            record["total"] = total

        def count(self, payloads):
            self.batches.append(len(payloads))
            return payloads

    stage = Counting()
    (done,) = process(stage, [Line(n, b"", {"id": str(n), "levels": n}) for n in range(4)], Plan(window=4))
    assert [line.record["total"] for line in done] == [0, 0, 1, 3]
    assert stage.batches == [3, 2, 1]


def test_a_prefilter_leaves_the_rest_below(blendkit, tiny_ranker):
    stdin = lines(examples(3))
    done = blendkit("pair", "--model", tiny_ranker, "--prefilter", "length:3", "--manifest", "/dev/null", stdin=stdin)
    assert done.returncode == 0, done.stderr
    ranked = parsed(blendkit("rank", stdin=done.stdout).stdout)
    for record in ranked:
        lengths = [len(candidate["text"]) for candidate in record["candidates"]]
        kept = set(sorted(range(5), key=lambda index: -lengths[index])[:3])
        found = record["comparisons"]["pairrm"]
        assert found["prefilter"] == "length:3"
        assert {index for row in found["pairs"] for index in row[:2]} == kept
        assert {index for index, rank in enumerate(record["ranks"]["pairrm"]) if rank <= 3} == kept
        assert [record["ranks"]["pairrm"][index] for index in range(5) if index not in kept] == [4, 4]


def test_a_prefilter_takes_scores_that_are_there(tiny_ranker):
    record = examples(1)[0]
    for index, candidate in enumerate(record["candidates"]):
        candidate["scores"] = {"mine": -index}
    (done,) = library.pair([record], str(tiny_ranker), prefilter="mine:2")
    assert {row[0] for row in done["comparisons"]["pairrm"]["pairs"]} == {0, 1}


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--schedule", "swis:3"], 2, "did you mean swiss?"),
        (["--schedule", "swiss"], 2, "expected swiss:NUMBER, the number of rounds"),
        (["--schedule", "active:0"], 2, "above 0"),
        (["--schedule", "full:3"], 2, "full takes no number"),
        (["--prefilter", "length"], 2, "expected METRIC:K"),
        (["--prefilter", "bleu:3"], 2, "a ranker must not see"),
        (["--prefilter", "nothing:3"], 65, "candidates[0].scores.nothing: expected a number"),
        (["--on-truncate", "cut"], 2, "expected warn or fail"),
    ],
)
def test_wrong_flags_are_one_clear_line(blendkit, tiny_ranker, flags, code, said):
    done = blendkit("pair", "--model", tiny_ranker, *flags, stdin=lines(examples(1)))
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_truncation_is_told_once(blendkit, tiny_ranker, tmp_path):
    import json

    records = examples(2)
    records[0]["instruction"] = "word " * 300
    records[1]["candidates"][2]["text"] = "word " * 300
    manifest = tmp_path / "manifest.json"
    done = blendkit("pair", "--model", tiny_ranker, "--manifest", manifest, stdin=lines(records))
    assert done.returncode == 0
    (told,) = [line for line in done.stderr.splitlines() if "cut to the model's length" in line]
    counts = json.loads(manifest.read_text())["truncation"]
    assert counts["sources_cut"] == 1
    assert counts["sources"] == 2
    assert counts["candidates_cut"] >= 1
    assert f"1 of 2 x ({counts['source_tokens_cut']:,} tokens)" in told
    assert counts["source_tokens_cut"] > 200


def test_truncation_can_be_a_fault(blendkit, tiny_ranker):
    records = examples(2)
    for record in records:
        for candidate in record["candidates"]:
            candidate["text"] = candidate["text"][:40]
        record["instruction"] = "short"
    records[1]["candidates"][2]["text"] = "word " * 300
    done = blendkit("pair", "--model", tiny_ranker, "--on-truncate", "fail", stdin=lines(records))
    assert done.returncode == 65
    assert "<stdin>:2: candidates: too long for the model: 1 of 5 texts; the longest has" in done.stderr
    assert len(parsed(done.stdout)) == 1


@pytest.mark.slow
def test_rank_against_a_reference(blendkit, tiny_ranker):
    paired = blendkit("pair", "--model", tiny_ranker, stdin=lines(examples(2)))
    model = examples(1)[0]["candidates"][1]["model"]
    for mode in ("longest", model):
        ranked = blendkit("rank", "--reference", mode, stdin=paired.stdout)
        assert ranked.returncode == 0, ranked.stderr
        assert f"pairrm:reference-{mode}" in parsed(ranked.stdout)[0]["ranks"]
    wrong = blendkit("rank", "--reference", "nobody", stdin=paired.stdout)
    assert wrong.returncode == 65
    assert "--reference nobody: expected longest, shortest, median-length, first, last, or one of these models" in wrong.stderr
    partial = blendkit("pair", "--model", tiny_ranker, "--schedule", "single", stdin=lines(examples(1)))
    missing = blendkit("rank", "--reference", "longest", stdin=partial.stdout)
    assert missing.returncode == 65
    assert "were not compared in both orders" in missing.stderr


def test_a_conversation_must_end_with_the_user(blendkit, tiny_ranker):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    record = {"id": "c", "messages": turns, "candidates": [{"model": "a", "text": "x"}, {"model": "b", "text": "y"}]}
    done = blendkit("pair", "--model", tiny_ranker, stdin=lines([record]))
    assert done.returncode == 65
    assert "messages: expected the user's turn last" in done.stderr
    record["messages"] = [*turns, {"role": "user", "content": "a joke"}]
    assert blendkit("pair", "--model", tiny_ranker, stdin=lines([record])).returncode == 0


def test_every_schedule_is_in_the_help(blendkit):
    shown = blendkit("pair", "--help").stdout
    assert all(f"`{name}" in shown or f"{name}" in shown for name in SCHEDULES)


def test_one_comparison_of_two_candidates_is_no_tie():
    """The favour of the first place must not explain away the only comparison there is."""
    for pairs, best in (([(0, 1, 0.4)], 0), ([(0, 1, -0.4)], 1), ([(1, 0, 0.4)], 1)):
        assert int(np.argmax(max_logits(matrix(pairs, 2)))) == best and len(set(max_logits(matrix(pairs, 2)))) == 2
