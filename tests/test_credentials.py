"""A credential is sent as it should be, names nothing, and is masked in every word that leaves."""

from __future__ import annotations

import base64
import html
import json
import os
import sqlite3
from urllib.parse import quote, quote_plus

import pytest
from conftest import lines, parsed
from hostile import HostileServer
from hypothesis import given, settings
from hypothesis import strategies as st

from blendkit.credentials import LEAST, MASK, Address, Secrets, in_urls
from blendkit.errors import UsageError

KEY = "sk-planted-0123456789"
HARD = 'sk-pl.a*n(t)[e]^d$|\\x ü"+/%41{0123}&amp;'


def encoded(secret: str) -> dict[str, str]:
    """Ways in which a server may say it."""
    data = secret.encode()
    return {
        "as it is": secret,
        "upper": secret.upper(),
        "cut behind": secret[: LEAST + 2],
        "cut before": secret[-LEAST - 2 :],
        "a middle piece": secret[2 : 4 + LEAST],
        "over lines": "\n".join(secret[place : place + 3] for place in range(0, len(secret), 3)),
        "zero width": "\u200b".join(secret),
        "quote": quote(secret),
        "quote all": quote(secret, safe=""),
        "quote plus": quote_plus(secret),
        "quote twice": quote(quote(secret, safe="")),
        "percent": "".join(f"%{byte:02x}" for byte in data),
        "json": json.dumps(secret),
        "json text": json.dumps(secret, ensure_ascii=False),
        "json twice": json.dumps(json.dumps(secret)),
        "u": "".join(f"\\u{ord(sign):04x}" for sign in secret),
        "repr": repr(secret),
        "html": html.escape(secret),
        "html numbers": "".join(f"&#{ord(sign)};" for sign in secret),
        **{f"base64 behind {shift}": base64.b64encode(b"x" * shift + data + b"yz").decode() for shift in range(3)},
        "base64 for URLs": base64.urlsafe_b64encode(data).decode(),
        "basic": "Basic " + base64.b64encode(b"someone:" + data).decode(),
    }


@pytest.mark.parametrize("secret", [KEY, HARD, "pässwörd-🔑-ünïcode", "tab\tand space inside"])
def test_a_secret_is_found_in_every_form(secret):
    secrets = Secrets([secret])
    for form, text in encoded(secret).items():
        said = secrets.masked(f"no: {text} :on")
        assert MASK in said, form
        assert said.startswith("no: ") and said.endswith(" :on"), (form, said)
        left = said.replace(MASK, " ").removeprefix("no:").removesuffix(":on").split()
        # Base64 holds what stands beside the secret, too.
        assert "bas" in form or all(len(piece) < LEAST for piece in left), (form, said)


def test_a_message_without_a_secret_stays_as_it_is():
    secrets = Secrets([KEY, HARD, "a", "pass"])
    for text in ("a message that has an a, and a pass", "100%41 \\u0041 &amp; \x01 sk-plan", "<stdin>:17: candidates[2].text: expected a string, got null"):
        assert secrets.masked(text) == text


def test_a_short_key_masks_nothing_but_itself():
    said = Secrets(["key12"]).masked("key12 of monkey123: Authorization: Bearer key12; ?api_key=key12 and key=key123, key provided: 'key12'")
    assert said == "key12 of monkey123: Authorization: Bearer ***; ?api_key=*** and key=key123, key provided: '***'"
    assert Secrets(["a"]).masked("a banana: an API key that is a word") == "a banana: an API key that is a word"


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=LEAST, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_no_secret_breaks_the_masking_or_stays(secret, before, after):
    said = Secrets([secret]).masked(before + secret + after)
    if len("".join(sign for sign in secret if sign.isalnum())) >= LEAST:
        assert secret not in said


def test_an_address_is_sent_whole_and_named_without_credentials():
    address = Address.parsed("https://me:pa%40ss%2Fword@host:8000/v1/?api_key=topsecret&api-version=2024-02-01&tenant=blue")
    assert address.of("chat/completions") == "https://host:8000/v1/chat/completions?api_key=topsecret&api-version=2024-02-01&tenant=blue"
    assert address.authorization == "Basic " + base64.b64encode(b"me:pa@ss/word").decode()
    assert {"pa@ss/word", "topsecret"} <= set(address.secrets)
    assert address.name.startswith("https://host:8000/v1?api-version=2024-02-01&tenant=")
    assert not any(word in address.name for word in ("me:", "pa", "topsecret", "blue"))
    # Servers that are told apart by a parameter stay apart.
    assert address.name != Address.parsed("https://host:8000/v1?api_key=topsecret&api-version=2024-02-01&tenant=red").name
    assert Address.parsed("http://host/v1/").name == Address.parsed("http://host/v1/").url == "http://host/v1"


@pytest.mark.parametrize(
    "url", ["host:1", "ftp://me:secret-word@h", "http://", "http://me:secret/word@h/v1", "http://[::1", "http://me:secret-word@h:0/", "http://h h/"]
)
def test_what_is_no_address(url):
    with pytest.raises(UsageError, match=r"--base-url .*expected http://HOST:PORT/v1") as raised:
        Address.parsed(url)
    assert "secret" not in str(raised.value)


def test_credentials_in_any_url_are_masked():
    assert in_urls("see http://u:p@ss@h/x?a=1&access_token=abc&b=2 and") == "see http://***@h/x?a=1&access_token=***&b=2 and"
    assert in_urls("mail me@home://x") == "mail me@home://x"


