"""score, judge and evaluate."""

from __future__ import annotations

import json

import pytest
from conftest import examples, lines, parsed

import blendkit as library
from blendkit.scorers import SCORERS


def test_metrics_are_those_of_their_libraries():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    records = list(library.score(examples(4), ["bleu", "rouge2", "rougeLsum", "length"]))
    rouge = RougeScorer(["rouge2", "rougeLsum"], use_stemmer=True)
    for record in records:
        for candidate in record["candidates"]:
            found = rouge.score(record["output"], candidate["text"])
            assert candidate["scores"]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(candidate["text"], [record["output"]]).score, abs=1e-5)
            assert candidate["scores"]["rouge2"] == pytest.approx(found["rouge2"].fmeasure, abs=1e-5)
            assert candidate["scores"]["rougeLsum"] == pytest.approx(found["rougeLsum"].fmeasure, abs=1e-5)
            assert candidate["scores"]["length"] == len(candidate["text"])


def test_bertscore_is_the_packages_and_takes_an_empty_text(tiny_encoder):
    import bert_score

    records = examples(3)
    records[0]["candidates"][0]["text"] = ""
    done = list(library.score(records, [f"bertscore:{tiny_encoder}"], device="cpu"))
    ours = [candidate["scores"]["bertscore"] for record in done for candidate in record["candidates"]]
    pairs = [(candidate["text"], record["output"]) for record in done for candidate in record["candidates"]]
    _, _, expected = bert_score.score([c for c, _ in pairs[1:]], [r for _, r in pairs[1:]], model_type=str(tiny_encoder), num_layers=2, device="cpu")
    assert ours[0] == 0
    assert ours[1:] == pytest.approx(expected.tolist(), abs=1e-5)


def test_random_is_fixed_by_the_seed():
    def scores(seed):
        return [c["scores"]["random"] for record in library.score(examples(3), ["random"], seed=seed) for c in record["candidates"]]

    assert scores(1) == scores(1) != scores(2)


def test_an_unknown_metric_gets_the_nearest_name(blendkit):
    done = blendkit("score", "--metric", "rogue2", stdin=lines(examples(1)))
    assert done.returncode == 2
    assert "--metric rogue2: expected one of bleu, " in done.stderr and "; did you mean rouge2?" in done.stderr


def test_a_metric_that_misses_the_reference(blendkit):
    record = examples(1)[0]
    del record["output"]
    done = blendkit("score", "--metric", "bleu", stdin=lines([record]))
    assert done.returncode == 65
    assert "<stdin>:1: output: expected a string: --metric bleu needs the reference answer" in done.stderr
    assert blendkit("score", "--metric", "length", stdin=lines([record])).returncode == 0


def test_the_list_of_metrics(blendkit):
    done = blendkit("score", "--list")
    assert done.returncode == 0
    assert all(name in done.stdout for name in SCORERS)
    assert done.stdout.startswith("metric")


def judged():
    records = []
    for k, (x, y) in enumerate([("A", 0.9), ("A", 0.5), ("B", 0.1), ("tie-good", 0.4)]):
        candidates = [{"model": "m", "text": "1", "scores": {"q": y}}, {"model": "n", "text": "2", "scores": {"q": 0.3}}]
        candidates.append({"model": "fused", "text": "3", "sources": [0, 1], "scores": {"q": 1.0}})
        verdicts = [{"a": 0, "b": 1, "verdict": x}, {"a": 0, "b": 2, "verdict": "B"}, {"a": 1, "b": 2, "verdict": "B" if k else "A"}]
        records.append({"id": str(k), "candidates": candidates, "verdicts": {"j": verdicts}, "ranks": {"r": [1, 2]}})
    return records


def test_the_tables_by_hand():
    rows = library.evaluate(judged(), versus=["n"])
    table2 = {row["method"]: row for row in rows if row["table"] == 2}
    assert table2["m"]["judge_rank"] == pytest.approx((1 + 1 + 2 + 1) / 4)
    assert table2["n"]["judge_rank"] == pytest.approx((2 + 2 + 1 + 1) / 4)
    assert table2["r"]["judge_rank"] == table2["m"]["judge_rank"]
    assert table2["m"]["q"] == pytest.approx(0.475)
    assert table2["oracle (q)"]["q"] == pytest.approx((0.9 + 0.5 + 0.3 + 0.4) / 4)
    assert table2["m"]["not_worse_than_n"] == 75
    assert table2["n"]["not_worse_than_n"] == 100
    # In record 0 the fused one beats m and loses to n, m beats n: all three share a rank.
    assert table2["fused"]["judge_rank"] == 1
    assert table2["fused"]["not_worse_than_n"] == 75
    table3 = {row["method"]: row for row in rows if row["table"] == 3}
    assert set(table3) == {"r", "score:q"}
    # Both orders right in 0 and 1, wrong in 2; in 3 the oracle ties, and nothing is defined.
    assert table3["r"]["spearman_per_example"] == pytest.approx(100 / 3, abs=1e-3)
    assert table3["score:q"]["spearman_per_example"] == 100


def test_evaluate_prints_tables_to_stderr_and_json_to_stdout(blendkit):
    done = blendkit("evaluate", "--versus", "n", stdin=lines(judged()))
    assert done.returncode == 0
    assert "Judge rank (j)" in done.stderr and "GPT-Rank" not in done.stderr and "Footrule" in done.stderr and "≥ n %" in done.stderr
    assert {row["table"] for row in parsed(done.stdout)} == {"answer", "judge", 2, 3, "firsts", "distribution"}


def test_evaluate_of_nothing_and_of_an_unknown_baseline(blendkit):
    assert blendkit("evaluate").returncode == 65
    done = blendkit("evaluate", "--versus", "zz", stdin=lines(judged()))
    assert done.returncode == 65
    assert "--versus zz: no candidate of that model; there are m, n" in done.stderr


@pytest.mark.slow
def test_the_whole_pipe(blendkit):
    stream = lines([record | {"mine": {"a": [1]}} for record in examples(4)])
    for command in ("pair", "rank --top 3", "fuse", "score --metric bleu --metric rouge2", "judge"):
        done = blendkit(*command.split(), stdin=stream)
        assert (done.returncode, done.stderr) == (0, ""), command
        stream = done.stdout
    records = parsed(stream)
    assert [record["id"] for record in records] == [record["id"] for record in examples(4)]
    for record, given in zip(records, examples(4), strict=True):
        assert record["mine"] == {"a": [1]}
        assert [c["text"] for c in record["candidates"][:5]] == [c["text"] for c in given["candidates"]]
        assert record["candidates"][5]["model"] == "consensus"
        assert len(record["comparisons"]["pairrm"]["pairs"]) == 20
        assert len(record["verdicts"]["embedded"]) == 15
        assert all({"bleu", "rouge2"} <= set(c["scores"]) for c in record["candidates"])
    done = blendkit("evaluate", stdin=stream)
    assert done.returncode == 0
    assert {row["kind"] for row in map(json.loads, done.stdout.splitlines()) if row["table"] == 2} == {"model", "oracle", "ranker", "fused"}
