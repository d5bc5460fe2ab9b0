"""Keys and headers: which goes where, what no request can carry, and that none is shown."""

from __future__ import annotations

import json
import sqlite3

import pytest
from conftest import lines, parsed
from hostile import HostileServer

from blendkit.credentials import arguments_without_secrets
from blendkit.errors import UsageError
from blendkit.generators.extra_body import check_extra_body, extra_body_of, with_extra
from blendkit.generators.factory import chosen, for_run
from blendkit.generators.headers import ExtraHeader
from blendkit.generators.options import EndpointOptions

RUN, MINE = "sk-of-the-run-qqzzxxvvjj", "sk-of-mine-wwkkyyhhgg"
PROMPT = lines([{"id": "1", "instruction": "a"}])


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {RUN}\n")
    monkeypatch.setenv("MY_KEY", f"{MINE}\r\n")


def sent(server: HostileServer) -> list[str]:
    """The Authorization of each request, or nothing."""
    heads = [dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line) for head in server.headers]
    return [head.get("authorization", "") for head in heads]


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["-m", "openai:x", "--base-url", "URL"], [RUN]),
        (["-m", "openai:x", "--base-url", "URL", "--key-env", "MY_KEY"], [MINE]),
        (["-m", "openai:x@URL"], [""]),
        (["-m", "a=openai:x@URL", "--key-env", "a=MY_KEY"], [MINE]),
        # The run's key stays at the run's server.
        (["-m", "a=openai:x@URL", "--key-env", "MY_KEY"], [""]),
        (["-m", "a=openai:x@URL", "-m", "b=openai:x", "--base-url", "URL", "--key-env", "b=MY_KEY"], ["", MINE]),
        (["-m", "openai:x@URL", "--extra-header", "Authorization: env:MY_KEY", "--extra-header", "X-Plain: yes"], [""]),
        (["-m", "openai:x", "--base-url", "URL", "--extra-header", "authorization: env:MY_KEY"], [MINE]),
    ],
)
def test_which_key_goes_where(called, serve, flags, keys):
    server = serve()
    code, _, said = called("generate", "--concurrency", 1, *[flag.replace("URL", server.url) for flag in flags], stdin=PROMPT)
    assert code == 0, said
    assert [key.removeprefix("bearer ") for key in sorted(sent(server))] == sorted(keys)
    assert ("X-Plain: yes" in server.headers[0]) == ("X-Plain: yes" in flags)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MY_KEY", None, "the variable MY_KEY, which holds the key of http://127.0.0.1:9/v1, is not set, or is empty"),
        ("MY_KEY", "  \n", "is not set, or is empty"),
        ("MY_KEY", "sk-secret-one\nsk-secret-two", "MY_KEY holds control characters, line breaks"),
        ("MY_KEY", "sk-secret-“quoted”", "MY_KEY holds control characters, line breaks or characters beyond ASCII"),
    ],
)
@pytest.mark.parametrize("by", ["key", "header"])
def test_a_variable_that_no_request_can_carry(called, monkeypatch, variable, value, said, by):
    monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable)
    flags = ["--key-env", variable] if by == "key" else ["--extra-header", f"api-key: env:{variable}"]
    code, _, told = called("generate", "-m", "openai:x", "--base-url", "http://127.0.0.1:9/v1", *flags, stdin=PROMPT)
    assert code == 2 and said.replace("the key of http://127.0.0.1:9/v1", "the key of http://127.0.0.1:9/v1" if by == "key" else "the header api-key") in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--extra-header", "no colon secret-1", "--extra-header: expected NAME:VALUE"),
        ("--extra-header", "bad name: secret-1", "--extra-header: expected NAME:VALUE"),
        ("--extra-header", "X-A: secret-1\r\nX-B: 2", "--extra-header X-A: the value has line breaks"),
        ("--extra-header", "X-A: sécret-1", "--extra-header X-A: the value has line breaks, control characters or characters beyond ASCII"),
        ("--extra-header", "Content-Length: 5", "--extra-header Content-Length: this header is blendkit's own"),
        ("--key-env", "b=MY_KEY", "--key-env b=…: there is no model of this name; did you mean"),
        ("--extra-body", "{", "--extra-body: not JSON"),
        ("--extra-body", "[1]", "--extra-body: expected a JSON object"),
        ("--extra-body", '{"a": NaN}', "--extra-body: not JSON"),
        ("--extra-body", '{"stream": true}', "--extra-body: stream: answers are read whole"),
        ("--extra-body", '{"messages": [1]}', "--extra-body: messages: the prompt is blendkit's own"),
        ("--extra-body", '{"max_tokens": "x"}', "--extra-body: max_tokens: expected a number of tokens"),
        ("--extra-body", '{"max_tokens": null}', "--extra-body: max_tokens: expected a number of tokens"),
        ("--extra-body", '{"n": 3}', "--extra-body: n: an answer a request is read"),
        ("--extra-body", '{"a": ' + "[" * 300 + "]" * 300 + "}", "--extra-body: it cannot be written as JSON"),
        ("--extra-body", '{"a": 99999999999999999999999}', "--extra-body: it cannot be written as JSON"),
    ],
)
def test_flags_that_no_request_can_carry(called, flag, value, said):
    code, _, told = called("generate", "-m", "bb=openai:x", "--base-url", "http://127.0.0.1:9/v1", flag, value, stdin=PROMPT)
    assert code == 2 and said in told, told
    assert "secret-1" not in told


