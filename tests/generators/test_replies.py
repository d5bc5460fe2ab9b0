"""What a server says is foreign: no field of it ends a run otherwise than by our own errors, or fills the memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from contextlib import suppress
from types import SimpleNamespace

import pytest
from conftest import limited, parsed
from hostile import asking, prompts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blendkit.errors import DataError, OutputError
from blendkit.generators.base import Completion, Prompt
from blendkit.generators.batch_file import BatchAnswers
from blendkit.generators.endpoint import Endpoint
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.generators.replies import BadReply, SaidError, read_body, read_kept, read_reply, what_it_says

GOOD = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
GOOD_TEXT = {"choices": [{"text": "Hello", "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]}
TEXT_LOGPROBS = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}]}
DEEP = "[" * 100_000 + "]" * 100_000


# Bodies without bounds


@pytest.mark.parametrize("fault", ["gzip-bomb", "gzip-members", "endless", "headers"])
def test_a_body_without_end_is_the_fault_of_its_request(blendkit, serve, tmp_path, fault):
    server = serve(lambda prompt, attempt: fault if "bad" in prompt else None)
    flags = ["--on-error", "skip", "--rejects", tmp_path / "bad.jsonl", "--concurrency", 1, "--timeout", 60]
    done = blendkit(*asking(server, *flags), stdin=prompts("bad", "good"), preexec_fn=limited(450))
    assert done.returncode == 70, done.stderr
    assert [record["id"] for record in parsed(done.stdout)] == ["1"]
    (reject,) = parsed((tmp_path / "bad.jsonl").read_text())
    said = "headers that are too long" if fault == "headers" else "a body of more than 67,108,864 bytes; --max-body-bytes raises the limit"
    assert f"answers with {said}" in reject["error"]


def test_a_server_whose_bodies_have_no_end_counts_as_gone(blendkit, serve):
    done = blendkit(*asking(serve(lambda prompt, attempt: "endless"), "--max-body-bytes", 1000), stdin=prompts("a", "b", "c"))
    assert done.returncode == 69, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "more than 1,000 bytes" in done.stderr and "is it an OpenAI-compatible server?" in done.stderr


def test_the_time_is_for_the_whole_body(blendkit, serve):
    done = blendkit(*asking(serve(lambda prompt, attempt: "trickle"), "--timeout", 0.7), stdin=prompts("a"))
    assert done.returncode == 69
    assert "gave no answer in 0.7 s" in done.stderr


def test_of_a_refusal_without_end_the_beginning_is_read(blendkit, serve):
    done = blendkit(*asking(serve(lambda prompt, attempt: "endless-400")), stdin=prompts("a"), preexec_fn=limited(250))
    assert done.returncode == 65, done.stderr
    assert "refuses the request (HTTP 400)" in done.stderr


class Chunks:
    """A response whose body comes in pieces."""

    def __init__(self, pieces, packing):
        self.headers, self._pieces = {"Content-Encoding": packing} if packing else {}, pieces
        self.content = SimpleNamespace(iter_any=self._iter)

    async def _iter(self):
        for piece in self._pieces:
            yield piece


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 400), st.integers(1, 50), st.sampled_from(["", "gzip", "deflate", "GZIP"]), st.booleans())
def test_a_body_within_the_limit_comes_whole_however_it_is_cut(data, limit, size, packing, members):
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "": bytes}[packing.lower()]
    sent = packed(data) if not members or packing.lower() != "gzip" else packed(data[:100]) + packed(data[100:])
    reply = Chunks([sent[place : place + size] for place in range(0, len(sent), size)], packing)
    if len(data) <= limit:
        assert asyncio.run(read_body(reply, limit)) == data
    else:
        with pytest.raises(BadReply, match="more than"):
            asyncio.run(read_body(reply, limit))
        assert asyncio.run(read_body(reply, limit, whole=False)) == data[:limit]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from(["", "gzip", "deflate", "br", "zstd", "\x00"]))
def test_any_body_is_read_or_refused(pieces, packing):
    with suppress(BadReply):
        assert len(asyncio.run(read_body(Chunks(pieces, packing), 64))) <= 64
    assert len(asyncio.run(read_body(Chunks(pieces, packing), 64, whole=False))) <= 64


def test_a_compressed_body_that_is_cut_off_is_none():
    for data in (gzip.compress(b"x" * 1000)[:-3], gzip.compress(b"x") + b"rubbish"):
        with pytest.raises(BadReply, match="compress"):
            asyncio.run(read_body(Chunks([data], "gzip"), 10_000))


# Replies


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": {}}, "choices: expected array | null, got object"),
        ({"choices": "x"}, "choices: expected array | null, got str"),
        ({"choices": [1]}, "choices[0]: expected object, got int"),
        ({"choices": [{"message": {"content": True}}]}, "choices[0].message.content: expected str | object | array | null, got bool"),
        ({"choices": [{"message": {"content": 5}}]}, "choices[0].message.content: expected str | object | array | null, got int"),
        ({"choices": [{"message": "x"}]}, "choices[0].message: expected object | null, got str"),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": 5}]}, "choices[0].finish_reason: expected str | null, got int"),
        ({"choices": [{"message": {"content": "a"}, "logprobs": {"content": {}}}]}, "content: expected array | null, got object"),
        ({"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": 1e300}]}}]}, "<= 0.01"),
        ({"choices": [{"message": {"content": "a"}, "logprobs": [1]}]}, "log-probabilities of another form"),
    ],
)
def test_a_field_of_another_type_is_named(change, said):
    with pytest.raises(BadReply) as raised:
        read_reply(json.dumps(GOOD | change).encode(), "chat", logprobs=True)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[1]", DEEP.encode(), b'{"choices":[{"message":{"content":"a"}}],"x":%s}' % DEEP.encode(), b'{"choices":NaN}'],
)
def test_what_is_no_reply_is_said_so(data):
    with pytest.raises(BadReply, match="answers with"):
        read_reply(data, "chat")


@pytest.mark.parametrize("count", [-1, 10**400, 1e300, "5", True, [], {}, -0.5, 10**10])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_an_absurd_usage_does_not_cost_the_answer(count, api):
    good = GOOD if api == "chat" else GOOD_TEXT
    for usage in ({"prompt_tokens": count, "completion_tokens": 5}, {"prompt_tokens": 5, "completion_tokens": count}, count):
        reply = read_reply(json.dumps(good | {"usage": usage}).encode(), api)
        assert reply.completion.text == "Hello"
        assert reply.completion.usage is None and (not reply.believable or usage == {})
    assert read_reply(json.dumps(good | {"usage": {"prompt_tokens": 10.0, "completion_tokens": None}}).encode(), api).completion.usage == {"prompt_tokens": 10}


NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63, 1e308, -1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


@st.composite
def mutated(draw, *shapes):
    """One of the shapes with one or several of its parts put out or in another's place."""
    value = json.loads(json.dumps(draw(st.sampled_from(shapes))))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 3)) == 0:
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(ANYTHING)
                break
            place = place[key]
    return value


