"""Verdicts that could not be read: when they end a run, and that nothing later takes them for ties."""

from __future__ import annotations

import json

import pytest
from conftest import lines, parsed
from hostile import HostileServer
from test_judges import honest, of_quality, shown_qualities

import blendkit as library
from blendkit.errors import TooManyUnparsed, UsageError
from blendkit.judges import make_judge

RECORDS = [of_quality(1, 2) | {"id": "r1"}, of_quality(3, 9) | {"id": "r2"}, of_quality(2, 1) | {"id": "r3"}]


@pytest.fixture
def server():
    """Cannot make up its mind where a 9 is shown, and says so with a code for the terminal."""
    made = HostileServer(reply=lambda body: "\x1b[31mI like\nboth " + "very " * 100 if 9 in shown_qualities(body) else honest(body))
    yield made
    made.stop()


def judging(server, *more):
    return ["judge", "-m", "j=openai:x", "--base-url", server.url, "--verdict-by", "text", *more]


def test_too_many_end_with_70_after_all_is_written(blendkit, server):
    done = blendkit(*judging(server), stdin=lines(RECORDS))
    assert done.returncode == 70
    assert [record["id"] for record in parsed(done.stdout)] == ["r1", "r2", "r3"]
    replies = [line for line in done.stderr.splitlines() if "a reply of j: " in line]
    assert len(replies) == 2 and all("\\x1b[31mI like both very" in line and line.endswith("[…]") and len(line) < 220 for line in replies)
    last = "j: 2 of 6 verdicts (33%) could not be read, more than --max-unparsed 0.2 allows; all records are written"
    assert done.stderr.splitlines()[-1] == f"blendkit judge: {last}"


@pytest.mark.parametrize(("most", "code"), [(0, 70), (0.33, 70), (0.34, 0), (1, 0), (1.1, 2), (-1, 2), ("nan", 2)])
def test_the_share_is_the_users(blendkit, server, most, code):
    done = blendkit(*judging(server, "--max-unparsed", most), stdin=lines(RECORDS))
    assert done.returncode == code, done.stderr
    if code == 2:
        assert "expected a share from 0 to 1" in done.stderr


@pytest.mark.slow
def test_workers_count_together(blendkit, server):
    # One window of the two has the verdicts that cannot be read: half of its own, but a quarter of all.
    records = [RECORDS[0], RECORDS[1], RECORDS[0] | {"id": "r4"}, RECORDS[2]]
    flags = ["--workers", 2, "--window", 2]
    done = blendkit(*judging(server, *flags, "--max-unparsed", 0.3), stdin=lines(records))
    assert done.returncode == 0, done.stderr
    done = blendkit(*judging(server, *flags), stdin=lines(records))
    assert done.returncode == 70 and "j: 2 of 8 verdicts (25%) could not be read" in done.stderr, done.stderr


def test_each_judge_of_a_panel_counts_for_itself(blendkit, server):
    done = blendkit(*judging(server, "-m", "e=embedded"), stdin=lines(RECORDS))
    assert done.returncode == 70 and " e:" not in done.stderr
    (_, second, _) = parsed(done.stdout)
    assert [row["verdict"] for row in second["verdicts"]["panel"]] == [second["verdicts"]["e"][0]["verdict"]]


def test_python_gets_all_records_before_the_error(server):
    found = []
    with pytest.raises(TooManyUnparsed, match="2 of 6 verdicts"):
        for record in library.judge([dict(record) for record in RECORDS], "j=openai:x", verdict_by="text", base_url=server.url):
            found.append(record["id"])
    assert found == ["r1", "r2", "r3"]
    with pytest.raises(UsageError, match="--max-unparsed 2"):
        make_judge(max_unparsed=2)


def test_skipped_records_are_told_too(blendkit, server):
    broken = {"id": "bad", "instruction": "x", "output": "y"}
    done = blendkit(*judging(server, "--on-error", "skip"), stdin=lines([*RECORDS, broken]))
    assert done.returncode == 70
    assert "1 bad record was skipped" in done.stderr and "could not be read" in done.stderr.splitlines()[-1]


