"""One OpenAI-compatible server: where it is, by which key it is asked, and what its answers and refusals mean."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import orjson

from blendkit.credentials import Address, held, hold, in_urls
from blendkit.errors import EndpointError, NoInputError, UsageError
from blendkit.generators.base import Completion
from blendkit.generators.headers import values_of, variable
from blendkit.generators.limits import retry_after
from blendkit.generators.options import EndpointOptions
from blendkit.generators.replies import REFUSAL_BYTES, BadReply, read_body, what_it_says
from blendkit.generators.transport import KEPT_METHOD, MOST_REDIRECTS, PERMANENT, certificates, followed, proxy_for

DEFAULT_URL = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
AGAIN = (408, 409, 425, 429)  # and every 5xx: another try may succeed
QUOTED = 300  # characters of what a server says
ROUTES = {"chat": "chat/completions", "completions": "completions"}


class TryAgain(Exception):
    """A request failed in a way that may pass; `wait` is what the server asked for, in seconds; `paid`: there was an answer all the same."""

    def __init__(self, reason: str, wait: float | None = None, paid: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.paid = wait, paid


class Refused(Exception):
    """The server does not take this request. The message is the server's own, without secrets; `data` is the whole body."""

    def __init__(self, status: int, message: str, data: bytes) -> None:
        super().__init__(message)
        self.status, self.data = status, data


