"""Requests that a server refuses for a parameter are put otherwise, and those that it refuses for the prompt are not."""

from __future__ import annotations

import json

import pytest
from conftest import lines, parsed

from blendkit.generators.adaptation import Adapted, adapted_to, folded, read_stored, stored

SENT = {
    "model": "x", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "temperature": 0.7, "max_tokens": 512, "seed": 1,
    "top_p": 0.9, "top_k": 40, "min_p": 0.1, "stop": ["END"], "logprobs": True, "top_logprobs": 20, "response_format": {"type": "json_schema"},
    "reasoning_effort": "none",
}  # fmt: skip


def openai(message, param=None, code=None):
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def fastapi(name, kind="extra_forbidden", message="Extra inputs are not permitted"):
    return {"detail": [{"type": kind, "loc": ["body", name], "msg": message, "input": SENT}]}


# What servers say, and what is done: OpenAI, Azure, Groq, Mistral, Gemini, DeepSeek, Anthropic, vLLM, llama.cpp and gateways, as they have been reported.
REFUSALS = [
    (openai("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "max_tokens", "unsupported"),
     {"max_tokens": "max_completion_tokens"}),
    (openai("Unrecognized request argument supplied: max_tokens"), {"max_tokens": "max_completion_tokens"}),
    (openai("max_tokens is too large: 512. This model supports at most 256 completion tokens, whereas you provided 512.", "max_tokens"), {"max_tokens": 256}),
    (openai("Invalid max_tokens value, the valid range of max_tokens is [1, 256]"), {"max_tokens": 256}),
    (openai("`max_tokens` must be less than or equal to `256`, the maximum value for `max_tokens` is less than the `context_window` for this model"),
     {"max_tokens": 256}),
    (openai("max_tokens: 512 > 256, which is the maximum allowed number of output tokens for x"), {"max_tokens": 256}),
    (openai("Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported.", "temperature"),
     {"temperature": None}),
    (openai("`temperature` is deprecated for this model."), {"temperature": None}),
    (openai("temperature is not supported by this model"), {"temperature": None}),
    (openai("Unsupported parameter: 'top_p' is not supported with this model.", "top_p"), {"top_p": None}),
    (openai("property 'seed' is unsupported"), {"seed": None}),
    (openai("Invalid JSON payload received. Unknown name \"seed\": Cannot find field."), {"seed": None}),
    (fastapi("seed"), {"seed": None}),
    (fastapi("top_k"), {"top_k": None}),
    (fastapi("min_p"), {"min_p": None}),
    ({"object": "error", "message": "Unknown field: top_k", "type": "BadRequestError", "code": 400}, {"top_k": None}),
    (openai("Unsupported parameter: 'stop' is not supported with this model.", "stop"), {"stop": None}),
    (openai("You are not allowed to request logprobs from this model."), {"logprobs": None, "top_logprobs": None}),
    (openai("Invalid value for 'top_logprobs': must be less than or equal to 5.", "top_logprobs"), {"top_logprobs": 5}),
    (openai("top_logprobs is out of range"), {"top_logprobs": 5}),
    ({"message": "Requested sample logprobs of 20, which is greater than max allowed: 8"}, {"top_logprobs": 8}),
    (openai("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", "response_format"), {"response_format": None}),
    (openai("This response_format type is unavailable now"), {"response_format": None}),
    (openai("json_schema is not supported"), {"response_format": None}),
    (openai("Unsupported value: 'reasoning_effort' does not support 'none' with this model.", "reasoning_effort"), {"reasoning_effort": None}),
    (openai("Unsupported value: 'messages[0].role' does not support 'system' with this model.", "messages[0].role"), {"system": None}),
    (openai("System role not supported"), {"system": None}),
    (openai("Developer instruction is not enabled for models/gemma-3-1b-it"), {"system": None}),
    (openai("Conversation roles must alternate user/assistant/user/assistant/..."), {"system": None}),
]  # fmt: skip
THEIR_OWN_FAULT = [
    openai("This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (8488 in the messages, 512 in the completion).", "messages"),
    openai(
        "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 1024 tokens and your request has 600 input tokens"
    ),
    openai("The prompt was flagged by our policy: stop talking about seed oil and the temperature of the sea"),
    openai("Please stop."),
    openai("Invalid 'messages[1].content': string too long.", "messages[1].content"),
    {"detail": [{"type": "string_too_long", "loc": ["body", "messages", 1, "content"], "msg": "too long", "input": SENT}]},
    {"error": "no"},
    [],
    "no",
]


def said(body):
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else None
    return message or json.dumps(body)


@pytest.mark.parametrize(("body", "fixes"), REFUSALS, ids=[said(body)[:60] for body, _ in REFUSALS])
def test_a_refusal_says_what_to_do(body, fixes):
    changed = adapted_to(json.dumps(body).encode(), said(body), SENT, Adapted(), set(SENT))
    assert changed is not None and changed.as_dict() == fixes
    sent = changed.of(SENT)
    for name, how in fixes.items():
        if name == "system":
            assert sent["messages"] == [{"role": "user", "content": "Be brief.\n\nHi"}]
        elif isinstance(how, str):
            assert name not in sent and sent[how] == SENT[name]
        else:
            assert sent.get(name) == how
    assert read_stored(stored(changed)) == changed


@pytest.mark.parametrize("body", THEIR_OWN_FAULT, ids=[said(body)[:60] for body in THEIR_OWN_FAULT])
def test_a_refusal_of_the_prompt_changes_no_parameter(body):
    assert adapted_to(json.dumps(body).encode(), said(body), SENT, Adapted(), set(SENT)) is None


def test_what_the_user_wrote_is_not_changed():
    body = openai("Unsupported parameter: 'seed' is not supported with this model.", "seed")
    assert adapted_to(json.dumps(body).encode(), said(body), SENT, Adapted(), set(SENT) - {"seed"}) is None


def test_a_limit_is_renamed_and_then_lowered():
    known = Adapted().having("max_tokens", "max_completion_tokens")
    body = openai("max_completion_tokens is too large: 512. This model supports at most 256 completion tokens.", "max_completion_tokens")
    changed = adapted_to(json.dumps(body).encode(), said(body), known.of(SENT), known, set(known.of(SENT)))
    assert changed is not None and changed.of(SENT)["max_completion_tokens"] == 256


@pytest.mark.parametrize("data", [b"", b"1", b'{"adapted":{"messages":null}}', b'{"adapted":{"max_tokens":null}}', b'{"adapted":{"max_tokens":"model"}}', None])
def test_a_foreign_row_of_a_cache_teaches_nothing(data):
    assert read_stored(data) == Adapted()


def test_a_system_message_without_a_user_stands_alone():
    assert folded([{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}])[0] == {"role": "user", "content": "a"}
    assert folded([{"role": "user", "content": "a"}]) == [{"role": "user", "content": "a"}]


def picky(*names, status=400):
    """A server that knows none of these parameters."""

    def refuse(body):
        name = next((name for name in names if name in body), None)
        return None if name is None else (status, openai(f"Unsupported parameter: '{name}' is not supported with this model.", name))

    return refuse


def asked(blendkit, server, *flags, count=6, model="m=openai:x"):
    records = [{"id": f"r{number}", "instruction": f"question {number}"} for number in range(count)]
    return blendkit("generate", "-m", model, "--base-url", server.url, "--retries", 0, *flags, stdin=lines(records))


@pytest.mark.parametrize("status", [400, 422])
def test_what_is_refused_is_learned_once_and_told(blendkit, serve, tmp_path, status):
    server = serve(refuse=picky("seed", "temperature", "max_tokens", status=status))
    manifest = tmp_path / "manifest.json"
    done = asked(blendkit, server, "--concurrency", 1, "--manifest", manifest)
    assert done.returncode == 0, done.stderr
    assert [record["candidates"][0]["text"] for record in parsed(done.stdout)] == [f"Reply to question {number}" for number in range(6)]
    assert len(server.bodies) == 6 + 3 and set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens"}
    (line,) = [line for line in done.stderr.splitlines() if "does not take" in line]
    assert "openai:x does not take all of a request:" in line and "max_tokens is max_completion_tokens" in line and "seed is left out" in line
    assert json.loads(manifest.read_text())["models"]["m"]["adapted"] == {"seed": None, "temperature": None, "max_tokens": "max_completion_tokens"}


def test_a_second_run_asks_nothing_and_another_decoding_is_another_answer(blendkit, serve, tmp_path):
    server = serve(refuse=picky("max_tokens"))
    cache = tmp_path / "cache.sqlite"
    first = asked(blendkit, server, "--cache", cache)
    asked_before = len(server.bodies)
    again = asked(blendkit, server, "--cache", cache)
    assert again.stdout == first.stdout and len(server.bodies) == asked_before
    asked(blendkit, server, "--cache", cache, "--temperature", 0.1)
    assert len(server.bodies) == asked_before + 6


def test_what_one_model_does_not_take_another_gets(blendkit, serve):
    server = serve(refuse=lambda body: picky("seed")(body) if body["model"] == "x" else None)
    done = asked(blendkit, server, "-m", "n=openai:y", "--concurrency", 1)
    assert done.returncode == 0, done.stderr
    assert {("seed" in body) for body in server.bodies if body["model"] == "y"} == {True}


def test_a_stop_that_the_server_does_not_take_still_ends_the_answer(blendkit, serve):
    server = serve(refuse=picky("stop"), reply=lambda body: "one END two")
    done = asked(blendkit, server, "--stop", "END", count=1)
    (record,) = parsed(done.stdout)
    assert (record["candidates"][0]["text"], record["candidates"][0]["finish_reason"]) == ("one ", "stop")


def test_a_system_message_moves_to_the_user(blendkit, serve):
    def refuse(body):
        return (400, openai("System role not supported")) if body["messages"][0]["role"] == "system" else None

    server = serve(refuse=refuse)
    done = asked(blendkit, server, "--system", "Be brief.", count=1)
    assert done.returncode == 0, done.stderr
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nquestion 0"}]
    assert "the system message stands in the user's turn" in done.stderr


def test_the_servers_words_are_quoted_where_nothing_helps(blendkit, serve):
    server = serve(lambda prompt, attempt: (400, openai("the cat ate this one")) if prompt == "question 1" else None)
    done = asked(blendkit, server)
    assert done.returncode == 65 and "openai:x refuses the request (HTTP 400): the cat ate this one" in done.stderr


def test_nothing_is_learned_from_a_refusal_that_changes_do_not_help(blendkit, serve, tmp_path):
    """A prompt that a server refuses with a parameter's name in its words does not cost the others their temperature."""
    server = serve(lambda prompt, attempt: (400, openai("'temperature' is not supported")) if prompt == "question 1" else None)
    done = asked(blendkit, server, "--on-error", "skip", "--rejects", tmp_path / "rejects", "--concurrency", 1)
    assert done.returncode == 70
    assert all("temperature" in body for body in server.bodies if "question 1" not in body["messages"][0]["content"])


def test_a_judge_by_likelihood_without_log_probabilities_says_so(blendkit, serve):
    server = serve(refuse=picky("logprobs", "top_logprobs"))
    record = {"id": "r", "instruction": "q", "output": "y", "candidates": [{"model": "a", "text": "a"}, {"model": "b", "text": "b"}]}
    done = blendkit("judge", "-m", "openai:x", "--base-url", server.url, "--verdict-by", "likelihood", stdin=lines([record]))
    assert done.returncode == 65 and "openai:x gives no log-probabilities, which --verdict-by likelihood needs" in done.stderr


def test_fewer_alternatives_where_a_server_has_a_limit(blendkit, serve):
    def refuse(body):
        most = "Invalid value for 'top_logprobs': must be less than or equal to 5."
        return (400, openai(most, "top_logprobs")) if body.get("top_logprobs", 0) > 5 else None

    server = serve(refuse=refuse, reply=lambda body: "A", top=lambda body: {"A": -0.1, "B": -2.0})
    record = {"id": "r", "instruction": "q", "output": "y", "candidates": [{"model": "a", "text": "a"}, {"model": "b", "text": "b"}]}
    done = blendkit("judge", "-m", "openai:x", "--base-url", server.url, "--verdict-by", "likelihood", stdin=lines([record]))
    assert done.returncode == 0, done.stderr
    assert server.bodies[-1]["top_logprobs"] == 5 and "top_logprobs is at most 5" in done.stderr


def test_what_the_user_wrote_stays_in_a_batch_too(blendkit, tmp_path):
    """A refusal in a batch changes what is blendkit's own; a parameter of --extra-body is asked for again as it is, and told."""
    batch, answers, following = (tmp_path / name for name in ("batch.jsonl", "answers.jsonl", "next.jsonl"))
    stream = lines([{"id": "r", "instruction": "question"}])
    command = ["generate", "-m", "m=openai:x", "--base-url", "http://127.0.0.1:9/v1", "--extra-body", '{"seed": 7}']
    assert blendkit(*command, "--emit-batch", batch, stdin=stream).returncode == 0
    (asked,) = parsed(batch.read_text())
    refused = openai("Unsupported parameter: 'seed' is not supported with this model.", "seed")
    answers.write_text(lines([{"custom_id": asked["custom_id"], "response": {"status_code": 400, "body": refused}}]))
    done = blendkit(*command, "--read-batch", answers, "--emit-batch", following, "--on-error", "skip", stdin=stream)
    (again,) = parsed(following.read_text())
    assert again["body"]["seed"] == 7 and "'seed' is not supported" in done.stderr
