"""Endpoints under fire: every request is answered, retried or reported, and none is lost or paid twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import lines, parsed

import blendkit as library
from blendkit.errors import EndpointError, OutputError, RecordError, UsageError
from blendkit.generators import limits
from blendkit.generators.cache import Cache
from blendkit.generators.limits import Meter, Purse, RateLimit
from blendkit.generators.options import EndpointOptions, Sampling

PASSING = ("429", "429-date", "500", "503", "cut", "close", "not-json", "html", "late", "empty-choices", "no-message")


def prompts(count: int) -> list[dict]:
    return [{"id": f"r{number}", "instruction": f"question {number}"} for number in range(count)]


def generate(records, server, **options):
    settings = {"timeout": 0.5, "concurrency": 4, **options}
    return list(library.generate(records, ["m=openai:x"], base_url=server.url, **settings))


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_retried(serve, fault):
    server = serve(lambda prompt, attempt: fault if attempt == 1 and prompt != "question 1" else None, late=4.0)
    # A busy machine must not be late by itself.
    done = generate(prompts(3), server, timeout=2.0)
    assert [record["candidates"][0]["text"] for record in done] == [f"Reply to question {number}" for number in range(3)]
    assert server.asked == {"question 0": 2, "question 1": 1, "question 2": 2}


@pytest.mark.parametrize("fault", [*PASSING, "400"])
def test_one_request_that_never_works_is_reported_and_the_others_are_kept(blendkit, serve, fault, tmp_path):
    server = serve(lambda prompt, attempt: fault if prompt == "question 1" else None, latency=0.05, late=1.0)
    flags = ["--base-url", server.url, "--retries", 2, "--timeout", 0.6, "--on-error", "skip", "--rejects", tmp_path / "rejects", "--concurrency", 1]
    done = blendkit("generate", "-m", "openai:x", *flags, "-o", tmp_path / "out.jsonl", stdin=lines([prompts(2)[1], prompts(1)[0], *prompts(4)[2:]]))
    out = parsed((tmp_path / "out.jsonl").read_text())
    assert done.returncode == 70, done.stderr
    assert [record["id"] for record in out] == ["r0", "r2", "r3"]
    assert [json.loads(line)["line"] for line in (tmp_path / "rejects").read_text().splitlines()] == [1]


def test_a_bad_request_among_good_ones_does_not_stop_the_others(serve):
    server = serve(lambda prompt, attempt: "500" if prompt == "question 1" else None, latency=0.01)
    with pytest.raises(RecordError, match=r"answers HTTP 500: no: .*, after 1 retry"):
        generate(prompts(40), server, retries=1, concurrency=2)
    # Its window is done to the end; of later ones only what was asked already.
    assert sum(server.answered.values()) >= 15


def test_an_answer_cut_at_its_length_says_so(blendkit, serve):
    server = serve(lambda prompt, attempt: "length" if prompt == "question 0" else None)
    done = blendkit("generate", "-m", "openai:x", "--base-url", server.url, stdin=lines(prompts(2)))
    assert [record["candidates"][0]["finish_reason"] for record in parsed(done.stdout)] == ["length", "stop"]
    assert done.stderr == "blendkit generate: 1 answer of openai:x ended at --max-new-tokens (finish_reason `length`)\n"


def test_retry_after_holds_everybody_back(serve):
    server = serve(lambda prompt, attempt: "429" if attempt == 1 and prompt == "question 0" else None)
    start = time.monotonic()
    generate(prompts(6), server, concurrency=1)
    assert time.monotonic() - start > 0.2
    assert server.asked["question 0"] == 2


def test_a_server_that_is_gone_ends_the_run_and_keeps_what_was_answered(blendkit, serve, tmp_path):
    seen = []

    def plan(prompt, attempt):
        seen.append(prompt)
        return "close" if len(seen) > 40 else None

    server = serve(plan)
    out = tmp_path / "out.jsonl"
    flags = ["generate", "-m", "openai:x", "--base-url", server.url, "--retries", 1, "--concurrency", 2, "--window", 8, "-o", out]
    done = blendkit(*flags, stdin=lines(prompts(60)))
    assert done.returncode == 69
    assert f"{server.url} cut the connection (ServerDisconnectedError), after 1 retry; is the server running?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [record["id"] for record in parsed(out.read_text())] == [f"r{number}" for number in range(len(parsed(out.read_text())))]
    assert len(parsed(out.read_text())) >= 8
    server.plan = lambda prompt, attempt: None
    assert blendkit(*flags, "--resume", stdin=lines(prompts(60))).returncode == 0
    assert [record["id"] for record in parsed(out.read_text())] == [f"r{number}" for number in range(60)]
    assert set(server.answered.values()) == {1}  # nothing was paid twice


@pytest.mark.parametrize("fault", ["401", "quota"])
def test_a_refusal_of_all_ends_at_once_and_does_not_show_the_key(blendkit, serve, fault):
    server = serve(lambda prompt, attempt: fault)
    environment = {**os.environ, "OPENAI_API_KEY": "sk-planted-0123456789"}
    done = blendkit("generate", "-m", "openai:x", "--base-url", server.url, "--concurrency", 1, stdin=lines(prompts(5)), env=environment)
    assert done.returncode == 69
    assert "sk-planted" not in done.stderr + done.stdout
    assert sum(server.asked.values()) == 1
    assert "Bearer sk-planted-0123456789" in server.headers[0]
    refused = serve(lambda prompt, attempt: "400")
    done = blendkit("generate", "-m", "openai:x", "--base-url", refused.url, stdin=lines(prompts(1)), env=environment)
    assert done.returncode == 65
    assert "sk-planted" not in done.stderr and "***" in done.stderr
    done = blendkit("generate", "-m", "openai:x", "--base-url", refused.url.replace("//", "//me:secret@"), stdin=lines(prompts(1)), env=environment)
    assert (done.returncode, "two credentials" in done.stderr, "secret" in done.stderr) == (2, True, False)


def test_killed_and_run_again_gives_the_undisturbed_file(serve, tmp_path):
    """kill -9 in the middle; the second run asks only what was not answered."""
    quiet = serve()
    records = prompts(120)
    (tmp_path / "in.jsonl").write_text(lines(records))

    def command(server, out):
        flags = ["--base-url", server.url, "--concurrency", "4", "--window", "32", "-q", "--resume", "-i", str(tmp_path / "in.jsonl"), "-o", str(out)]
        return [sys.executable, "-m", "blendkit", "generate", "-m", "openai:x", *flags]

    subprocess.run(command(quiet, tmp_path / "undisturbed.jsonl"), check=True, timeout=120)
    slow = serve(latency=0.03)
    process = subprocess.Popen(command(slow, tmp_path / "out.jsonl"))
    deadline = time.monotonic() + 60
    while sum(slow.answered.values()) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    before = sum(slow.answered.values())
    assert 50 <= before < 120
    subprocess.run(command(slow, tmp_path / "out.jsonl"), check=True, timeout=120)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    # What was on its way when the process died could be kept by nobody; all else was asked once.
    assert sum(slow.answered.values()) - 120 <= 4
    # A third run into another file pays nothing.
    again = [*command(slow, tmp_path / "third.jsonl"), "--cache", str(tmp_path / "out.jsonl.cache.sqlite")]
    asked = sum(slow.asked.values())
    subprocess.run(again, check=True, timeout=120)
    assert sum(slow.asked.values()) == asked
    assert (tmp_path / "third.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_a_cache_is_keyed_by_what_decides_the_answer(serve, tmp_path):
    server, other = serve(), serve()
    path = str(tmp_path / "cache.sqlite")
    for _ in range(2):
        generate(prompts(3), server, cache=path)
    assert sum(server.asked.values()) == 3
    list(library.generate(prompts(3), ["m=openai:x"], temperature=0.1, base_url=server.url, cache=path))
    assert sum(server.asked.values()) == 6
    list(library.generate(prompts(3), ["m=openai:y"], base_url=server.url, cache=path))
    assert sum(server.asked.values()) == 9
    generate(prompts(3), other, cache=path)
    assert sum(other.asked.values()) == 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_equal_prompts_of_windows_that_are_in_work_together_are_paid_once_unless_they_are_sampled(serve, tmp_path, temperature):
    server = serve(latency=0.2)
    records = [{"id": str(number), "instruction": "the same"} for number in range(24)]
    found = list(library.generate(records, ["m=openai:x"], base_url=server.url, cache=tmp_path / "cache.sqlite", temperature=temperature, window=4))
    assert len(found) == 24 and all(record["candidates"][0]["text"] == "Reply to the same" for record in found)
    assert server.asked["the same"] == (24 if temperature else 1)


def test_a_stage_with_a_cache_may_run_again_and_again(serve, tmp_path):
    from blendkit.generators.generating import Generating
    from blendkit.pipeline.runner import apply

    server = serve()
    stage = Generating(["m=openai:x"], Sampling(), EndpointOptions(base_url=server.url, cache=str(tmp_path / "cache.sqlite")))
    for number in range(20):
        (done,) = apply(stage, [{"id": "a", "instruction": f"question {number}"}])
        assert done["candidates"][0]["text"] == f"Reply to question {number}"
    assert not list(tmp_path.glob("*-wal"))


def test_several_processes_share_a_cache(serve, tmp_path):
    server = serve(latency=0.01)
    (tmp_path / "in.jsonl").write_text(lines(prompts(60)))
    flags = ["--base-url", server.url, "--cache", str(tmp_path / "shared.sqlite"), "-q", "-i", str(tmp_path / "in.jsonl")]
    processes = [
        subprocess.Popen([sys.executable, "-m", "blendkit", "generate", "-m", "openai:x", *flags, "-o", str(tmp_path / f"{n}.jsonl")]) for n in range(3)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    outputs = {(tmp_path / f"{n}.jsonl").read_bytes() for n in range(3)}
    assert len(outputs) == 1
    assert len(sqlite3.connect(tmp_path / "shared.sqlite").execute("SELECT key FROM answers").fetchall()) == 60


def test_a_cache_that_cannot_be_written(blendkit, serve, tmp_path):
    with pytest.raises(OutputError, match=r"--cache .*nowhere"):
        Cache(str(tmp_path / "nowhere" / "cache.sqlite"), 1000)
    (tmp_path / "text.sqlite").write_text("this is no database, but long enough to look like a broken one " * 20)
    done = blendkit("generate", "-m", "openai:x", "--base-url", serve().url, "--cache", tmp_path / "text.sqlite", stdin=lines(prompts(1)))
    assert done.returncode == 74
    assert "file is not a database; name another file, or `none`" in done.stderr


def test_costs_are_counted_and_limited(blendkit, serve, tmp_path):
    server = serve()
    prices = ["--price-in", 1000, "--price-out", 10000]  # 10 tokens and 5 tokens: $0.06 an answer
    flags = ["generate", "-m", "openai:x", "--base-url", server.url, "--concurrency", 1, "--max-new-tokens", 5, *prices]
    done = blendkit(*flags, "--manifest", tmp_path / "m.json", stdin=lines(prompts(3)))
    assert done.stderr == "blendkit generate: openai:x: 3 answers for $0.1800\n"
    assert parsed(done.stdout)[0]["candidates"][0]["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.06}
    assert json.loads((tmp_path / "m.json").read_text())["models"]["openai:x"]["cost"] == 0.18
    out = tmp_path / "out.jsonl"
    limited = blendkit(*flags, "--max-cost", 0.25, "--window", 1, "-o", out, stdin=lines(prompts(10)))
    assert limited.returncode == 69
    assert "--max-cost 0.25: $0.2400 are spent" in limited.stderr
    assert len(parsed(out.read_text())) == 4
    assert sum(server.answered.values()) == 3 + 4
    assert blendkit("generate", "-m", "openai:x", "--base-url", server.url, "--max-cost", 1, stdin=lines(prompts(1))).returncode == 2


@pytest.mark.parametrize(("limit", "tokens", "expected"), [((600, None), 1, 0.1), ((None, 60_000), 100, 0.1), ((None, None), 100, 0.0)])
def test_the_rate_limit_spaces_requests(monkeypatch, limit, tokens, expected):
    now = 100.0

    async def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(limits, "asyncio", SimpleNamespace(sleep=sleep))

    async def starts():
        rate = RateLimit(*limit)
        found = []
        for _ in range(4):
            await rate.wait(tokens)
            found.append(now - 100)
        return found

    assert asyncio.run(starts()) == pytest.approx([number * expected for number in range(4)])


def test_a_meter_puts_aside_what_is_on_its_way():
    meter = Meter(1e6, 1e6, Purse(10.0))
    assert meter.reserve(2, 3) is None
    assert meter.reserve(2, 3) is None
    assert isinstance(meter.reserve(1, 0), EndpointError)
    meter.settle((2, 3), (1, 1))
    assert meter.spent == 2
    assert meter.reserve(1, 2) is None
    meter.settle((2, 3), None)
    assert meter.spent == 2


def test_batch_files_out_and_in(blendkit, tmp_path):
    requests = tmp_path / "requests.jsonl"
    records = [*prompts(3), {"id": "again", "instruction": "question 0"}]
    flags = ["generate", "-m", "m=openai:x", "--temperature", 0, "--system", "be brief"]
    done = blendkit(*flags, "--emit-batch", requests, stdin=lines(records))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"requests are in {requests}; give the batch's output to --read-batch" in done.stderr
    batch = parsed(requests.read_text())
    assert {row["url"] for row in batch} == {"/v1/chat/completions"}
    assert batch[0]["body"]["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "question 0"}]
    answers = []
    for row in batch[::-1]:
        text = "Answer to " + row["body"]["messages"][-1]["content"]
        body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
        answers.append({"id": "b", "custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    (tmp_path / "answers.jsonl").write_text(lines(answers))
    done = blendkit(*flags, "--read-batch", tmp_path / "answers.jsonl", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    assert [record["candidates"][0]["text"] for record in parsed(done.stdout)] == [f"Answer to question {n}" for n in (0, 1, 2, 0)]
    answers[0] |= {"response": None, "error": {"message": "expired"}}
    (tmp_path / "answers.jsonl").write_text(lines(answers))
    done = blendkit(*flags, "--read-batch", tmp_path / "answers.jsonl", stdin=lines(records))
    assert done.returncode == 65
    assert "the batch has an error for it" in done.stderr and "expired" in done.stderr
    (tmp_path / "answers.jsonl").write_text("[]\n")
    assert blendkit(*flags, "--read-batch", tmp_path / "answers.jsonl", stdin=lines(records)).returncode == 65


def test_text_completions_take_a_presets_format(blendkit, serve):
    server = serve()
    flags = ["--base-url", server.url, "--api", "completions", "--logprobs"]
    done = blendkit("generate", "-m", "mine=dolly:openai:x", *flags, stdin=lines(prompts(1)))
    assert done.returncode == 0, done.stderr
    body = server.bodies[0]
    assert body["prompt"].endswith("### Instruction:\nquestion 0\n\n### Response:\n")
    assert body["stop"] == ["### End"]
    assert body["top_p"] == 0.92  # the preset's own
    (candidate,) = parsed(done.stdout)[0]["candidates"]
    assert candidate["model"] == "mine"
    assert candidate["scores"] == {"logprobs": -2.0}


def test_several_answers_have_seeds_of_their_own(blendkit, serve):
    server = serve()
    done = blendkit("generate", "-m", "openai:x", "--base-url", server.url, "--num-return", 3, "--logprobs", stdin=lines(prompts(2)))
    assert [len(record["candidates"]) for record in parsed(done.stdout)] == [3, 3]
    assert len({body["seed"] for body in server.bodies}) == 6
    assert parsed(done.stdout)[0]["candidates"][2]["scores"] == {"logprobs": -1.0}


def test_what_an_endpoint_cannot_do(blendkit, serve):
    url = serve().url
    for flags, said in (
        (("--decoding", "beam:3"), "endpoints have no such method"),
        (("--api", "grpc"), "--api grpc: expected chat or completions"),
        (("--decoding", "bean"), "did you mean beam?"),
        (("--temperature", 0, "--num-return", 2), "greedy decoding has one answer"),
    ):
        done = blendkit("generate", "-m", "openai:x", "--base-url", url, *flags, stdin=lines(prompts(1)))
        assert done.returncode == 2
        assert said in done.stderr


def test_options_that_do_not_go_together():
    with pytest.raises(UsageError, match="--max-cost needs"):
        list(library.generate(prompts(1), ["openai:x"], base_url="http://localhost:1/v1", max_cost=1.0))
