"""`judge --panel dawid-skene`: a panel that is weighed by what its judges say over the whole stream."""

from __future__ import annotations

import random

import pytest
from conftest import examples, lines, parsed
from test_judges import honest

import blendkit as library
from blendkit.errors import RecordError
from blendkit.evaluation.audit.panel import Panel
from blendkit.judges.dawid_skene import settle

RIGHT = {"good": 0.95, "fair": 0.9, "x": 0.4, "y": 0.4, "z": 0.4}


def unequal(body: dict) -> str:
    """Who is right as often as RIGHT says, and else says one of the others; always the same of one request."""
    drawn = random.Random(body["model"] + body["messages"][0]["content"])
    said = honest(body)
    return said if drawn.random() < RIGHT[body["model"]] else drawn.choice([word for word in "ABC" if word != said])


def records(count: int = 60) -> list[dict]:
    drawn = random.Random(1)
    found = []
    for number in range(count):
        first, second = drawn.choice([(1, 2), (2, 1), (1, 1), (2, 3), (3, 1)])
        candidates = [{"model": name, "text": f"quality {quality}"} for name, quality in (("m", first), ("n", second))]
        label = "A" if first > second else "B" if second > first else "tie"
        found.append({"id": str(number), "instruction": f"Say {number}.", "output": "9", "candidates": candidates, "human": label})
    return found


@pytest.mark.filterwarnings("ignore::blendkit.errors.BlendkitWarning")
def test_it_is_what_evaluate_fits_and_beats_the_majority(called, serve, tmp_path):
    server = serve(reply=unequal)
    judges = [flag for name in RIGHT for flag in ("-m", f"{name}=openai:{name}")]
    flags = ["judge", *judges, "--base-url", server.url, "--orders", "random", "--retries", 0, "--manifest", tmp_path / "m.json"]
    code, out, err = called(*flags, "--panel", "dawid-skene", "--window", 16, stdin=lines(records()))
    assert code == 0, err
    done = parsed(out)
    assert [record["id"] for record in done] == [str(number) for number in range(60)]
    panel = Panel()
    for record in done:
        assert list(record["verdicts"]) == [*RIGHT, "panel"]
        panel.add(record, {name: record["verdicts"][name] for name in RIGHT})
    fitted = panel.fitted()
    for record in done:
        assert record["verdicts"]["panel"] == [found.row(pair) for pair, found in settle(fitted.judges, fitted.fit, record["verdicts"]).items()]
    tables = library.evaluate(done, ratings=True, audit="human")
    *judged, together = [row for row in tables if row["table"] == "panel"]
    assert [row["method"] for row in judged][:2] in (["good", "fair"], ["fair", "good"]) and len(judged) == 5
    right = {row["method"]: row["accuracy"] for row in tables if row["table"] == "audit"}
    assert right["panel"] == together["weighed"] > together["majority"] + 5
    assert "weighed by Dawid and Skene's model over 60 pairs of the 60 records; by it, judges are right on: good 9" in err
    (signature,) = {record["signatures"]["judge:panel"] for record in done}
    assert signature.startswith("panel|of:good|of:fair|of:x|of:y|of:z|dawid-skene:") and signature.endswith("|kind:panel")
    assert '"dawid_skene"' in (tmp_path / "m.json").read_text()


def test_a_fault_loses_nothing_that_was_judged_before(recwarn):
    """The first record comes after the last was judged; a fault is told after those before it."""
    read = []

    def stream():
        for record in [*examples(3), {"candidates": "none"}, *examples(1)]:
            read.append(record)
            yield record

    judged = library.judge(stream(), ["a=embedded", "b=embedded", "c=embedded"], panel="dawid-skene", window=2)
    first = next(judged)
    assert len(read) == 4 and first["verdicts"]["panel"]
    done = [first]
    with pytest.raises(RecordError, match="candidates"):
        done.extend(judged)
    assert len(done) == 3 and all({row["verdict"] for row in record["verdicts"]["panel"]} <= {"A", "B", "tie-good"} for record in done)


def test_a_pair_that_nobody_can_be_read_on_and_a_stream_of_none(called, serve):
    judges = ["-m", "a=openai:a", "-m", "b=openai:b", "-m", "c=openai:c", "--base-url", serve(reply=lambda body: "?").url]
    code, out, err = called("judge", *judges, "--panel", "dawid-skene", "--max-unparsed", 1, stdin=lines(records(1)))
    assert code == 0, err
    assert parsed(out)[0]["verdicts"]["panel"] == [{"a": 0, "b": 1, "verdict": "unparsed"}]
    assert called("judge", *judges, "--panel", "dawid-skene", stdin="")[:2] == (0, "")


THREE = ["-m", "a=embedded", "-m", "b=embedded", "-m", "c=embedded"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([*THREE, "--panel", "dawid-skene", "--resume", "-o", "out.jsonl"], "the whole stream is settled at once, so --resume has no part to go on from"),
        ([*THREE, "--panel", "dawid-skene", "--workers", 2], "goes neither with --workers nor with --engine ray"),
        ([*THREE[:4], "--panel", "dawid-skene"], "weighs 3 judges or more, got 2"),
        (["--panel", "majority"], "and there is one judge"),
        ([*THREE, "--panel", "weights"], "expected --panel-weights FILE with it"),
        ([*THREE, "--panel", "dawid-skene", "--panel-weights", "w.jsonl"], "goes with --panel weights, got --panel dawid-skene"),
        ([*THREE, "--panel", "mean"], "expected majority, dawid-skene, weights"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_read(called, monkeypatch, tmp_path, flags, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = called("judge", *flags, stdin="not read")
    assert (code, out) == (2, "") and said in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
