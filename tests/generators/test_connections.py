"""Redirects, waits and refusals without sense, and no more connections than this process may open."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from types import SimpleNamespace

import pytest
from conftest import parsed
from hostile import asking, prompts

import blendkit as library
from blendkit.generators.limits import RateLimit, connections, retry_after
from blendkit.generators.replies import what_it_says

# Refusals


@pytest.mark.parametrize("place", ["http://localhost:9/elsewhere", "//evil.example/x"])
def test_a_redirect_to_another_host_is_not_followed(blendkit, serve, place):
    server = serve(lambda prompt, attempt: f"redirect:{place}")
    done = blendkit(*asking(server), stdin=prompts("a", "b"), env={**os.environ, "OPENAI_API_KEY": "sk-planted-0123456789"})
    assert done.returncode == 69
    assert f"{server.url} redirects to {place} (HTTP 307), where nothing is sent" in done.stderr
    assert len(server.headers) <= 2


def test_another_host_gets_nothing_by_a_redirect(blendkit, serve):
    other = serve()
    server = serve(lambda prompt, attempt: f"redirect:{other.url}/chat/completions")
    assert blendkit(*asking(server), stdin=prompts("a")).returncode == 69
    assert not other.headers


def test_a_server_that_asks_for_patience_without_end_counts_as_gone(blendkit, serve):
    for seconds in ("1e308", "inf", "86400"):
        done = blendkit(*asking(serve(lambda prompt, attempt, seconds=seconds: f"wait:{seconds}"), "--retries", 1), stdin=prompts("a"))
        assert done.returncode == 69 and "s of patience; go on with --resume later" in done.stderr


@pytest.mark.parametrize("value", ["nan", "-5", "x", "Thu, 01 Jan 0001 00:00:00 -0000", "Thu, 99 Jan 9999 99:99:99 GMT", ""])
def test_a_retry_after_without_sense(value):
    assert retry_after({"Retry-After": value}) in (None, 0.0)
    assert retry_after({"retry-after-ms": value}) in (None, 0.0)


def test_a_message_nested_deep_is_quoted():
    assert what_it_says(b'{"error":{"message":%s}}' % (b"[" * 1000 + b"]" * 1000)).startswith('{"error"')
    assert what_it_says(b'{"error":"no \xff"}') == '{"error":"no \ufffd"}'
    assert what_it_says(b'{"error":{"message":"no"}}') == what_it_says(b'{"error":"no"}') == "no"


# Files that may be open


def test_a_concurrency_that_does_not_fit_is_lowered_and_told(blendkit, serve):
    server = serve(latency=0.05)
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))  # noqa: E731
    done = blendkit(*asking(server, "--concurrency", 200), stdin=prompts(*map(str, range(100))), preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert len(parsed(done.stdout)) == 100
    (line,) = done.stderr.splitlines()
    assert "--concurrency 200: this process may open 40 files (ulimit -n), so " in line
    several = ["-m", "a=openai:a", "-m", "b=openai:b", "--base-url", server.url, "--concurrency", 200]
    done = blendkit("generate", *several, stdin=prompts(*map(str, range(50))), preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    # What the system allows is taken, and nothing said.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= 400:
        raised = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 400))  # noqa: E731
        done = blendkit(*asking(server, "--concurrency", 200), stdin=prompts(*map(str, range(100))), preexec_fn=raised)
        assert (done.returncode, done.stderr) == (0, "")


def test_there_is_always_one_connection(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (20, 20))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    assert connections(100, 3) == (1, 20)


def test_closing_gives_every_file_back(serve):
    server = serve()

    def once():
        list(library.generate([{"id": "a", "instruction": "x"}], ["openai:x"], base_url=server.url))

    once()
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        once()
    # The server runs in this process, too, and closes its own ends when its threads come to it.
    until = time.monotonic() + 30
    while len(os.listdir("/dev/fd")) > before + 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(os.listdir("/dev/fd")) <= before + 3


def test_a_pause_keeps_the_distance_between_requests(monkeypatch):
    from blendkit.generators import limits

    now, heap = 100.0, []

    async def sleep(seconds):
        # A clock of the test's own: whoever is due first goes on.
        nonlocal now
        event = asyncio.Event()
        heap.append((now + seconds, len(heap), event))
        await event.wait()

    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(limits, "asyncio", SimpleNamespace(sleep=sleep))

    async def starts():
        nonlocal now
        rate, found = RateLimit(60, None), []

        async def one():
            await rate.wait(1)
            found.append(now - 100)

        tasks = [asyncio.create_task(one()) for _ in range(5)]
        await asyncio.sleep(0)
        rate.pause(10)
        rate.pause(4)
        tasks += [asyncio.create_task(one())]
        for _ in range(60):
            await asyncio.sleep(0)
            if heap:
                heap.sort(key=lambda item: item[:2])
                now, _, event = heap.pop(0)
                event.set()
        await asyncio.gather(*tasks)
        return found

    found = asyncio.run(starts())
    # The first had left before the pause; all others wait for its end, and then go one a second.
    assert found == pytest.approx([0, 11, 12, 13, 14, 15])