class Server:
    """The key comes from the variable that `key_env` names, else from OPENAI_API_KEY where the server is the run's own.

    A key in the base URL is sent as it stands there. Neither is part of any name; nor are secrets in headers.

    Raises:
        UsageError: the `api` extra is not installed, a base URL that is none, or a key or header that is not set or cannot be sent.
        EndpointError: no key for the default server.
    """

    def __init__(self, model: str, options: EndpointOptions) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise UsageError("an openai: model needs aiohttp: pip install 'blendkit[api]'") from error
        if options.api not in ROUTES:
            raise UsageError(f"--api {options.api}: expected {' or '.join(ROUTES)}")
        self._aiohttp = aiohttp
        self.model, self.options = model, options
        flag = f"{options.asked}.base_url:" if options.own_server else "--base-url" if options.base_url else "OPENAI_BASE_URL"
        self._address = Address.parsed(options.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL, flag)
        self.where = self._address.name
        named = options.key_of("")
        self._variable = named or ("" if options.own_server else KEY)
        key = "" if not self._variable else variable(self._variable, f"the key of {self.where}", bool(named) and not options.offline)
        self._authorization = f"Bearer {key}" if key else self._address.authorization
        self._headers = {} if options.offline else values_of(options.headers)
        hold([key, *self._address.secrets, *(self._headers.get(header.name, "") for header in options.headers if header.secret)])
        if key and self._address.authorization:
            raise UsageError(f"two credentials: {flag.rstrip(':')} has some, and {self._variable} is set; the server reads one of them only")
        self._by_header = any(name.lower() == "authorization" for name in self._headers)
        if not (key or self._by_header or options.offline or options.own_server) and self.where == DEFAULT_URL:
            raise EndpointError(f"{KEY} is not set; set it, or name another server with --base-url")
        self._keyed = bool(self._authorization) or any(header.secret for header in options.headers)
        # What is added to a request decides the answer as much as what is in it.
        plain = sorted((header.name.lower(), header.value) for header in options.headers if not header.secret)
        self.identity = self.where + (f" +{hashlib.sha256(orjson.dumps(plain)).hexdigest()[:16]}" if plain else "")
        self._url = self._address.of(ROUTES[options.api])
        self._proxy = None if options.offline else proxy_for(self._url)
        self._certificates = True if options.offline else certificates()
        self._session: Any = None

    def open(self, many: int) -> None:
        """Makes ready for so many requests at a time; called in the loop that they run in."""
        if self._session is not None:
            return
        timeout = self._aiohttp.ClientTimeout(total=self.options.timeout)
        connector = self._aiohttp.TCPConnector(limit=many, ssl=self._certificates)
        headers = {"Accept-Encoding": "gzip", **self._headers}
        if self._authorization and not self._by_header:
            headers["Authorization"] = self._authorization
        # aiohttp would decompress without a limit.
        self._session = self._aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers, auto_decompress=False)

    async def close(self) -> None:
        """Closes the connections; `open` makes new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, body: dict[str, Any], key: str) -> bytes:
        """The body of the answer to one request; `key` is the same for equal ones.

        Raises:
            TryAgain: it may succeed later.
            Refused: this request will not, others may.
            BlendkitError: none will.
        """
        data = orjson.dumps(body)
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        url, always = self._url, True
        try:
            for _ in range(MOST_REDIRECTS + 1):
                proxy = {} if self._proxy is None else self._proxy.arguments()
                # aiohttp would follow to other hosts, too: the prompt, if not the key, would go to whom nobody named.
                async with self._session.post(url, data=data, headers=headers, allow_redirects=False, **proxy) as reply:
                    place = followed(url, reply.headers.get("Location")) if reply.status in KEPT_METHOD else None
                    if place is not None:
                        url, always = place, always and reply.status in PERMANENT
                        self._moved(url, always)
                        continue
                    if reply.status != 200:
                        raise self.refusal(reply.status, await read_body(reply, REFUSAL_BYTES, whole=False), reply.headers)
                    return await read_body(reply, self.options.max_body_bytes)
            raise EndpointError(f"{self.where} redirects more than {MOST_REDIRECTS} times, at last to {self.quoted(in_urls(url))}")
        except TimeoutError:
            raise TryAgain(f"gave no answer in {self.options.timeout:g} s") from None
        except BadReply as error:
            raise TryAgain(str(error), paid=True) from None
        except (self._aiohttp.ClientPayloadError, self._aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise TryAgain(f"cut the connection ({type(error).__name__})") from None
        except self._aiohttp.InvalidURL:
            raise UsageError(f"--base-url {self.where}: expected http://HOST:PORT/v1 or the like") from None
        except self._aiohttp.ClientHttpProxyError as error:
            raise self._by_proxy(error.status, error.message) from None
        except self._aiohttp.ClientResponseError:
            raise TryAgain("answers with headers that are too long or no HTTP", paid=True) from None
        except self._aiohttp.ClientProxyConnectionError as error:
            name = self._proxy.name if self._proxy else ""
            raise TryAgain(f"cannot be reached: the proxy {name} does not answer ({self.quoted(error.os_error.strerror or str(error.os_error))})") from None
        except self._aiohttp.ClientSSLError as error:
            raise self._untrusted(error) from None
        except self._aiohttp.ClientError as error:
            words = str(getattr(getattr(error, "os_error", None), "strerror", None) or "")
            raise TryAgain(f"cannot be reached ({type(error).__name__}{_said(self.quoted(words))})") from None

    def _moved(self, url: str, always: bool) -> None:
        """A redirect for good is followed once; to https, another proxy may lead."""
        if url.partition(":")[0] != self._url.partition(":")[0]:
            self._proxy = proxy_for(url)
            always = True
        if always:
            self._url = url

    def _untrusted(self, error: Any) -> Exception:
        """A connection that TLS does not let be. The words are the library's."""
        words = self.quoted(str(getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error))
        if isinstance(error, self._aiohttp.ClientConnectorCertificateError):
            return EndpointError(f"{self.where} cannot be trusted: {words}; SSL_CERT_FILE=FILE names certificates to trust")
        if "WRONG_VERSION_NUMBER" in words:
            return EndpointError(f"{self.where} does not speak TLS: {words}; the address of a server that speaks plain HTTP begins with http://")
        return TryAgain(f"cannot be reached by TLS: {words}")

    def _by_proxy(self, status: int, message: str) -> Exception:
        """A proxy's own refusal."""
        words = f"{self.where} cannot be reached: the proxy {self._proxy.name if self._proxy else ''} answers HTTP {status}{_said(self.quoted(message))}"
        if status == 407:
            return EndpointError(f"{words}; its user and password stand in its URL, as USER:PASSWORD before @HOST")
        return EndpointError(words) if status < 500 else TryAgain(words.removeprefix(f"{self.where} "))

    def refusal(self, status: int, data: bytes, headers: Any) -> Exception:
        """What a status that is no 200 means, with the server's own words."""
        where = self.where
        message = self.quoted(what_it_says(data))
        said = f"(HTTP {status}){_said(message)}"
        if 300 <= status < 400:
            place = headers.get("Location", "nowhere")
            place = self.quoted(in_urls(f"http:{place}")[5:] if place.startswith("//") else in_urls(place))
            why = "where nothing is sent" if status in KEPT_METHOD else "which would make a GET of the request, so nothing is sent there"
            return EndpointError(f"{where} redirects to {place} (HTTP {status}), {why}; if that is right, name it with --base-url")
        if status in (403, 404) and _about_a_parameter(data, message):
            return Refused(status, message, data)
        if status in (401, 403):
            return EndpointError(f"{where} refuses {'us' if status == 403 else 'the key' if self._keyed else 'to answer'} {said}; {self._whose_key()}")
        if status == 407 and self._proxy is not None:
            return self._by_proxy(status, message)
        if status == 404 and _about_a_model(data, message, self.model):
            return NoInputError(f"{where} has no model {self.model!r} {said}")
        if status in (404, 405):
            return EndpointError(f"{self._address.named(ROUTES[self.options.api])} is not there {said}; {self._where_else()}")
        if status == 402 or (status == 429 and "insufficient_quota" in data.decode(errors="replace")):
            return EndpointError(f"{where} says that the account has no more credit {said}")
        if status in AGAIN or (status >= 500 and status != 501):
            wait = retry_after(headers)
            if wait is not None and wait > self.options.max_wait:
                return EndpointError(
                    f"{where} answers HTTP {status}{_said(message)} and asks for {wait:.0f} s of patience; go on with --resume later, "
                    f"or wait for it with --max-wait (now {self.options.max_wait:g} s)"
                )
            return TryAgain(f"answers HTTP {status}{_said(message)}", wait)
        return Refused(status, message, data)

    def _whose_key(self) -> str:
        """Which key was sent."""
        options = self.options
        if self._authorization and not self._address.authorization:
            return f"check {self._variable}"
        if self._keyed:
            return "check the credentials in its URL" if self._address.authorization else "check the headers that were added"
        if options.own_server:
            return "no key was sent, as a model with an address of its own gets only what is named for it: --key-env MODEL=NAME, or key_env in its table"
        return f"no key was sent: {KEY} is not set, and no --key-env names another variable"

    def _where_else(self) -> str:
        """What a path that is not there may have been meant to be."""
        place, mark, query = self.where.partition("?")
        if re.search(r"/v\d", urlsplit(place).path):
            return f"check the address, and --api (now {self.options.api})"
        return f"did you mean {place}/v1{mark}{query}?"

    def masked(self, text: str) -> str:
        """The text without secrets, whichever model's they are."""
        return held().masked(text)

    def quoted(self, text: str) -> str:
        """The beginning of foreign words, masked before they are cut, so that no piece of a secret stays at their end."""
        return self.masked(text[: 20 * QUOTED])[:QUOTED]

    def without_secrets(self, completion: Completion) -> Completion:
        """The completion itself, or where it quotes a credential a copy that does not."""
        masked = held().masked_whole
        parts = [completion.text, completion.finish_reason or "", completion.reasoning or "", *(completion.alternatives or ())]
        if parts == [masked(part) for part in parts]:
            return completion
        others = {masked(token): value for token, value in completion.alternatives.items()} if completion.alternatives else None
        finish, reasoning = (part and masked(part) for part in (completion.finish_reason, completion.reasoning))
        return replace(completion, text=masked(completion.text), finish_reason=finish, reasoning=reasoning, alternatives=others)


def _said(message: str) -> str:
    return f": {message}" if message.strip() else ""


def _about_a_parameter(data: bytes, message: str) -> bool:
    """Whether a refusal with a status that means something else is of this request only."""
    if "logprobs" in message:
        return True
    try:
        parameter = orjson.loads(data)["error"]["param"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return False
    return isinstance(parameter, str) and parameter not in ("", "model")


def _about_a_model(data: bytes, message: str, model: str) -> bool:
    """Whether a 404 says that there is no such model, and not that there is no such path."""
    if data.lstrip()[:1] == b"<":
        return False
    words = data[:REFUSAL_BYTES].decode(errors="replace").lower()
    return model.lower() in message.lower() or re.search(r"\bmodel|deployment|no endpoints found", words) is not None
