"""Where requests go: addresses as people paste them, redirects, proxies, certificates."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager

import pytest
from conftest import lines
from hostile import HostileServer

from blendkit.credentials import Address
from blendkit.errors import UsageError
from blendkit.generators.transport import followed, proxy_for

KEY = "sk-of-the-run-qqzzxxvvjj"
PROMPT = lines([{"id": "1", "instruction": "a"}])
ONE_BY_ONE = ("--concurrency", 1, "--retries", 0)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@contextmanager
def answering(data: bytes):
    """The address of a server that answers one connection with these bytes, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(data)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


def paths(server: HostileServer) -> list[str]:
    """What each request asked for."""
    return [head.split()[1] for head in server.headers]


# Addresses


@pytest.mark.parametrize(
    ("pasted", "url"),
    [
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("  http://h:1/v1// \n", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/chat/completions/", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/completions", "http://h:1/v1/chat/completions"),
        ("http://h:1", "http://h:1/chat/completions"),
        ("https://me.openai.azure.com/openai/deployments/d?api-version=2024-10-21", "https://me.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"),
        (
            "https://me.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://me.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ],
)  # fmt: skip
def test_an_address_is_read_as_people_paste_it(pasted, url):
    assert Address.parsed(pasted).of("chat/completions") == url


@pytest.mark.parametrize(
    ("pasted", "said"),
    [
        ("localhost:8000/v1", "--base-url localhost:8000/v1: expected http://HOST:PORT/v1 or the like; did you mean http://localhost:8000/v1?"),
        ("127.0.0.1:8000", "did you mean http://127.0.0.1:8000?"),
        ("me:secret-word@h/v1", "--base-url ***@h/v1: expected http://HOST:PORT/v1 or the like; did you mean http://***@h/v1?"),
        ("   ", "--base-url is empty: expected"),
        ("ftp://h/v1", "--base-url ftp://h/v1: expected http://HOST:PORT/v1"),
    ],
)
def test_an_address_without_a_scheme_gets_one_clear_line(called, pasted, said):
    code, _, told = called("generate", "-m", "openai:x", "--base-url", pasted, stdin=PROMPT)
    assert code == 2 and said in told and len(told.splitlines()) == 1
    with pytest.raises(UsageError):
        Address.parsed(pasted)


def test_the_query_goes_behind_the_path(called, serve):
    server = serve()
    flags = ["--base-url", server.url.replace("/v1", "/openai/deployments/d?api-version=2024-10-21"), "--extra-header", "api-key: env:OPENAI_API_KEY"]
    code, _, told = called("generate", "-m", "openai:x", *flags, stdin=PROMPT)
    assert code == 0, told
    assert paths(server) == ["/openai/deployments/d/chat/completions?api-version=2024-10-21"] and f"api-key: {KEY}" in server.headers[0]


@pytest.mark.parametrize(
    ("path", "status", "body", "code", "said"),
    [
        ("", 404, b"404 page not found", 69, "URL/chat/completions is not there (HTTP 404): 404 page not found; did you mean URL/v1?"),
        ("/api", 405, {"detail": "Method Not Allowed"}, 69, '(HTTP 405): {"detail": "Method Not Allowed"}; did you mean URL/api/v1?'),
        ("/v2", 404, {"error": {"message": "no such path"}}, 69, "(HTTP 404): no such path; check the address, and --api (now chat)"),
        ("", 404, b"<html>a model of an error page</html>", 69, "did you mean URL/v1?"),
        ("/v1", 404, {"error": {"message": "The model `x` does not exist"}}, 66, "URL/v1 has no model 'x' (HTTP 404): The model `x` does not exist"),
        ("", 404, {"error": {"message": "nope", "code": "model_not_found"}}, 66, "has no model 'x' (HTTP 404): nope"),
        ("/d", 404, {"error": {"code": "DeploymentNotFound", "message": "It is not there."}}, 66, "has no model 'x' (HTTP 404): It is not there."),
    ],
)
def test_a_404_says_whether_the_path_or_the_model_is_wrong(called, serve, path, status, body, code, said):
    server = serve(lambda prompt, attempt: (status, body, ""))
    root = server.url.removesuffix("/v1")
    found, _, told = called("generate", "-m", "openai:x", "--base-url", root + path, stdin=PROMPT)
    assert (found, said.replace("URL", root) in told) == (code, True), told


@pytest.mark.parametrize("status", [403, 404])
def test_a_refused_parameter_is_no_refused_key(called, serve, status):
    server = serve(lambda prompt, attempt: (status, {"error": {"message": "You are not allowed to request logprobs"}}, ""))
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, "--extra-body", '{"logprobs": true}', stdin=PROMPT)
    assert code == 65 and "You are not allowed to request logprobs" in told


# Redirects


def moving(status: int, places: list[str]) -> HostileServer:
    """A server that redirects its first requests to these places, one after the other."""
    left = list(places)
    return HostileServer(lambda prompt, attempt: (status, {}, f"Location: {left.pop(0)}\r\n") if left else None)


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_within_the_server_is_followed_with_its_method(called, status):
    server = moving(status, ["/v1/elsewhere", "/api/v1/chat/completions"])
    prompts = lines([{"id": "1", "instruction": "a"}, {"id": "2", "instruction": "b"}])
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, *ONE_BY_ONE, stdin=prompts)
    server.stop()
    assert code == 0, told
    # The method, the body and the key are kept; what has moved for good is found at once.
    again = "/v1/chat/completions" if status == 307 else "/api/v1/chat/completions"
    assert paths(server) == ["/v1/chat/completions", "/v1/elsewhere", "/api/v1/chat/completions", again]
    assert all(head.startswith("POST") and KEY in head for head in server.headers) and server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize(
    ("status", "place", "said"),
    [
        (302, "/v1/x", "redirects to /v1/x (HTTP 302), which would make a GET of the request, so nothing is sent there"),
        (303, "/v1/x", "redirects to /v1/x (HTTP 303), which would make a GET"),
        (308, "OTHER/chat/completions", "(HTTP 308), where nothing is sent; if that is right, name it with --base-url"),
        (301, "//u:secret-of-it@example.org/v1", "redirects to //***@example.org/v1 (HTTP 301), where nothing is sent"),
        (307, "", "redirects to  (HTTP 307), where nothing is sent"),
    ],
)
def test_a_redirect_that_is_not_followed(called, serve, status, place, said):
    other = serve()
    server = serve(lambda prompt, attempt: (status, {}, f"Location: {place.replace('OTHER', other.url)}\r\n"))
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, *ONE_BY_ONE, stdin=PROMPT)
    assert code == 69 and said.replace("  ", " ") in told.replace("  ", " "), told
    assert len(server.headers) == 1 and not other.headers