def said(value) -> bytes:
    """JSON as a careless server writes it: NaN, Infinity, lone surrogates and all."""
    return json.dumps(value).encode()


def with_logprobs(reply, logprobs):
    return reply | {"choices": [reply["choices"][0] | {"logprobs": logprobs}]}


REPLIES = [GOOD, GOOD_TEXT, with_logprobs(GOOD, LOGPROBS), with_logprobs(GOOD_TEXT, TEXT_LOGPROBS), {"error": {"message": "no", "code": 5}}]
KEPT = Completion("Hello", "stop", {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.1}, -0.5, {"a": -0.5}).as_dict()


def check_reply(data: bytes, api: str, logprobs: bool) -> None:
    what_it_says(data)
    try:
        reply = read_reply(data, api, logprobs)
    except SaidError:
        return
    except BadReply as error:
        assert "\n" not in str(error)
        return
    check_completion(reply.completion)


def check_completion(completion: Completion) -> None:
    assert type(completion.text) is str and isinstance(completion.finish_reason, str | None)
    assert all(count >= 0 for count in (completion.usage or {}).values())
    assert completion.logprob is None or -1e9 <= completion.logprob <= 0.01
    assert all(type(token) is str and value <= 0.01 for token, value in (completion.alternatives or {}).items())
    # What is kept is read again, and what is written is JSON.
    assert read_kept(json.dumps(completion.as_dict(), allow_nan=False).encode()) == completion


def check_row(data: bytes) -> None:
    kept = read_kept(data)
    if kept is not None:
        check_completion(kept)


def check_batch_line(data: bytes, path) -> None:
    path.write_bytes(data + b"\n")
    try:
        answers = BatchAnswers([str(path)], 1 << 20)
    except DataError as error:
        assert f"{path}:1: expected a line of a batch's output" in str(error)
        return
    answer = answers.get("k")
    if isinstance(answer, bytes):
        check_reply(answer, "chat", True)


LINE = {"custom_id": "k", "response": {"status_code": 200, "body": GOOD}, "error": None}
BUDGETS = [pytest.param(150, id="quick"), pytest.param(600, id="long", marks=pytest.mark.slow)]


