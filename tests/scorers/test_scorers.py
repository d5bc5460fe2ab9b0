"""Scorers: hostile texts, signatures, flags, labels, faults, and agreement with people's labels."""

from __future__ import annotations

import json
import math

import pytest
from conftest import examples, lines, parsed
from tiny_scorers import scored, spec

from blendkit.errors import NoInputError, UsageError
from blendkit.pipeline.runner import apply
from blendkit.scorers import SCORERS, make_scorer
from blendkit.scorers.scoring import Scoring

HOSTILE = [
    "",
    "   ",
    "same",
    "same",
    "x" * 10_000,
    "word " * 3000,
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u202eabc\u202c",
    "\x00\x01",
    "[SEP] </s> [MASK] <source>",
    "a\n\n\tb",
]


@pytest.mark.parametrize("metric", SCORERS)
def test_every_score_of_any_text_is_finite(tiny, metric):
    """Empty, blank, equal, endless, right-to-left, emoji and control characters, as candidate and as reference."""
    texts = ["", "same", "x" * 3000 + " end", "مرحبا 👩‍👩‍👧", "[SEP] [MASK]"] if metric.startswith("mlm") else HOSTILE
    references = ["", "same", "שלום 🙂", "word " * 2000]
    candidates = [{"model": str(number), "text": text} for number, text in enumerate(texts)]
    records = [{"id": str(n), "instruction": "x", "output": text, "candidates": [dict(c) for c in candidates]} for n, text in enumerate(references)]
    (scores,) = scored(records if make_scorer(spec(tiny, metric), device="cpu").needs_reference else records[:1], spec(tiny, metric))
    assert all(math.isfinite(score) for score in scores)
    if metric != "random":
        assert scores[texts.index("same")] == scores[len(texts) - 1 - texts[::-1].index("same")]


@pytest.mark.parametrize("metric", SCORERS)
def test_a_score_has_its_signature_and_depends_on_no_batch(tiny, metric):
    one = Scoring([spec(tiny, metric)], "cpu", "float32")
    if all(scorer.plans_ahead for scorer in one.scorers.values()):
        # As on a GPU.
        one.ahead = 4
    whole = list(apply(one, examples(4), window=4))
    single = list(apply(Scoring([spec(tiny, metric)], "cpu", "float32"), examples(4), window=1, batch_tokens=64))
    for first, second in zip(whole, single, strict=True):
        for a, b in zip(first["candidates"], second["candidates"], strict=True):
            assert a["scores"][metric] == pytest.approx(b["scores"][metric], abs=1e-5, rel=1e-4)
    signature = one.describe()["signatures"][0]
    assert whole[0]["signatures"] == {f"score:{metric}": signature}
    values = {candidate["scores"][metric] for record in whole for candidate in record["candidates"]}
    assert len(values) > (1 if metric == "exact-match" else 5) or metric == "exact-match"


@pytest.mark.parametrize("metric", [name for name in SCORERS if name not in ("length", "random")])
def test_a_missing_need_names_the_record(blendkit, tiny, metric):
    record = {key: value for key, value in examples(1)[0].items() if key in ("id", "candidates")}
    scorer = make_scorer(spec(tiny, metric), device="cpu")
    done = blendkit("score", "--metric", spec(tiny, metric), stdin=lines([examples(1)[0] | {"id": "good"}, record]))
    if scorer.needs_reference:
        assert (done.returncode, done.stderr) == (65, f"blendkit score: <stdin>:2: output: expected a string: --metric {metric} needs the reference answer\n")
    elif scorer.needs_source:
        assert done.returncode == 65
        # What was cut is told before.
        assert done.stderr.splitlines()[-1] == "blendkit score: <stdin>:2: instruction: expected a string (or `input`, or `messages`), got nothing"
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert [row["id"] for row in parsed(done.stdout)][:1] == ["good"]


def test_labels_keep_two_models_of_one_metric_apart(tiny, blendkit):
    done = blendkit("score", "--metric", "bertscore", "--metric", f"tiny=bertscore:{tiny['bertscore']}", stdin=lines(examples(1)))
    assert done.returncode == 0, done.stderr
    assert set(parsed(done.stdout)[0]["candidates"][0]["scores"]) == {"bertscore", "tiny"}
    twice = blendkit("score", "--metric", "bertscore", "--metric", f"bertscore:{tiny['bertscore']}", stdin=lines(examples(1)))
    assert twice.returncode == 2
    assert "the name bertscore is given twice; give one another, NAME=" in twice.stderr


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("bleu:x", "no tokenizer x: expected one of auto, lang, 13a, intl, zh, "),
        ("chrf:zh", "chrf takes no model"),
        ("simcls", "name a model, simcls:MODEL"),
        ("mbr:length", "length compares with no reference"),
        ("ppl=perplexity:x", "a name must say so: perplexity-ppl=perplexity:x"),
        ("bert=bertscore:a=bertsore", "no model"),
    ],
)
def test_a_wrong_metric_says_what_is_wrong(metric, said):
    with pytest.raises((UsageError, NoInputError)) as error:
        make_scorer(metric, device="cpu")
    assert said in str(error.value)


def test_a_checkpoint_of_another_kind_is_refused(tiny):
    """transformers would make up the missing head."""
    for metric in ("bleurt", "reward", "mlm", "bartscore", "simcls", "summareranker"):
        with pytest.raises(NoInputError):
            make_scorer(f"{metric}:{tiny['bertscore']}", device="cpu")