def test_redirects_end(called, serve):
    server = serve(lambda prompt, attempt: (307, {}, "Location: /v1/again\r\n"))
    code, _, told = called("generate", "-m", "openai:x", "--base-url", server.url, *ONE_BY_ONE, stdin=PROMPT)
    assert code == 69 and "redirects more than 5 times, at last to" in told and len(server.headers) == 6


@pytest.mark.parametrize(
    ("url", "place", "there"),
    [
        ("http://h/v1/a", "b", "http://h/v1/b"),
        ("http://h/v1/a?k=1", "/c", "http://h/c"),
        ("http://h/a", "https://h/a", "https://h/a"),
        ("http://h/a", "HTTP://H:80/b", "http://h/b"),
        ("http://h/a", "http://u:p@h/b", "http://h/b"),
        ("https://h/a", "http://h/a", None),
        ("http://h:80/a", "https://h:8443/a", None),
        ("http://h:8000/a", "https://h/a", None),
        ("http://h/a", "//g/a", None),
        ("http://h/a", "http://h.g/a", None),
        ("http://h/a", "http://h@g/a", None),
        ("http://h/a", "ftp://h/a", None),
        ("http://h/a", "http://h:99999/a", None),
        ("http://h/a", None, None),
    ],
)
def test_what_is_the_same_server(url, place, there):
    assert followed(url, place) == there


# Proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_asked(called, serve, monkeypatch, name):
    proxy = serve()
    monkeypatch.setenv(name, proxy.url.removesuffix("/v1").replace("//", "//me:proxy-qqjjzzxx@"))
    code, out, told = called("generate", "-m", "openai:x", "--base-url", "http://nowhere.example:8000/v1", *ONE_BY_ONE, stdin=PROMPT)
    assert code == 0, told
    assert proxy.headers[0].startswith("POST http://nowhere.example:8000/v1/chat/completions HTTP/1.1")
    assert "Proxy-Authorization: Basic" in proxy.headers[0] and "Reply to a" in out


def test_no_proxy_has_the_last_word(called, serve, monkeypatch):
    proxy, server = serve(), serve()
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    flags = ["generate", "-m", "openai:x", "--base-url", server.url, *ONE_BY_ONE]
    assert called(*flags, stdin=PROMPT)[0] == 0
    assert (len(proxy.headers), len(server.headers)) == (1, 0)
    monkeypatch.setenv("NO_PROXY", "example.org, 127.0.0.1")
    assert called(*flags, stdin=PROMPT)[0] == 0
    assert (len(proxy.headers), len(server.headers)) == (1, 1)


def test_proxies_by_scheme_and_host(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://me:proxy-qqjjzzxx@p:3128/")
    monkeypatch.setenv("no_proxy", "local.test,.inner.test,b:81")
    assert proxy_for("http://a/v1") is None and proxy_for("https://x.inner.test/v1") is None and proxy_for("https://local.test:8443/") is None
    assert proxy_for("https://b:81/v1") is None and proxy_for("https://b:82/v1") is not None
    found = proxy_for("https://a/v1")
    assert (found.name, found.url) == ("http://p:3128", "http://p:3128") and found.authorization.startswith("Basic ")
    monkeypatch.setenv("https_proxy", "p:3128")
    assert proxy_for("https://a/v1").url == "http://p:3128"
    monkeypatch.setenv("https_proxy", "")
    assert proxy_for("https://a/v1") is None


@pytest.mark.parametrize(
    ("proxy", "code", "said"),
    [
        ("socks5://me:secret-of-it@p:1080", 2, "http_proxy socks5://***@p:1080: expected http://HOST:PORT; proxies of other kinds cannot be used"),
        ("http://me:secret-of-it@127.0.0.1:9", 69, "cannot be reached: the proxy http://127.0.0.1:9 does not answer"),
    ],
)
def test_a_proxy_that_is_none(called, monkeypatch, proxy, code, said):
    monkeypatch.setenv("http_proxy", proxy)
    found, _, told = called("generate", "-m", "openai:x", "--base-url", "http://h.example/v1", *ONE_BY_ONE, stdin=PROMPT)
    assert (found, said in told, "secret" in told) == (code, True, False), told


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_quoted(called, monkeypatch, scheme):
    with answering(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as address:
        monkeypatch.setenv(f"{scheme}_proxy", address)
        code, _, told = called("generate", "-m", "openai:x", "--base-url", f"{scheme}://h.example/v1", *ONE_BY_ONE, stdin=PROMPT)
    assert code == 69 and f"the proxy {address} answers HTTP 407" in told and "USER:PASSWORD before @HOST" in told


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl at hand, which makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_a_certificate_that_nobody_vouches_for_is_trusted_where_it_is_named(called, serve, monkeypatch, certificate, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server = serve(tls=context)
    flags = ["generate", "-m", "openai:x", "--base-url", server.url, *ONE_BY_ONE]
    code, _, told = called(*flags, stdin=PROMPT)
    assert code == 69 and f"{server.url} cannot be trusted: " in told and "certificate verify failed" in told and "SSL_CERT_FILE=FILE" in told
    assert not server.headers
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    code, _, told = called(*flags, stdin=PROMPT)
    assert code == 0 and len(server.headers) == 1, told
    for text, said in ((None, "No such file"), ("no certificate", "no certificates in PEM form")):
        path = tmp_path / "bad.pem"
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        code, _, told = called(*flags, stdin=PROMPT)
        assert code == 66 and f"SSL_CERT_FILE {path}: {said}" in told


def test_https_to_a_server_that_speaks_http_says_so(called):
    with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as address:
        code, _, told = called("generate", "-m", "openai:x", "--base-url", address.replace("http:", "https:"), *ONE_BY_ONE, stdin=PROMPT)
    assert code == 69 and "does not speak TLS: " in told and "begins with http://" in told