def fuzz(strategy, budget: int, check) -> None:
    """Runs the check over so many examples."""
    relaxed = settings(max_examples=budget, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    relaxed(given(strategy)(check))()


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_reply_raises_anything_but_our_own(budget):
    def check(case):
        reply, api, logprobs = case
        check_reply(said(reply), api, logprobs)

    fuzz(st.tuples(mutated(*REPLIES), st.sampled_from(["chat", "completions"]), st.booleans()), budget, check)
    fuzz(st.binary(max_size=80), budget // 3, lambda data: check_reply(data, "chat", True))


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_row_of_a_cache_raises(budget):
    fuzz(mutated(KEPT), budget, lambda row: check_row(said(row)))
    fuzz(st.binary(max_size=80), budget // 3, check_row)


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_line_of_a_batch_raises_anything_but_our_own(budget, tmp_path):
    fuzz(mutated(LINE), budget, lambda line: check_batch_line(said(line), tmp_path / "batch.jsonl"))
    line = st.binary(max_size=80).map(lambda data: b"x" + data.replace(b"\n", b""))
    fuzz(line, budget // 3, lambda data: check_batch_line(data, tmp_path / "batch.jsonl"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"choices": {"0": {}}}, "choices: expected array | null, got object"),
        (GOOD | {"choices": [{"message": {"content": 5}}]}, "content: expected str | object | array | null, got int"),
        (GOOD | {"choices": [{"message": {"content": "a"}, "finish_reason": {}}]}, "finish_reason"),
        (GOOD | {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": "x"}]}}]}, "log-probabilities of another form"),
        (DEEP.encode(), "answers with"),
        (b'{"choices":[{"message":{"content":"a"', "no JSON"),
    ],
)
def test_a_reply_of_another_form_is_the_fault_of_its_record(blendkit, serve, tmp_path, answer, said):
    server = serve(lambda prompt, attempt: answer if "bad" in prompt else None)
    flags = ["--logprobs", "--concurrency", 1, "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl"]
    done = blendkit(*asking(server, *flags), stdin=prompts("bad", "good"))
    assert done.returncode == 70, done.stderr
    assert [record["id"] for record in parsed(done.stdout)] == ["1"]
    assert said in parsed((tmp_path / "bad.jsonl").read_text())[0]["error"]


@pytest.mark.parametrize("usage", [{"prompt_tokens": -(10**8), "completion_tokens": -(10**8)}, {"prompt_tokens": 10**400}, "none"])
def test_no_usage_defeats_the_limit_on_cost(blendkit, serve, usage):
    server = serve(lambda prompt, attempt: GOOD | {"usage": usage})
    prices = ["--price-in", 0, "--price-out", 10_000, "--max-cost", 1, "--max-new-tokens", 10, "--concurrency", 1, "--window", 1]
    done = blendkit(*asking(server, *prices), stdin=prompts(*map(str, range(30))))
    assert done.returncode == 69, done.stderr
    assert "--max-cost 1: $1.0000 are spent" in done.stderr
    assert "answers of openai:x had no count of tokens that can be believed; each counts as the most that it can have had" in done.stderr
    assert sum(server.asked.values()) == 10  # at $0.1 for ten tokens
    assert all("usage" not in record["candidates"][0] for record in parsed(done.stdout))


def test_an_answer_that_cannot_be_read_costs_the_most_that_it_can_have(blendkit, serve):
    server = serve(lambda prompt, attempt: b"{")
    prices = ["--price-in", 0, "--price-out", 10_000, "--max-cost", 0.25, "--max-new-tokens", 10]
    done = blendkit(*asking(server, *prices, "--retries", 5), stdin=prompts("a"))
    assert done.returncode == 69, done.stderr
    assert "--max-cost 0.25: $0.2000 are spent" in done.stderr
    assert server.asked["a"] == 2


def test_nonsense_from_a_server_three_times_in_a_row_ends_the_run(blendkit, serve):
    server = serve(lambda prompt, attempt: "html")
    done = blendkit(*asking(server, "--on-error", "skip", "--concurrency", 1), stdin=prompts(*map(str, range(20))))
    assert done.returncode == 69, done.stderr
    assert "answers with something that is no JSON, after 0 retries; is it an OpenAI-compatible server?" in done.stderr
    assert sum(server.asked.values()) == 3


def test_a_cache_that_fails_behind_the_last_answer_is_told(serve, tmp_path, monkeypatch):
    server = serve()
    endpoint = Endpoint("x", EndpointOptions(base_url=server.url, cache=str(tmp_path / "cache.sqlite")))

    def put(key, value):
        raise OutputError("--cache: disk full")

    monkeypatch.setattr(endpoint._cache, "put", put)
    (completion,) = endpoint.complete([Prompt([{"role": "user", "content": "a"}])], Sampling())
    endpoint.close()
    assert completion.text == "Reply to a" and endpoint.warnings() == ["--cache: disk full"]


def test_a_log_probability_that_is_none_is_left_out(serve):
    server = serve(lambda prompt, attempt: with_logprobs(GOOD, {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "A"}]}]}))
    endpoint = Endpoint("x", EndpointOptions(base_url=server.url))
    (completion,) = endpoint.complete([Prompt([{"role": "user", "content": "a"}])], Sampling(alternatives=5))
    endpoint.close()
    assert completion.alternatives is None and completion.logprob == -0.1
