"""Replies as servers really give them: parts, reasoning, half characters, errors in a 200. What is written is a record that `check` takes."""

from __future__ import annotations

import json
import re

import pytest
from conftest import lines, parsed

from blendkit.generators.reasoning import answer_begins, apart
from blendkit.generators.replies import read_reply

SECRET_THOUGHT = "first I thought of fish"


def asked(blendkit, server, *flags, count=1, retries=0):
    """Asks the questions, and has `check` look at what came out."""
    records = [{"id": f"r{number}", "instruction": f"question {number}"} for number in range(count)]
    done = blendkit("generate", "-m", "m=openai:x", "--base-url", server.url, "--retries", retries, *flags, stdin=lines(records))
    assert blendkit("check", stdin=done.stdout).returncode == 0
    return done, [record["candidates"][0] for record in parsed(done.stdout)]


CONTENTS = [
    (None, ""),
    ("plain", "plain"),
    ([], ""),
    ([{"type": "text", "text": "Hello "}, {"type": "text", "text": "world"}], "Hello world"),
    (["Hello ", "world"], "Hello world"),
    ({"type": "text", "text": "one part"}, "one part"),
    ([{"type": "output_text", "text": "Hi"}, {"type": "tool_use", "name": "f", "input": {}}], "Hi"),
    ([{"type": "text", "text": {"value": "Hi", "annotations": []}}], "Hi"),
    ([{"type": "image_url", "image_url": {"url": "x"}}, 5, None, {"type": "text"}], ""),
]


@pytest.mark.parametrize(("content", "text"), CONTENTS, ids=lambda value: json.dumps(value)[:40])
def test_text_parts_are_joined_and_nothing_but_a_string_is_written(blendkit, serve, content, text):
    done, (candidate,) = asked(blendkit, serve(reply=lambda body: {"role": "assistant", "content": content}))
    assert done.returncode == 0, done.stderr
    assert candidate["text"] == text
    assert ("1 answer of m is empty (finish_reason stop: 1)" in done.stderr) == (not text)


REASONED = {
    "think": {"content": f"<think>\n{SECRET_THOUGHT}\n</think>\n\nFish."},
    "thinking": {"content": f"<thinking>{SECRET_THOUGHT}</thinking>Fish."},
    "reasoning tag": {"content": f"  <reasoning>{SECRET_THOUGHT}</reasoning>\nFish."},
    "magistral": {"content": f"[THINK]{SECRET_THOUGHT}[/THINK]Fish."},
    "opened by the template": {"content": f"{SECRET_THOUGHT}\n</think>\n\nFish."},
    "channels": {"content": f"<|channel|>analysis<|message|>{SECRET_THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>Fish.<|return|>"},
    "reasoning_content": {"content": "Fish.", "reasoning_content": SECRET_THOUGHT},
    "reasoning": {"content": "Fish.", "reasoning": SECRET_THOUGHT},
    "details": {"content": "Fish.", "reasoning": {"summary": [{"type": "summary_text", "text": SECRET_THOUGHT}]}},
    "thinking part": {"content": [{"type": "thinking", "thinking": SECRET_THOUGHT}, {"type": "text", "text": "Fish."}]},
    "parts within": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": SECRET_THOUGHT}]}, {"type": "text", "text": "Fish."}]},
}


@pytest.mark.parametrize("how", REASONED)
def test_reasoning_stands_apart_from_the_answer(blendkit, serve, how):
    done, (candidate,) = asked(blendkit, serve(reply=lambda body: dict(REASONED[how])))
    assert done.returncode == 0, done.stderr
    assert (candidate["text"], candidate["reasoning"]) == ("Fish.", SECRET_THOUGHT)


@pytest.mark.parametrize(
    ("keep", "text", "reasoning"),
    [("field", "Fish.", SECRET_THOUGHT), ("none", "Fish.", None), ("text", f"<think>\n{SECRET_THOUGHT}\n</think>\n\nFish.", None)],
)
def test_reasoning_is_kept_as_asked(blendkit, serve, keep, text, reasoning):
    _, (candidate,) = asked(blendkit, serve(reply=lambda body: dict(REASONED["think"])), "--keep-reasoning", keep)
    assert (candidate["text"], candidate.get("reasoning")) == (text, reasoning)