def test_bertscore_flags_that_do_not_fit(blendkit, tmp_path):
    for flags, code, said in (
        (("--bertscore-layer", "9"), 66, "embedded has 6 layers; layer 9 was asked for"),
        (("--bertscore-baseline", "en"), 2, "bert-score has no baseline of embedded in a language 'en'"),
        (("--bertscore-idf", "nowhere.jsonl"), 66, "nowhere.jsonl: No such file"),
    ):
        done = blendkit("score", "--metric", "bertscore", *flags, stdin=lines(examples(1)))
        assert done.returncode == code
        assert said in done.stderr


def test_rank_by_an_oracle_field(blendkit):
    record = {
        "id": "a",
        "instruction": "x",
        "candidates": [{"model": "m", "text": "1", "quality": 0.2}, {"model": "n", "text": "2", "scores": {"quality": 0.9}}],
    }
    done = blendkit("rank", "--by", "oracle:quality", stdin=lines([record]))
    assert parsed(done.stdout)[0]["ranks"] == {"oracle:quality": [2, 1]}
    missing = blendkit("rank", "--by", "oracle:nothing", stdin=lines([record]))
    assert missing.returncode == 65
    assert "<stdin>:1: candidates[0].nothing: expected a number there or in its scores" in missing.stderr


def labelled():
    """Four pairs and a tie: the longer answer is right twice, `good` always, `bad` never, `ppl` (lower is better) three times."""
    rows = [("A", "long one", "s", 1, 3), ("B", "s", "long one", 2, 1), ("A", "s", "long one", 1, 2), ("B", "long one", "s", 1, 5), ("tie", "s", "t", 1, 1)]
    records = []
    for number, (label, a, b, low, high) in enumerate(rows):
        good = (0.9, 0.1) if label == "A" else (0.1, 0.9)
        candidates = [
            {"model": "m", "text": text, "scores": {"good": g, "bad": -g, "perplexity": p}} for text, g, p in zip((a, b), good, (low, high), strict=True)
        ]
        records.append(
            {"id": str(number), "human": label, "candidates": candidates, "ranks": {"r": [1, 2]}, "signatures": {"score:good": f"good|{number == 9}"}}
        )
    return records


def test_agreement_with_labels_by_hand(blendkit):
    done = blendkit("evaluate", "--agreement", "human", stdin=lines(labelled()))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in parsed(done.stdout) if row["table"] == "agreement"}
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "score:good": 100, "score:bad": 0, "score:perplexity": 75, "longest candidate": 50, "r": 50,
    }  # fmt: skip
    assert all(row["pairs"] == 4 for row in rows.values())
    assert rows["score:good"]["over_longest"] == 50
    assert rows["score:good"]["accuracy_low"] == rows["score:good"]["accuracy_high"] == 100
    assert rows["score:good"]["explained_by_length"] == 0
    assert rows["longest candidate"]["right_when_longer_is"] == 100
    assert rows["longest candidate"]["right_when_shorter_is"] == 0
    assert rows["r"]["right_when_longer_is"] == 50
    assert "1 of 5 pairs is a tie by human" in done.stderr
    assert "score:good: good|False" in done.stderr
    assert "perplexity ↓" in done.stderr


def test_agreement_needs_labels_and_two_candidates(blendkit):
    records = labelled()
    records[1]["human"] = "C"
    done = blendkit("evaluate", "--agreement", "human", stdin=lines(records))
    assert done.returncode == 65
    assert "<stdin>:2: human: expected A, B or tie, as --agreement human needs, got 'C'" in done.stderr
    three = [record | {"human": "A"} for record in examples(1)]
    assert "expected two, A and B" in blendkit("evaluate", "--agreement", "human", stdin=lines(three)).stderr


def test_eight_metrics_in_one_pass_and_table_3(blendkit):
    metrics = ("bleu", "chrf", "rouge2", "rougeL", "token-f1", "bertscore", "mbr:bertscore", "cosine", "length", "random")
    flags = [part for metric in metrics for part in ("--metric", metric)]
    stream = blendkit("pair", stdin=lines(examples(4))).stdout
    stream = blendkit("score", *flags, stdin=blendkit("rank", stdin=stream).stdout).stdout
    done = blendkit("evaluate", "--oracle", "score:bleu", stdin=stream)
    assert done.returncode == 0, done.stderr
    table3 = {row["method"] for row in parsed(done.stdout) if row["table"] == 3}
    assert table3 == {"pairrm", *(f"score:{metric.partition(':')[0]}" for metric in metrics)} - {"score:bleu"}
    assert "score:mbr: mbr|bertscore|f1|model:embedded@" in done.stderr


def test_a_manifest_names_signatures_and_models(blendkit, tiny, tmp_path):
    path = tmp_path / "manifest.json"
    done = blendkit("score", "--metric", f"mlm:{tiny['mlm']}", "--metric", "bleu", "--manifest", path, stdin=lines(examples(1)))
    assert done.returncode == 0, done.stderr
    manifest = json.loads(path.read_text())
    assert [signature.partition("|")[0] for signature in manifest["signatures"]] == ["mlm", "bleu"]
    assert list(manifest["models"]) == [str(tiny["mlm"])]
    assert manifest["counts"]["tokens"] > 100


def test_a_prefilter_by_a_model(blendkit):
    done = blendkit("pair", "--prefilter", "mbr:rouge2:3", stdin=lines(examples(2)))
    assert done.returncode == 0, done.stderr
    for record in parsed(done.stdout):
        compared = {index for i, j, _ in record["comparisons"]["pairrm"]["pairs"] for index in (i, j)}
        assert len(compared) == 3
