"""A judge by batch files: what a batch leaves open is the next batch."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import lines, parsed
from test_judges import honest, of_quality

JUDGE = ["judge", "-m", "j=openai:m"]
Answer = Callable[[dict], str | dict]


def run_batch(requests, output, answer: Answer, lost: Callable[[dict], bool] = lambda body: False) -> list[dict]:
    """Does what a batch endpoint does: `answer` gives a text, or a whole line of the output but for its id. Gives the bodies back."""
    rows = parsed(requests.read_text())
    found = []
    for row in rows:
        given = answer(row["body"])
        if isinstance(given, str):
            choice = {"message": {"content": given}, "finish_reason": "stop"}
            given = {"response": {"status_code": 200, "body": {"choices": [choice]}}, "error": None}
        if not lost(row["body"]):
            found.append({"id": "x", "custom_id": row["custom_id"], **given})
    output.write_text(lines(found))
    return [row["body"] for row in rows]


def verdicts(out: str, judge: str = "j") -> list[list[str]]:
    return [[row["verdict"] for row in record["verdicts"][judge]] for record in parsed(out)]


RECORDS = lines([of_quality(1, 2) | {"id": "r1"}, of_quality(5, 3) | {"id": "r2"}])


def test_a_batch_gives_the_verdicts_that_a_server_gives(blendkit, tmp_path):
    emitted = blendkit(*JUDGE, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    assert (emitted.returncode, emitted.stdout) == (0, "")
    assert f"4 requests are in {tmp_path / 'b1'}; give the batch's output to --read-batch, with the same records and flags" in emitted.stderr
    bodies = run_batch(tmp_path / "b1", tmp_path / "o1", lambda body: json.dumps({"verdict": honest(body)}))
    assert len(bodies) == 4 and all(len(body["messages"]) == 1 and body["response_format"] for body in bodies)
    done = blendkit(*JUDGE, "--read-batch", tmp_path / "o1", stdin=RECORDS)
    assert done.returncode == 0, done.stderr
    assert verdicts(done.stdout) == [["B", "B"], ["A", "A"]]


def test_what_stays_unreadable_is_the_next_batch(blendkit, tmp_path):
    def first(body: dict) -> str | dict:
        if "quality 5" in body["messages"][0]["content"]:
            return "I cannot say." if body["messages"][0]["content"].index("quality 5") < body["messages"][0]["content"].index("quality 3") else busy
        return json.dumps({"verdict": honest(body)})

    busy = {"response": {"status_code": 503, "body": {"error": {"message": "overloaded"}}}}
    blendkit(*JUDGE, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    run_batch(tmp_path / "b1", tmp_path / "o1", first, lost=lambda body: honest(body) == "A" and "quality 1" in body["messages"][0]["content"])
    done = blendkit(*JUDGE, "--read-batch", tmp_path / "o1", "--emit-batch", tmp_path / "b2", stdin=RECORDS)
    assert done.returncode == 0, done.stderr
    assert verdicts(done.stdout) == [["B", "unparsed"], ["unparsed", "unparsed"]]
    reasons = [row["reason"] for record in parsed(done.stdout) for row in record["verdicts"]["j"] if row["verdict"] == "unparsed"]
    assert f"{tmp_path / 'o1'} has no answer to it" in reasons[0] and "overloaded" in reasons[2]
    assert "3 verdicts wait for the next batch; until then they are recorded as unparsed" in done.stderr
    assert f"3 requests are in {tmp_path / 'b2'}, the next batch; give its output to --read-batch beside the earlier ones" in done.stderr
    bodies = run_batch(tmp_path / "b2", tmp_path / "o2", lambda body: json.dumps({"verdict": honest(body)}))
    assert sorted(len(body["messages"]) for body in bodies) == [1, 1, 3]
    both = blendkit(*JUDGE, "--read-batch", tmp_path / "o1", "--read-batch", tmp_path / "o2", "--emit-batch", tmp_path / "b3", stdin=RECORDS)
    assert (both.returncode, verdicts(both.stdout)) == (0, [["B", "B"], ["A", "A"]]), both.stderr
    assert "the batch has answers to all requests" in both.stderr and (tmp_path / "b3").read_text() == ""
    # One file with both, in whatever order, says the same.
    for order in (("o1", "o2"), ("o2", "o1")):
        (tmp_path / "all").write_text("".join((tmp_path / name).read_text() for name in order))
        assert blendkit(*JUDGE, "--read-batch", tmp_path / "all", stdin=RECORDS).stdout == both.stdout


def test_a_batch_that_is_only_read_leaves_replies_unparsed(blendkit, tmp_path):
    blendkit(*JUDGE, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    run_batch(tmp_path / "b1", tmp_path / "o1", lambda body: "Hm." if "quality 1" in body["messages"][0]["content"] else honest(body))
    done = blendkit(*JUDGE, "--read-batch", tmp_path / "o1", "--max-unparsed", 0.5, stdin=RECORDS)
    assert (done.returncode, verdicts(done.stdout)) == (0, [["unparsed", "unparsed"], ["A", "A"]]), done.stderr
    assert parsed(done.stdout)[0]["verdicts"]["j"][0]["reason"] == "Hm."
    assert "2 of 4 replies were no verdict; they are recorded as unparsed; with --emit-batch NEXT they are asked for once more" in done.stderr
    (tmp_path / "o1").write_text("")
    done = blendkit(*JUDGE, "--read-batch", tmp_path / "o1", stdin=RECORDS)
    assert done.returncode == 65 and "has no answer to it; was the batch made with the same records and flags?" in done.stderr


def test_what_a_server_refuses_is_left_out_in_the_next_batch(blendkit, tmp_path):
    refused = {"response": {"status_code": 400, "body": {"error": {"message": "response_format is not supported"}}}, "error": None}
    blendkit(*JUDGE, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    run_batch(tmp_path / "b1", tmp_path / "o1", lambda body: refused)
    flags = ["--read-batch", tmp_path / "o1", "--window", 1]
    done = blendkit(*JUDGE, *flags, "--emit-batch", tmp_path / "b2", stdin=RECORDS)
    assert done.returncode == 0, done.stderr
    bodies = run_batch(tmp_path / "b2", tmp_path / "o2", honest)
    assert len(bodies) == 4
    assert all("response_format" not in body for body in bodies)
    done = blendkit(*JUDGE, *flags, "--read-batch", tmp_path / "o2", stdin=RECORDS)
    assert (done.returncode, verdicts(done.stdout)) == (0, [["B", "B"], ["A", "A"]]), done.stderr


def test_a_model_like_o_series_is_asked_anew_batch_by_batch(blendkit, tmp_path):
    def answer(body: dict) -> str | dict:
        for name, said in (("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), ("temperature", "no 'temperature'")):
            if name in body:
                return {"response": {"status_code": 400, "body": {"error": {"message": said, "param": name}}}}
        # The first reply to one pair is no verdict, so that the second turn has been adapted from the start.
        return honest(body) if len(body["messages"]) > 1 or "quality 5" in body["messages"][0]["content"] else "Hm."

    outputs: list[object] = []
    blendkit(*JUDGE, "--emit-batch", tmp_path / "b0", stdin=RECORDS)
    for number in range(4):
        run_batch(tmp_path / f"b{number}", tmp_path / f"o{number}", answer)
        outputs += ["--read-batch", tmp_path / f"o{number}"]
        done = blendkit(*JUDGE, *outputs, "--emit-batch", tmp_path / f"b{number + 1}", stdin=RECORDS)
        assert done.returncode == 0, done.stderr
    assert [len(parsed((tmp_path / f"b{number}").read_text())) for number in range(5)] == [4, 4, 4, 2, 0]
    assert verdicts(done.stdout) == [["B", "B"], ["A", "A"]]


def test_a_schedule_of_several_rounds_goes_on_batch_by_batch(blendkit, tmp_path):
    record = of_quality(3, 7, 1, 9)
    flags = [*JUDGE, "--schedule", "bubble", "--orders", "random", "--verdict-by", "text"]
    blendkit(*flags, "--emit-batch", tmp_path / "b0", stdin=lines([record]))
    outputs: list[object] = []
    sizes = []
    for number in range(3):
        bodies = run_batch(tmp_path / f"b{number}", tmp_path / f"o{number}", honest)
        sizes.append(len(bodies))
        outputs += ["--read-batch", tmp_path / f"o{number}"]
        done = blendkit(*flags, *outputs, "--emit-batch", tmp_path / f"b{number + 1}", stdin=lines([record]))
        assert done.returncode == 0, done.stderr
    assert sizes == [1, 1, 1] and (tmp_path / "b3").read_text() == ""
    ranked = blendkit("rank", "--by", "judge:j", stdin=done.stdout)
    assert parsed(ranked.stdout)[0]["top"][0] == 3


def test_two_judges_share_one_batch(blendkit, tmp_path):
    panel = ["judge", "-m", "a=openai:m1", "-m", "b=openai:m2", "--verdict-by", "text"]
    emitted = blendkit(*panel, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    assert emitted.returncode == 0 and "it asks 2 models, and hosted batches take one a file" in emitted.stderr
    bodies = run_batch(tmp_path / "b1", tmp_path / "o1", lambda body: honest(body) if body["model"] == "m1" else "C")
    assert sorted(body["model"] for body in bodies) == ["m1"] * 4 + ["m2"] * 4
    done = blendkit(*panel, "--read-batch", tmp_path / "o1", stdin=RECORDS)
    assert done.returncode == 0, done.stderr
    assert verdicts(done.stdout, "a") == [["B", "B"], ["A", "A"]] and verdicts(done.stdout, "b") == [["tie-good"] * 2] * 2


def test_generate_puts_what_has_no_answer_into_the_next_batch(blendkit, tmp_path):
    flags = ["generate", "-m", "openai:x", "--temperature", 0]
    stdin = lines([{"id": "a", "instruction": "a"}, {"id": "b", "instruction": "b"}])
    blendkit(*flags, "--emit-batch", tmp_path / "b1", stdin=stdin)
    run_batch(tmp_path / "b1", tmp_path / "o1", lambda body: "Hello", lost=lambda body: body["messages"][0]["content"] == "a")
    done = blendkit(*flags, "--read-batch", tmp_path / "o1", "--emit-batch", tmp_path / "b2", "--on-error", "skip", stdin=stdin)
    assert done.returncode == 70 and [record["id"] for record in parsed(done.stdout)] == ["b"]
    assert [row["body"]["messages"][0]["content"] for row in parsed((tmp_path / "b2").read_text())] == ["a"]


@pytest.mark.parametrize("flag", ["--verdict-by=likelihood", "--prompt=pairwise"])
def test_other_ways_of_judging_emit_alike(blendkit, tmp_path, flag):
    done = blendkit(*JUDGE, flag, "--emit-batch", tmp_path / "b1", stdin=RECORDS)
    assert (done.returncode, done.stdout, len(parsed((tmp_path / "b1").read_text()))) == (0, "", 4), done.stderr