def test_what_is_added_to_a_body_stands_above_ours_and_null_leaves_ours_out():
    body = {"model": "x", "temperature": 0.7, "max_tokens": 5, "seed": 1}
    assert with_extra(body, {"temperature": 1, "seed": None, "top_k": 3}) == {"model": "x", "temperature": 1, "max_tokens": 5, "top_k": 3}
    assert with_extra(body, {"max_completion_tokens": 9}) == {"model": "x", "temperature": 0.7, "max_completion_tokens": 9, "seed": 1}
    assert extra_body_of('{"a": {"b": 1}}') == {"a": {"b": 1}}
    check_extra_body({"n": 1, "stream": False})


def test_body_and_plain_headers_decide_the_answer_and_secret_headers_do_not(called, serve, tmp_path):
    server = serve()
    flags = ["-m", "openai:x", "--base-url", server.url, "--cache", tmp_path / "cache.sqlite"]
    for more, asked in (
        (["--extra-body", '{"top_k": 1}'], 1), (["--extra-body", '{"top_k": 1}'], 1), (["--extra-body", '{"top_k": 2}'], 2), ([], 3),
        (["--extra-header", "OpenAI-Organization: one"], 4), (["--extra-header", "OpenAI-Organization: two"], 5),
        (["--extra-header", "x-api-key: env:MY_KEY"], 5), (["--extra-header", "x-api-key: another-secret-value"], 5),
    ):  # fmt: skip
        code, _, said = called("generate", *flags, *more, stdin=PROMPT)
        assert (code, len(server.bodies)) == (0, asked), (more, said)
    kept = str(sqlite3.connect(tmp_path / "cache.sqlite").execute("SELECT * FROM answers").fetchall())
    assert MINE not in kept and "another-secret-value" not in kept


def test_secret_headers_are_in_nothing_that_is_left_behind(called, serve, tmp_path):
    server = serve(lambda prompt, attempt: "echo" if prompt == "a" else None, reply=lambda body: f"{MINE} plain-secret-of-mine query-of-mine-12345")
    flags = ["-m", "openai:x", "--base-url", server.url, "--extra-header", "x-api-key: env:MY_KEY", "--extra-header=Cookie: plain-secret-of-mine"]
    flags += ["--extra-body", '{"api_key": "query-of-mine-12345"}', "--manifest", tmp_path / "m.json", "-o", tmp_path / "out.jsonl", "--debug"]
    flags += ["--on-error", "skip", "--rejects", tmp_path / "bad.jsonl"]
    code, _, said = called("generate", *flags, stdin=lines([{"instruction": "a"}, {"instruction": "b"}]))
    assert code == 70 and "***" in said, said
    assert f"x-api-key: {MINE}" in server.headers[0] and "Cookie: plain-secret-of-mine" in server.headers[0]
    left = {path.name: path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir()} | {"stderr": said}
    assert not {name: secret for name, text in left.items() for secret in (MINE, "plain-secret-of-mine", "query-of-mine-12345") if secret in text}
    assert parsed(left["out.jsonl"])[0]["candidates"][0]["text"] == "*** *** ***"
    assert "--extra-header=Cookie:***" in json.loads(left["m.json"])["arguments"]