def test_an_empty_reply_says_why(blendkit):
    short = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}], "usage": {"prompt_tokens": 1, "completion_tokens": 32}}
    refused = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
    server = HostileServer(plan=lambda prompt, attempt: short if "quality 9" in prompt else refused)
    done = blendkit(*judging(server, "--max-unparsed", 1, "--orders", "random"), stdin=lines([of_quality(9, 1) | {"id": "a"}, of_quality(3, 1) | {"id": "b"}]))
    server.stop()
    first, second = (record["verdicts"]["j"][0]["reason"] for record in parsed(done.stdout))
    assert first.startswith("cut at 32 tokens; raise --max-new-tokens") and second == "an empty reply (finish_reason content_filter)"
    # The second turn has no empty one of the judge's before it.
    assert all([message["role"] for message in body["messages"]] == ["user"] for body in server.bodies)


def test_a_reply_that_was_cut_says_at_how_many_tokens(serve):
    """A list has more room than a pair; by likelihood, a reply is short on purpose."""
    cut = serve(plan=lambda prompt, attempt: {"choices": [{"message": {"content": "I say"}, "finish_reason": "length"}]})
    token = {"token": "I", "logprob": 0.0, "top_logprobs": [{"token": "I", "logprob": 0.0}]}
    weighed = serve(plan=lambda *asked: {"choices": [{"message": {"content": "I say"}, "logprobs": {"content": [token]}, "finish_reason": "length"}]})
    for server, settings, reason in (
        (cut, {}, "cut at 32 tokens; raise --max-new-tokens: I say"),
        (cut, {"list": 2, "shuffles": 1}, "cut at 128 tokens; raise --max-new-tokens: I say"),
        (weighed, {"verdict_by": "likelihood"}, "I say"),
    ):
        (found,) = library.judge([of_quality(1, 2) | {"id": "a"}], "j=openai:x", max_unparsed=1, base_url=server.url, **settings)
        assert found["verdicts"]["j"][0]["reason"] == reason


# --- rank and evaluate


def row(a: int, b: int, verdict: str) -> dict:
    return {"a": a, "b": b, "verdict": verdict, "shown": [a, b]}


def judged(identity: str, *rows: dict, n: int = 3) -> dict:
    candidates = [{"model": f"m{number}", "text": "x" * (number + 1)} for number in range(n)]
    return {"id": identity, "instruction": "x", "candidates": candidates, "verdicts": {"j": list(rows)}}


WHOLE = [row(0, 1, "A"), row(0, 2, "A"), row(1, 2, "A")]
NONE = [row(0, 1, "unparsed"), row(1, 0, "unparsed") | {"a": 0, "b": 1}, row(0, 2, "unparsed"), row(1, 2, "unparsed")]


@pytest.mark.parametrize("aggregate", ["max-logits", "max-wins", "copeland", "bradley-terry", "elo"])
def test_rank_refuses_a_record_without_a_verdict(blendkit, aggregate):
    records = lines([judged("r1", *WHOLE), judged("r2", *NONE), judged("r3", *WHOLE), judged("r4")])
    done = blendkit("rank", "--by", "judge:j", "--aggregate", aggregate, "--on-error", "skip", stdin=records)
    assert done.returncode == 70 and [record["id"] for record in parsed(done.stdout)] == ["r1", "r3"]
    assert "<stdin>:2: verdicts.j: no verdict could be read (4 unparsed)" in done.stderr
    assert "<stdin>:4: verdicts.j: expected at least one verdict, got none" in done.stderr
    assert blendkit("rank", "--by", "judge:j", stdin=records).returncode == 65


@pytest.mark.parametrize("aggregate", ["max-logits", "max-wins", "copeland", "bradley-terry", "elo"])
def test_a_pair_that_was_not_read_is_no_tie(aggregate):
    """Candidate 2 lost to 0, and nobody knows how it does against 1, which nobody knows anything of."""
    record = judged("r", row(0, 1, "unparsed"), row(0, 2, "A"), row(1, 2, "unparsed"))
    (ranked,) = library.rank([record], "judge:j", aggregate=aggregate)
    (ranks,) = ranked["ranks"].values()
    assert ranks == [1, 3, 2]
    assert next(library.rank([judged("r", n=1)], "judge:j"))["top"] == [0]


