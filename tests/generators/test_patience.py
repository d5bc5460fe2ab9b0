"""A server asks to be left alone for a while: it is, that is told, and there is an end to it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from conftest import lines, parsed

from blendkit.generators.limits import RateLimit, retry_after


def prompts(count: int) -> str:
    return lines([{"id": f"r{number}", "instruction": f"question {number}"} for number in range(count)])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12),
        ({"Retry-After": "1.5"}, 1.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "later"}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_asks_for(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_every_form_of_a_date_is_gmt(form, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        later = datetime.now(UTC) + timedelta(seconds=300)
        assert 290 < retry_after({"Retry-After": later.strftime(form)}) <= 300
        assert 290 < retry_after({"Retry-After": format_datetime(later)}) <= 300
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("header", ["Retry-After: 1", "retry-after-ms: 1000"])
def test_a_long_wait_is_told_once_and_kept(called, serve, status, header):
    begun = []

    def plan(prompt, attempt):
        begun.append(time.monotonic())
        return (status, {"error": {"message": "slow down"}}, f"{header}\r\n") if attempt == 1 else None

    server = serve(plan)
    flags = ["-m", "openai:x", "--base-url", server.url, "--concurrency", 6, "--timeout", 0.9]
    code, out, told = called("generate", *flags, stdin=prompts(6))
    assert code == 0 and len(parsed(out)) == 6, told
    assert told.count(f"{server.url} answers HTTP {status}: slow down; it asks for 1 s of patience: waiting") == 1
    assert min(begun[6:]) - begun[0] >= 1


def test_a_wait_of_less_than_the_timeout_is_not_told(called, serve):
    server = serve(lambda prompt, attempt: "429" if attempt == 1 else None)
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, stdin=prompts(2))
    assert (code, told) == (0, "")


def test_a_wait_that_is_too_long_ends_the_run_with_everything_done(called, serve, tmp_path):
    server = serve(lambda prompt, attempt: "wait:601" if prompt == "question 5" else None)
    flags = ["-m", "openai:x", "--base-url", server.url, "--concurrency", 1, "--window", 1, "-o", tmp_path / "out.jsonl"]
    code, _, told = called("generate", *flags, stdin=prompts(8))
    assert code == 69 and f"{server.url} answers HTTP 429: {{}} and asks for 601 s of patience; go on with --resume later" in told
    assert "--max-wait (now 600 s)" in told
    assert [record["id"] for record in parsed((tmp_path / "out.jsonl").read_text())][:4] == ["r0", "r1", "r2", "r3"]
    code, _, told = called("generate", *flags, "--max-wait", 0.5, "--resume", stdin=prompts(8))
    assert code == 69 and "now 0.5 s" in told
    server.plan = lambda prompt, attempt: None
    assert called("generate", *flags, "--resume", stdin=prompts(8))[0] == 0
    assert len(parsed((tmp_path / "out.jsonl").read_text())) == 8


def test_only_the_first_of_many_equal_waits_is_news():
    limit = RateLimit(None, None)
    assert limit.pause(100)
    assert not limit.pause(100) and not limit.pause(100.2) and not limit.pause(5)
    assert limit.pause(1000)