def test_a_word_that_is_no_choice_is_wrong_usage(blendkit):
    for flag, said in (("--keep-reasoning", "field, text, none"), ("--reasoning-effort", "none, low, medium, high")):
        done = blendkit("generate", "-m", "openai:x", "--base-url", "http://127.0.0.1:9/v1", flag, "much", stdin="")
        assert done.returncode == 2 and f"{flag} much: expected one of {said}" in done.stderr


TEXTS = [
    ("<think>a</think>b", "b", "a"),
    ("<think>\nno end", "", "no end"),
    ("<think></think>\n\nHi", "Hi", ""),
    ("<think>a</think>\n<think>b</think>c", "c", "a\n\nb"),
    ("<think>a</think>Hi\n<think>b</think>\nthere", "Hi\n\nthere", "a\n\nb"),
    ("<think>a</reasoning>b", "b", "a"),
    ("okay\n</think>\nHi", "Hi", "okay"),
    ("<|channel|>analysis<|message|>hm", "", "hm"),
    ("<|channel|>commentary<|message|>call<|call|>", "", "call"),
    ("Hi", "Hi", None),
    ("Write `<think>` first, `</think>` last.", "Write `<think>` first, `</think>` last.", None),
    ("Use\n```\n<think>x</think>\n```\nso.", "Use\n```\n<think>x</think>\n```\nso.", None),
    ("The tag </think> ends it.", "The tag </think> ends it.", None),
    ("<think>a</think>```xml\n<think>code</think>\n```", "```xml\n<think>code</think>\n```", "a"),
    ("I think. <think>", "I think. <think>", None),
]


@pytest.mark.parametrize(("text", "answer", "reasoning"), TEXTS)
def test_where_reasoning_ends(text, answer, reasoning):
    assert apart(text) == (answer, reasoning)
    if reasoning is not None and answer and "\n<think>b</think>\n" not in text:
        assert text[answer_begins(text) :].strip().removesuffix("<|return|>") == answer


def test_what_the_prompt_has_opened_is_reasoning_to_its_end():
    assert apart("hm", opened=True) == ("", "hm")
    assert apart("hm</think>Hi", opened=True) == ("Hi", "hm")


def test_a_model_that_reasons_gets_room_for_it_once_that_shows(blendkit, serve, tmp_path):
    def reply(body):
        if body["max_tokens"] < 1000:
            return {"content": None, "reasoning_content": SECRET_THOUGHT, "finish_reason": "length"}
        return {"content": "Fish.", "reasoning_content": SECRET_THOUGHT}

    server = serve(reply=reply)
    manifest = tmp_path / "manifest.json"
    done, candidates = asked(blendkit, server, "--max-new-tokens", 50, "--concurrency", 1, "--manifest", manifest, "--window", 1, count=6)
    assert [candidate["text"] for candidate in candidates] == ["Fish."] * 6
    assert {body["max_tokens"] for body in server.bodies} == {50, 4146}
    assert server.bodies[-1]["max_tokens"] == 4146
    assert "openai:x reasons before it answers: it was given 4,096 tokens more for that" in done.stderr
    assert json.loads(manifest.read_text())["models"]["m"]["reasoning_room"] == 4096


@pytest.mark.parametrize(("effort", "most"), [("none", 50), ("low", 1074), ("medium", 4146), ("high", 16434)])
def test_an_effort_is_passed_on_with_its_room(blendkit, serve, effort, most):
    server = serve()
    asked(blendkit, server, "--max-new-tokens", 50, "--reasoning-effort", effort)
    assert (server.bodies[0]["reasoning_effort"], server.bodies[0]["max_tokens"]) == (effort, most)


def test_an_answer_that_never_comes_is_empty_and_told(blendkit, serve, tmp_path):
    manifest = tmp_path / "manifest.json"
    server = serve(reply=lambda body: {"content": None, "reasoning_content": "and so on", "finish_reason": "length"})
    done, (candidate,) = asked(blendkit, server, "--manifest", manifest)
    assert done.returncode == 0 and candidate["text"] == "" and candidate["reasoning"] == "and so on"
    assert "1 answer of m is empty (finish_reason length: 1); a reasoning model may need more --max-new-tokens" in done.stderr
    assert json.loads(manifest.read_text())["empty"] == {"m": {"length": 1}}