def test_the_process_knows_its_secrets():
    environment = {"OPENAI_API_KEY": KEY + "\n", "HTTPS_PROXY": "http://me:proxy-password@p:1", "OPENAI_BASE_URL": "http://h?key=base-url-key"}
    secrets = Secrets.of_process(environment, ["--base-url=http://me:flag-password@h/v1", "http://me:broken/password@h"])
    for secret in (KEY, "proxy-password", "base-url-key", "flag-password", "password"):
        assert secrets.masked(f"says {secret} aloud") == "says *** aloud"


@pytest.fixture
def echoing():
    server = HostileServer(lambda prompt, attempt: "echo" if "bad" in prompt else "500" if "late" in prompt and attempt == 1 else None, reply=None)
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("environment", "edit", "sent", "secrets"),
    [
        ({"OPENAI_API_KEY": HARD.replace("ü", "u")}, lambda url: url, "Authorization: Bearer sk-pl.a*n", [HARD.replace("ü", "u")]),
        ({}, lambda url: url.replace("//", "//me:secret%40pass.w*rd@"), "Authorization: Basic", ["secret@pass.w*rd", "secret%40pass", "bWU6c2VjcmV0"]),
        ({}, lambda url: url + "?api_key=query-secret-1&api-version=7", "?api_key=query-secret-1&api-version=7", ["query-secret-1"]),
        ({}, lambda url: url + "/?token=query%2Fsecret%2F1", "token=query", ["query/secret", "query%2Fsecret"]),
        ({"OPENAI_API_KEY": "abc12"}, lambda url: url, "Bearer abc12", ["abc12"]),
    ],
    ids=["a key of strange signs", "user and password", "api_key", "token", "short key"],
)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_no_credential_is_in_anything_that_is_left_behind(blendkit, echoing, tmp_path, environment, edit, sent, secrets, by):
    url = edit(echoing.url)
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")} | environment
    flags = ["--base-url", url] if by == "flag" else []
    env |= {} if by == "flag" else {"OPENAI_BASE_URL": url}
    flags += ["-o", tmp_path / "out.jsonl", "--manifest", tmp_path / "m.json", "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl", "--debug"]
    records = [{"id": str(number), "instruction": word} for number, word in enumerate(["good", "bad", "late"])]
    done = blendkit("generate", "-m", "openai:x", *flags, stdin=lines(records), env=env)
    assert done.returncode == 70, done.stderr
    assert sent in echoing.headers[0]
    assert "***" in done.stderr and "bad request" in done.stderr
    left = {path.name: path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir()} | {"stderr": done.stderr, "stdout": done.stdout}
    for name, text in left.items():
        for secret in secrets:
            assert secret not in text, name
            assert json.dumps(secret)[1:-1] not in text, name
    (base_url,) = (model["base_url"] for model in json.loads((tmp_path / "m.json").read_text())["models"].values())
    keys = [key for (key,) in sqlite3.connect(tmp_path / "out.jsonl.cache.sqlite").execute("SELECT key FROM answers")]
    assert len(keys) == 2 and all(key.startswith(base_url + " ") for key in keys)


def test_emitted_requests_hold_no_credential(blendkit, tmp_path):
    env = {**os.environ, "OPENAI_API_KEY": ""}
    flags = ["--base-url", "http://me:secret-password@h/v1?key=query-secret", "--emit-batch", tmp_path / "batch.jsonl"]
    assert blendkit("generate", "-m", "openai:x", *flags, stdin=lines([{"instruction": "a"}]), env=env).returncode == 0
    assert not {"secret-password", "query-secret"} & set((tmp_path / "batch.jsonl").read_text().replace('"', " ").split())
    assert "secret" not in (tmp_path / "batch.jsonl").read_text()


def test_an_answer_that_quotes_the_key_is_kept_without_it(blendkit, tmp_path):
    server = HostileServer(reply=lambda body: f"Your key is {KEY}, I am lm-studio")
    try:
        for key, text in ((KEY, "Your key is ***, I am lm-studio"), ("lm-studio", f"Your key is {KEY}, I am lm-studio")):
            flags = ["--base-url", server.url, "-o", tmp_path / "out.jsonl"]
            done = blendkit("generate", "-m", "openai:x", *flags, stdin=lines([{"instruction": key}]), env={**os.environ, "OPENAI_API_KEY": key})
            assert done.returncode == 0, done.stderr
            assert parsed((tmp_path / "out.jsonl").read_text())[0]["candidates"][0]["text"] == text
            assert ("1 answer of openai:x quoted a key or password; *** stands in its place" in done.stderr) == (key == KEY)
        assert KEY not in str(sqlite3.connect(tmp_path / "out.jsonl.cache.sqlite").execute("SELECT value FROM answers").fetchone())
    finally:
        server.stop()


@pytest.mark.parametrize("key", ["sk-\x00nul-0123456", "sk-line\nbreak-0123456", "sk-\udcff-not-utf8-012"])
def test_a_key_that_no_header_can_carry(blendkit, key):
    env = {**os.environ, "OPENAI_API_KEY": key} if "\x00" not in key else {**os.environ, "OPENAI_API_KEY": "sk-\x01nul-0123456"}
    done = blendkit("generate", "-m", "openai:x", "--base-url", "http://127.0.0.1:9/v1", stdin=lines([{"instruction": "a"}]), env=env)
    assert done.returncode == 2, done.stderr
    assert "OPENAI_API_KEY holds control characters" in done.stderr and "0123456" not in done.stderr


def test_a_usage_error_does_not_quote_a_password(blendkit):
    for flags in (["--base-ur", "http://me:secret-word@h"], ["--base-ur=http://me:secret-word@h"], ["--base-url", "http://me:secret/word@h/v1"]):
        done = blendkit("generate", "-m", "openai:x", *flags, stdin="")
        assert done.returncode == 2
        assert "secret" not in done.stderr + done.stdout, done.stderr