def table(rows: list[dict], kind: str = "model") -> dict[str, dict]:
    return {row["method"]: row for row in rows if row["table"] == 2 and row["kind"] == kind}


def test_evaluate_leaves_out_what_was_not_read_and_says_so(blendkit):
    records = [judged("r1", *WHOLE), judged("r2", *NONE), judged("r3", *WHOLE)]
    done = blendkit("evaluate", "--versus", "m1", "--ratings", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    assert "judge:j: no verdict on 3 of 9 pairs could be read; they count for nothing, not as ties" in done.stderr
    assert "judge:j: in 1 of 3 records a candidate is in no verdict that could be read; its ranks, and what is computed of them, leave this" in done.stderr
    with_, without = parsed(done.stdout), library.evaluate([records[0], records[2]], versus=["m1"], ratings=True)
    for method, found in table(with_).items():
        expected = table(without)[method]
        assert (found["examples"], found["judged"]) == (3, 2) and "judged" not in expected
        for column in ("judge_rank", "top3", "not_worse_than_m1", "intervals"):
            if column != "intervals":
                assert found[column] == expected[column] is not None
    assert table(with_, "oracle")["oracle (judge rank)"]["examples"] == 2
    for name in ("ratings", "wins", "firsts", "distribution"):
        keys = ("method", "win_rate", "verdicts", "share", "rank 1", "over m1")
        shown = [[{key: row.get(key) for key in keys} for row in rows if row["table"] == name] for rows in (with_, without)]
        assert shown[0] == shown[1] and shown[0]
    (judge,) = [found for found in with_ if found["table"] == "judges"]
    assert (judge["verdicts"], judge["unparsed"], judge["ties"]) == (10, 4, 0.0)


def test_evaluate_counts_the_pairs_that_were_read():
    mixed = judged("r2", row(0, 1, "unparsed"), row(0, 2, "A"), row(1, 2, "B"))
    rows = library.evaluate([judged("r1", *WHOLE), mixed], versus=["m1"], ratings=True)
    models = table(rows)
    assert "judged" not in models["m0"] and models["m0"]["judge_rank"] == 1.0
    # Of m0 and m1 one pair of two was read.
    assert models["m0"]["not_worse_than_m1"] == 100.0 and models["m2"]["not_worse_than_m1"] == 50.0
    wins = {row["method"]: row for row in rows if row["table"] == "wins"}
    assert wins["m0"]["over m1"] == 100.0 and wins["m1"]["over m2"] == 50.0


def test_a_fused_answer_that_was_not_read_is_left_out():
    first, second = judged("r1", *WHOLE, row(0, 3, "B")), judged("r2", *WHOLE, row(0, 3, "unparsed"))
    for record in (first, second):
        record["candidates"].append({"model": "fused", "text": "y", "sources": [0, 1]})
    fused = table(library.evaluate([first, second]), "fused")["fused"]
    assert (fused["examples"], fused["judged"], fused["judge_rank"]) == (2, 1, 1.0)


def test_a_stream_without_a_verdict_has_no_rank():
    rows = library.evaluate([judged("r1", *NONE), judged("r2", *NONE)], ratings=True)
    assert all(found["judge_rank"] is None and found["judged"] == 0 for found in table(rows).values())
    assert not [row for row in rows if row["table"] in (3, "firsts", "ratings")]


def test_exports_do_not_make_it_a_tie(blendkit, tmp_path):
    stream = lines([judged("r1", row(0, 1, "unparsed"), row(0, 1, "tie-good"), n=2)])
    done = blendkit("data", "convert", "--to", "alpacaeval-annotations", stdin=stream)
    assert [found["preference"] for found in json.loads(done.stdout)] == [None, 1.5], done.stderr
    done = blendkit("data", "convert", "--to", "mtbench", "-o", tmp_path / "judgments.jsonl", stdin=stream)
    assert [found["winner"] for found in parsed((tmp_path / "judgments.jsonl").read_text())] == ["error", "tie"], done.stderr
    back = parsed(blendkit("data", "convert", "--from", "mtbench", tmp_path / "judgments.jsonl").stdout)
    assert [record["verdicts"]["j"][0]["verdict"] for record in back] == ["unparsed", "tie-good"]
    assert [record.get("human") for record in back] == [None, "tie"]
