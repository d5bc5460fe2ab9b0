"""Answers that were kept are foreign, too: rows of a cache and lines of a batch that are not ours, and files of others."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest
from conftest import lines, parsed
from hostile import asking, prompts

from blendkit.errors import OutputError
from blendkit.generators.cache import Cache
from blendkit.generators.options import EndpointOptions, Sampling

GOOD = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
DEEP = "[" * 100_000 + "]" * 100_000


# Caches


@pytest.mark.parametrize("value", [b"\x00\xff", b"{}", b'{"text":5,"finish_reason":null,"usage":null}', "text", 5, 1.5, b"[" * 5000, b"x" * 70_000_000, b""])
def test_a_row_that_is_not_ours_is_asked_again_and_replaced(serve, tmp_path, value):
    server, path = serve(), tmp_path / "cache.sqlite"
    options = EndpointOptions(base_url=server.url, cache=str(path))
    record = {"id": "a", "instruction": "question"}

    def answer():
        endpoint_warnings.clear()
        from blendkit.generators.generating import Generating
        from blendkit.pipeline.runner import apply

        stage = Generating(["openai:x"], Sampling(), options)
        (done,) = apply(stage, [dict(record)])
        endpoint_warnings.extend(stage.warnings())
        return done["candidates"][0]["text"]

    endpoint_warnings: list[str] = []
    answer()
    database = sqlite3.connect(path)
    database.execute("UPDATE answers SET value = ?", (value,))
    database.commit()
    database.close()
    assert answer() == "Reply to question"
    assert f"1 row of --cache {path} was no answer of ours; its question was asked again" in endpoint_warnings
    assert answer() == "Reply to question" and not endpoint_warnings
    assert server.asked["question"] == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("CREATE TABLE history (url TEXT)", "the database of another program"),
        ("CREATE TABLE answers (question TEXT, answer TEXT)", "no such column: key"),
        ("CREATE TABLE t (key TEXT, value TEXT); CREATE VIEW answers AS SELECT 1 AS key, 2 AS value", "the database of another program"),
    ],
)
def test_a_database_of_another_kind_is_left_alone(blendkit, serve, tmp_path, make, said):
    path = tmp_path / "other.sqlite"
    database = sqlite3.connect(path)
    database.executescript(make)
    database.close()
    before = path.read_bytes()
    done = blendkit(*asking(serve(), "--cache", path), stdin=prompts("a"))
    assert done.returncode == 74, done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    if "another program" in said:
        assert path.read_bytes() == before


def test_a_damaged_cache_is_told(blendkit, serve, tmp_path):
    path = tmp_path / "cache.sqlite"
    server = serve()
    assert blendkit(*asking(server, "--cache", path), stdin=prompts(*"abcdefgh")).returncode == 0
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    done = blendkit(*asking(server, "--cache", path), stdin=prompts("a"))
    assert done.returncode == 74, done.stderr
    assert f"--cache {path}" in done.stderr and len(done.stderr.splitlines()) == 1


def test_many_processes_open_a_new_cache_at_once(tmp_path):
    code = "import sys; from blendkit.generators.cache import Cache; sys.stdin.read(1)\nfor n in range(40): Cache(f'{sys.argv[1]}/{n}.sqlite', 1000).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        process.stdin.write(b"x")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, said


def test_a_row_too_long_is_none(tmp_path):
    cache = Cache(str(tmp_path / "cache.sqlite"), 10)
    cache.put("short", b"0123456789")
    cache.put("long", b"0123456789a")
    assert cache.get(["short", "long", "none"]) == {"short": b"0123456789", "long": b""}
    cache.drop(["long"])
    assert cache.get(["long"]) == {}
    cache.close()
    with pytest.raises(OutputError, match="--cache"):
        Cache(str(tmp_path), 10)


# Batch files


def test_batch_answers_of_another_form(blendkit, tmp_path):
    flags = ["generate", "-m", "openai:x", "--temperature", 0]
    assert blendkit(*flags, "--emit-batch", tmp_path / "out.jsonl", stdin=prompts("a", "b")).returncode == 0
    first, second = (row["custom_id"] for row in parsed((tmp_path / "out.jsonl").read_text()))
    answers = tmp_path / "in.jsonl"
    rows = [{"custom_id": first, "response": {"status_code": 200, "body": {"choices": {}}}}, {"custom_id": second, "response": {"body": GOOD}}]
    answers.write_text(lines(rows))
    done = blendkit(*flags, "--read-batch", answers, "--on-error", "skip", stdin=prompts("a", "b"))
    assert done.returncode == 70, done.stderr
    assert "the batch answers with an answer that is no completion: choices: expected array | null, got object" in done.stderr
    assert parsed(done.stdout)[0]["candidates"][0]["text"] == "Hello"
    for line in ('{"custom_id":[],"response":null}', DEEP, '{"custom_id":"a","response":{"status_code":"x"}}', '{"custom_id":"\\ud800"}', "\x00"):
        answers.write_text(lines(rows[1:]) + line + "\n")
        done = blendkit(*flags, "--read-batch", answers, stdin=prompts("a"))
        assert done.returncode == 65, done.stderr
        assert f"{answers}:2: expected a line of a batch's output" in done.stderr
    answers.write_text(lines(rows))
    done = blendkit(*flags, "--read-batch", answers, "--max-body-bytes", 50, stdin=prompts("a"))
    assert done.returncode == 65 and f"{answers}:1: a line of more than 50 bytes" in done.stderr
