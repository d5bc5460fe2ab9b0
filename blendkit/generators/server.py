"""One OpenAI-compatible server: where it is, by which key it is asked, and what its answers and refusals mean."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import orjson

from blendkit.credentials import Address, Secrets
from blendkit.errors import EndpointError, NoInputError, UsageError
from blendkit.generators.base import Completion
from blendkit.generators.limits import retry_after
from blendkit.generators.options import EndpointOptions
from blendkit.generators.replies import REFUSAL_BYTES, BadReply, read_body, what_it_says

DEFAULT_URL = "https://api.openai.com/v1"
AGAIN = (408, 409, 425, 429)  # and every 5xx: another try may succeed
LONGEST_WAIT = 3600.0  # seconds that a server may ask for before it counts as gone
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
    """The key comes from OPENAI_API_KEY; with a --base-url it may be absent, as local servers ask for none.

    A key in the base URL is sent as it stands there, and is no part of any name.

    Raises:
        UsageError: the `api` extra is not installed, or a base URL that is none.
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
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if any(not sign.isprintable() for sign in self._key):
            raise UsageError("OPENAI_API_KEY holds control characters or is no UTF-8; no header can carry it")
        self._address = Address.parsed(options.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)
        self.where = self._address.name
        self._secrets = Secrets([self._key, *self._address.secrets])
        if self._key and self._address.authorization:
            raise UsageError("two credentials: --base-url has some, and OPENAI_API_KEY is set; the server reads one of them only")
        if not self._key and self.where == DEFAULT_URL and not options.offline:
            raise EndpointError("OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        self._session: Any = None

    def open(self, many: int) -> None:
        """Makes ready for so many requests at a time; called in the loop that they run in."""
        if self._session is not None:
            return
        timeout = self._aiohttp.ClientTimeout(total=self.options.timeout)
        connector = self._aiohttp.TCPConnector(limit=many)
        headers = {"Accept-Encoding": "gzip"}
        if authorization := f"Bearer {self._key}" if self._key else self._address.authorization:
            headers["Authorization"] = authorization
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
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        url = self._address.of(ROUTES[self.options.api])
        try:
            # A redirect is not followed: the prompt, if not the key, would go to whom nobody named.
            async with self._session.post(url, data=orjson.dumps(body), headers=headers, allow_redirects=False) as reply:
                if reply.status != 200:
                    raise self.refusal(reply.status, await read_body(reply, REFUSAL_BYTES, whole=False), reply.headers)
                return await read_body(reply, self.options.max_body_bytes)
        except TimeoutError:
            raise TryAgain(f"gave no answer in {self.options.timeout:g} s") from None
        except BadReply as error:
            raise TryAgain(str(error), paid=True) from None
        except (self._aiohttp.ClientPayloadError, self._aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise TryAgain(f"cut the connection ({type(error).__name__})") from None
        except self._aiohttp.InvalidURL:
            raise UsageError(f"--base-url {self.where}: expected http://HOST:PORT/v1 or the like") from None
        except self._aiohttp.ClientResponseError:
            raise TryAgain("answers with headers that are too long or no HTTP", paid=True) from None
        except self._aiohttp.ClientError as error:
            raise TryAgain(f"cannot be reached ({type(error).__name__})") from None

    def refusal(self, status: int, data: bytes, headers: Any) -> Exception:
        """What a status that is no 200 means."""
        where = self.where
        message = self.quoted(what_it_says(data))
        if 300 <= status < 400:
            place = self.quoted(headers.get("Location", "nowhere"))
            return EndpointError(f"{where} redirects to {place} (HTTP {status}), where nothing is sent; if that is right, name it with --base-url")
        if status in (401, 403):
            return EndpointError(f"{where} refuses the key (HTTP {status}); check OPENAI_API_KEY")
        if status == 404:
            return NoInputError(f"{where} has no model {self.model!r} (HTTP 404)")
        if status == 402 or (status == 429 and "insufficient_quota" in data.decode(errors="replace")):
            return EndpointError(f"{where} says that the account has no more credit (HTTP {status})")
        if status in AGAIN or status >= 500:
            wait = retry_after(headers)
            if wait is not None and not wait <= LONGEST_WAIT:
                return EndpointError(f"{where} answers HTTP {status} and asks for {wait:.0f} s of patience; go on with --resume later")
            return TryAgain(f"answers HTTP {status}", wait)
        return Refused(status, message, data)

    def masked(self, text: str) -> str:
        """The text without secrets."""
        return self._secrets.masked(text)

    def quoted(self, text: str) -> str:
        """The beginning of foreign words, masked before they are cut, so that no piece of a secret stays at their end."""
        return self.masked(text[: 20 * QUOTED])[:QUOTED]

    def without_secrets(self, completion: Completion) -> Completion:
        """The completion itself, or where it quotes a credential a copy that does not."""
        masked = self._secrets.masked_whole
        parts = [completion.text, completion.finish_reason or "", completion.reasoning or "", *(completion.alternatives or ())]
        if parts == [masked(part) for part in parts]:
            return completion
        others = {masked(token): value for token, value in completion.alternatives.items()} if completion.alternatives else None
        finish, reasoning = (part and masked(part) for part in (completion.finish_reason, completion.reasoning))
        return replace(completion, text=masked(completion.text), finish_reason=finish, reasoning=reasoning, alternatives=others)