EMPTY = {
    "content_filter": {"content": None, "finish_reason": "content_filter"},
    "tool_calls": {"content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}], "finish_reason": "tool_calls"},
    "refusal": {"content": None, "refusal": "I cannot help with that.", "finish_reason": "stop"},
}


def test_empty_answers_are_kept_and_counted_by_their_reason(blendkit, serve, tmp_path):
    kinds = [*EMPTY, "refusal"]
    server = serve(reply=lambda body: dict(EMPTY[kinds[int(body["messages"][-1]["content"].split()[-1])]]))
    done, candidates = asked(blendkit, server, "--manifest", tmp_path / "manifest.json", count=4)
    assert [(candidate["text"], candidate["finish_reason"]) for candidate in candidates] == [("", kind) for kind in kinds]
    assert "4 answers of m are empty (finish_reason refusal: 2, content_filter: 1, tool_calls: 1)" in done.stderr
    assert json.loads((tmp_path / "manifest.json").read_text())["empty"] == {"m": {"refusal": 2, "content_filter": 1, "tool_calls": 1}}


BROKEN = [
    (b'{"choices":[{"message":{"content":"fish \\ud83d!"},"finish_reason":"stop"}]}', "fish \ufffd!"),
    (b'{"choices":[{"message":{"content":"\\udc00\\ud83d\\ude00"},"finish_reason":"stop"}]}', "\ufffd\U0001f600"),
    (b'{"choices":[{"message":{"content":"a\\u0000b"},"finish_reason":"stop"}]}', "a\ufffdb"),
    (b'{"choices":[{"message":{"content":"caf\xe9"},"finish_reason":"stop"}]}', "caf\ufffd"),
    (b'{"choices":[{"message":{"content":"<think>\\ud83d</think>a"},"finish_reason":"stop"}]}', "a"),
]


@pytest.mark.parametrize(("body", "text"), BROKEN, ids=range(len(BROKEN)))
def test_text_that_is_none_is_repaired_and_counted(blendkit, serve, body, text):
    done, (candidate,) = asked(blendkit, serve(lambda prompt, attempt: body))
    assert done.returncode == 0 and candidate["text"] == text
    assert "1 answer of openai:x held half characters, NULs or broken UTF-8; U+FFFD stands there" in done.stderr


@pytest.mark.parametrize("value", ["-Infinity", "-1e999", "-9999.0", "NaN"])
def test_a_log_probability_of_nothing_costs_no_answer(blendkit, serve, value):
    likely = '[{"token":"x","logprob":VALUE}]'.replace("VALUE", value)
    body = '{"choices":[{"message":{"content":"ab"},"logprobs":{"content":[{"token":"a","logprob":-1.0,"top_logprobs":' + likely + "}]}}]}"
    done, (candidate,) = asked(blendkit, serve(lambda prompt, attempt: body.encode()), "--logprobs")
    assert done.returncode == 0 and candidate["text"] == "ab" and candidate["scores"] == {"logprobs": -1.0}


FAILURES = {
    "at the top": {"error": {"message": "the cat ate it", "code": 502}},
    "words alone": {"error": "the cat ate it"},
    "beside choices": {"choices": [], "error": {"message": "the cat ate it", "type": "invalid_request_error"}},
    "in the choice": {"choices": [{"message": {"content": "half an ans"}, "error": {"message": "the cat ate it", "code": 502}}]},
    "by its reason": {"choices": [{"message": {"content": "half an ans"}, "finish_reason": "error"}]},
    "no message": {"choices": [{"error": {"message": "the cat ate it", "code": "server_error"}, "finish_reason": "error"}]},
}


@pytest.mark.parametrize("how", FAILURES)
def test_an_error_within_a_200_is_one_in_the_servers_words(blendkit, serve, how, tmp_path):
    server = serve(lambda prompt, attempt: FAILURES[how] if prompt == "question 1" else None)
    done, candidates = asked(blendkit, server, "--on-error", "skip", "--rejects", tmp_path / "rejects", count=3)
    assert done.returncode == 70, done.stderr
    assert [candidate["text"] for candidate in candidates] == ["Reply to question 0", "Reply to question 2"]
    (reject,) = parsed((tmp_path / "rejects").read_text())
    assert ("the cat ate it" in reject["error"]) or (how == "by its reason" and "finish_reason `error`" in reject["error"])


@pytest.mark.parametrize(
    ("how", "again"), [("at the top", True), ("in the choice", True), ("by its reason", True), ("no message", True), ("beside choices", False)]
)
def test_an_error_that_may_pass_is_tried_again(blendkit, serve, how, again):
    server = serve(lambda prompt, attempt: FAILURES[how] if attempt == 1 else None)
    done, candidates = asked(blendkit, server, retries=1)
    assert (done.returncode, server.asked["question 0"]) == ((0, 2) if again else (65, 1)), done.stderr
    assert [candidate["text"] for candidate in candidates] == ["Reply to question 0"] * again


def test_log_probabilities_are_those_of_the_answer_and_not_of_its_reasoning():
    tokens = [("<think>", -3.0), ("hm", -3.0), ("</think>", -3.0), ("\n\n", -1.0), ("A", -0.5)]
    content = [{"token": token, "logprob": value, "top_logprobs": [{"token": token.lower(), "logprob": value}]} for token, value in tokens]
    body = {"choices": [{"message": {"content": "".join(token for token, _ in tokens)}, "logprobs": {"content": content}}]}
    completion = read_reply(json.dumps(body).encode(), "chat", logprobs=True).completion
    assert (completion.text, completion.logprob, completion.alternatives) == ("A", -0.5, {"a": -0.5})


def test_the_whole_pipe_by_a_reasoning_server_without_a_flag(blendkit, serve):
    """A server like OpenAI's o-series: refuses `max_tokens` and `temperature`, answers in parts, and reasons."""

    refusals = {"max_tokens": "is not supported with this model. Use 'max_completion_tokens' instead.", "temperature": "does not support this value."}

    def refuse(body):
        for name, said in refusals.items():
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}' {said}", "type": "invalid_request_error", "param": name}}
        return None

    def reply(body):
        prompt = body["messages"][-1]["content"]
        if body.get("max_completion_tokens", 0) < 1000:
            return {"content": None, "reasoning": SECRET_THOUGHT, "finish_reason": "length"}
        text = '{"verdict": "A"}' if "verdict" in prompt else f"An answer of {len(prompt)} letters."
        return {"content": [{"type": "thinking", "thinking": SECRET_THOUGHT}, {"type": "text", "text": text}], "reasoning": SECRET_THOUGHT}

    server = serve(reply=reply, refuse=refuse)
    at = ["--base-url", server.url]
    stream = lines([{"id": f"r{number}", "instruction": f"question {number}", "output": "An answer."} for number in range(3)])
    stages = [["generate", "-m", "a=openai:x", "-m", "b=openai:y", *at], ["pair"], ["rank", "--top", 2], ["fuse", "-m", "openai:x", *at]]
    for stage in [*stages, ["judge", "-m", "openai:x", *at]]:
        done = blendkit(*stage, stdin=stream)
        assert done.returncode == 0, (stage, done.stderr)
        stream = done.stdout
    records = parsed(stream)
    assert all(
        candidate["reasoning"].startswith(SECRET_THOUGHT) and "thought" not in candidate["text"] for record in records for candidate in record["candidates"]
    )
    assert {verdict["verdict"] for record in records for verdict in record["verdicts"]["openai:x"]} == {"A", "B"}
    assert blendkit("evaluate", stdin=stream).returncode == 0
    assert len(server.bodies) > 10
    assert not any(re.search("thought of fish", json.dumps(body)) for body in server.bodies)


@pytest.mark.parametrize("text", ["<think></reasoning>", "<think></think>", "\n<think></reasoning>", "<think>", "\n```\n<think>", "<|channel|>a<|message|>"])
def test_a_text_of_tags_alone_is_read_once(text):
    """Were it gone through for each tag, this would take hours."""
    apart("<think>a</think>" + text * 200_000)