def test_one_server_does_not_quote_the_key_of_another(called, serve):
    server, other = serve(lambda prompt, attempt: (400, {"error": {"message": f"who is {MINE}?"}}, "")), serve()
    flags = ["-m", f"a=openai:x@{server.url}", "-m", f"b=openai:y@{other.url}", "--key-env", "b=MY_KEY"]
    code, out, said = called("generate", *flags, stdin=PROMPT)
    assert code == 65 and "who is ***?" in said and MINE not in said + out


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["-m", "openai:x", "--base-url", "URL"], 401, "refuses the key (HTTP 401): it is old; check OPENAI_API_KEY"),
        (["-m", "openai:x", "--base-url", "URL", "--key-env", "MY_KEY"], 401, "refuses the key (HTTP 401): it is old; check MY_KEY"),
        (["-m", "openai:x", "--base-url", "URL", "--key-env", "MY_KEY"], 403, "refuses us (HTTP 403): it is old; check MY_KEY"),
        (
            ["-m", "openai:x@URL"],
            401,
            "refuses to answer (HTTP 401): it is old; no key was sent, as a model with an address of its own gets only what is named",
        ),
    ],
)
def test_a_refused_key_is_named_and_the_server_quoted(called, serve, flags, status, said):
    server = serve(lambda prompt, attempt: (status, {"error": {"message": "it is old"}}, ""))
    code, _, told = called("generate", *[flag.replace("URL", server.url) for flag in flags], stdin=PROMPT)
    assert code == 69 and f"{server.url} {said}" in told


def test_no_key_at_all_is_told(called, serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(lambda prompt, attempt: (401, b"", ""))
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, stdin=PROMPT)
    assert code == 69 and "refuses to answer (HTTP 401); no key was sent: OPENAI_API_KEY is not set, and no --key-env names another variable" in told


def test_no_secret_of_the_run_goes_to_a_models_own_server():
    run = EndpointOptions(
        base_url="http://h/v1", key_env="MY_KEY", extra_header=["api-key: env:MY_KEY", "Cookie: c", "X-Team: t"], extra_body={"api_key": "s", "top_k": 1}
    )
    own, same = chosen("openai:x@http://g/v1", run).endpoint, chosen("openai:x", run).endpoint
    assert (own.key_env, own.headers, own.extra_body) == (None, (ExtraHeader("X-Team", "t"),), {"top_k": 1})
    assert (same.key_env, len(same.headers), same.extra_body) == ("MY_KEY", 3, {"api_key": "s", "top_k": 1})


def test_a_key_for_a_model_that_is_not_there():
    with pytest.raises(UsageError, match="there is no model of this name; did you mean gpt"):
        for_run(EndpointOptions(key_env=["gpd=MY_KEY"]), ["gpt"])


def test_a_command_line_is_kept_without_secrets():
    given = [
        "generate",
        "--extra-header",
        "Authorization: Bearer abc",
        "--extra-header=X-Key:v",
        "--extra-header",
        "X-Team: t",
        "-m",
        "openai:x@http://u:pw@h/v1",
    ]
    kept = ["generate", "--extra-header", "Authorization:***", "--extra-header=X-Key:***", "--extra-header", "X-Team: t", "-m", "openai:x@http://***@h/v1"]
    assert arguments_without_secrets(given) == kept
    assert arguments_without_secrets(["--extra-header", "api-key:env:NAME"]) == ["--extra-header", "api-key:env:NAME"]
