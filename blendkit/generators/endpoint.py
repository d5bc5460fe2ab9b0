"""Chat and text completions of any OpenAI-compatible server: many at a time, retried, cached, within limits.

Requests go by aiohttp and not by the openai client: at 64 at a time and 50 ms an answer, the client alone takes a
whole core for 75 % of the possible rate, aiohttp a tenth of one for 95 % (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import random
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from blendkit.errors import BlendkitError, EndpointError, NoInputError, RecordError, UsageError
from blendkit.generators.base import Completion, EndpointOptions, Prompt, Sampling, TextModel, Unsupported
from blendkit.generators.batch_file import BatchAnswers, BatchWriter
from blendkit.generators.cache import Cache
from blendkit.generators.limits import Meter, RateLimit

DEFAULT_URL = "https://api.openai.com/v1"
AGAIN = (408, 409, 425, 429)  # and every 5xx: another try may succeed
FEATURES = ("response_format", "json_schema", "logprobs")  # what not every server has; its refusal names them
GONE = 3  # requests in a row that used up their retries
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
ROUTES = {"chat": "chat/completions", "completions": "completions"}


class TryAgain(Exception):
    """A request failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Exhausted(Exception):
    """All retries of a request are used up; whether it or the server is at fault shows by whether others succeeded meanwhile."""

    def __init__(self, problem: str, first: float) -> None:
        super().__init__(problem)
        self.first, self.last = first, time.monotonic()


class Endpoint(TextModel):
    """The key comes from OPENAI_API_KEY; with a --base-url it may be absent, as local servers ask for none.

    Raises:
        UsageError: the `api` extra is not installed, or options that do not go together.
        EndpointError: no key for the default server.
    """

    local = False

    def __init__(self, model: str, options: EndpointOptions) -> None:
        try:
            import aiohttp
        except ImportError as error:
            raise UsageError("an openai: model needs aiohttp: pip install 'blendkit[api]'") from error
        if options.api not in ROUTES:
            raise UsageError(f"--api {options.api}: expected {' or '.join(ROUTES)}")
        if options.max_cost is not None and not (options.price_in or options.price_out):
            raise UsageError("--max-cost needs --price-in and --price-out, in $ a million tokens")
        self._aiohttp = aiohttp
        self.spec, self._model, self.options = f"openai:{model}", model, options
        self._key = os.environ.get("OPENAI_API_KEY")
        self._base_url = (options.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        if self._key and "@" in self._base_url.partition("://")[2].partition("/")[0]:
            raise UsageError("two credentials: --base-url has some, and OPENAI_API_KEY is set; the server reads one of them only")
        self._writer = BatchWriter(options.emit_batch, ROUTES[options.api]) if options.emit_batch else None
        self._answers = BatchAnswers(options.read_batch) if options.read_batch else None
        if not self._key and self._base_url == DEFAULT_URL and not options.offline:
            raise EndpointError("OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        self._cache = Cache(options.cache) if options.cache and not options.offline else None
        self._limit = RateLimit(options.requests_per_minute, options.tokens_per_minute)
        self.meter = Meter(options.price_in, options.price_out, options.max_cost)
        self._gone: BlendkitError | None = None
        self._last_success, self._failures = 0.0, 0
        self.cut = 0
        # One loop in a thread of its own serves all windows in work; connections stay open between them.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        self._session: Any = None
        self._gate: asyncio.Semaphore | None = None

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """All prompts, at most `concurrency` at a time; once the server is gone, the rest fail at once."""
        bodies = [self._request(prompt, sampling) for prompt in prompts]
        keys = [_digest(body) for body in bodies]
        if self._writer is not None:
            for key, body in zip(keys, bodies, strict=True):
                self._writer.add(key, body)
            return [Completion("", None, None) for _ in prompts]
        if self._answers is not None:
            return [self._from_batch(key) for key in keys]
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
        requests = [(body, f"{self._base_url} {key}") for key, body in zip(keys, bodies, strict=True)]
        return asyncio.run_coroutine_threadsafe(self._all(requests), self._loop).result()

    def _from_batch(self, key: str) -> Completion | Exception:
        assert self._answers is not None
        answer = self._answers.get(key)
        if isinstance(answer, str):
            return RecordError("", f"{self.spec}: {answer}")
        try:
            return self._counted(self._completion(answer), paid=True)
        except TryAgain as error:
            return RecordError("", f"{self.spec}: the batch's answer has {error}")

    async def _all(self, requests: list[tuple[dict[str, Any], str]]) -> list[Completion | Exception]:
        if self._session is None:
            timeout = self._aiohttp.ClientTimeout(total=self.options.timeout)
            connector = self._aiohttp.TCPConnector(limit=self.options.concurrency)
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = self._aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers)
            self._gate = asyncio.Semaphore(self.options.concurrency)
        try:
            cached = self._cache.get(key for _, key in requests) if self._cache else {}
        except BlendkitError as error:
            self._gone = error
            return [error for _ in requests]
        return [self._judged(result) for result in await asyncio.gather(*(self._one(body, key, cached.get(key)) for body, key in requests))]

    def _judged(self, result: Completion | Exception) -> Completion | Exception:
        if not isinstance(result, Exhausted):
            return result
        # Once several in a row have failed to the end, only a later answer shows that the server lives.
        if self._last_success > (result.first if self._gone is None else result.last):
            return RecordError("", f"{self.spec}: {result}")
        self._gone = self._gone or EndpointError(f"{result}; is the server running?")
        return self._gone

    async def _one(self, body: dict[str, Any], key: str, cached: bytes | None) -> Completion | Exception:
        if cached is not None:
            return self._counted(Completion(**orjson.loads(cached)), paid=False)
        assert self._gate is not None
        async with self._gate:
            if self._gone is not None:
                return self._gone
            reserved = (_tokens(body), int(body["max_tokens"]))
            fault = self.meter.reserve(*reserved)
            if fault is not None:
                self._gone = fault
                return fault
            completion = await self._asked(body, key, sum(reserved))
            used = None
            if isinstance(completion, Completion):
                counts = completion.usage or {}
                used = (counts.get("prompt_tokens", reserved[0]), counts.get("completion_tokens", reserved[1]))
            self.meter.settle(reserved, used)
            return completion

    async def _asked(self, body: dict[str, Any], key: str, tokens: int) -> Completion | Exception:
        """Asks until there is an answer, the retries are used up, or the server is gone."""
        reason, first = "", 0.0
        for attempt in range(self.options.retries + 1):
            await self._limit.wait(tokens)
            if self._gone is not None:
                return self._gone
            try:
                completion = await self._attempt(body, key)
            except TryAgain as error:
                reason, first = str(error), first or time.monotonic()
                backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**attempt) * random.uniform(0.5, 1.0)
                if attempt < self.options.retries:
                    if error.wait is not None:
                        self._limit.pause(error.wait)
                    else:
                        await asyncio.sleep(backoff)
                continue
            except BlendkitError as error:
                if not isinstance(error, RecordError):
                    self._gone = self._gone or error
                return error
            self._last_success, self._failures = time.monotonic(), 0
            if self._cache is not None:
                try:
                    self._cache.put(key, orjson.dumps(completion.as_dict()))
                except BlendkitError as error:
                    self._gone = self._gone or error
            return self._counted(completion, paid=True)
        failure = Exhausted(f"{_host(self._base_url)} {reason}, after {self.options.retries} retries", first)
        self._failures += 1
        if self._failures >= GONE:
            self._gone = self._gone or EndpointError(f"{failure}; is the server running?")
        return failure

    async def _attempt(self, body: dict[str, Any], key: str) -> Completion:
        """One request. Raises TryAgain, or a fault that no second try will mend."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key.rpartition(" ")[2]}
        url = f"{self._base_url}/{ROUTES[self.options.api]}"
        try:
            async with self._session.post(url, data=orjson.dumps(body), headers=headers) as reply:
                data = await reply.read()
                if reply.status != 200:
                    raise self._refused(reply.status, data, reply.headers)
        except TimeoutError:
            raise TryAgain(f"gave no answer in {self.options.timeout:g} s") from None
        except (self._aiohttp.ClientPayloadError, self._aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise TryAgain(f"cut the connection ({type(error).__name__})") from None
        except self._aiohttp.InvalidURL:
            raise UsageError(f"--base-url {_host(self._base_url)}: expected http://HOST:PORT/v1 or the like") from None
        except self._aiohttp.ClientError as error:
            raise TryAgain(f"cannot be reached ({type(error).__name__})") from None
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise TryAgain("answers with something that is no JSON") from None
        return self._completion(answer)

    def _refused(self, status: int, data: bytes, headers: Any) -> Exception:
        where = _host(self._base_url)
        message = self._message(data)
        if status in (401, 403):
            return EndpointError(f"{where} refuses the key (HTTP {status}); check OPENAI_API_KEY")
        if status == 404:
            return NoInputError(f"{where} has no model {self._model!r} (HTTP 404)")
        if status == 402 or (status == 429 and "insufficient_quota" in data.decode(errors="replace")):
            return EndpointError(f"{where} says that the account has no more credit (HTTP {status})")
        if status in AGAIN or status >= 500:
            return TryAgain(f"answers HTTP {status}", _retry_after(headers))
        if status in (400, 422, 501) and any(name in message for name in FEATURES):
            return Unsupported("", f"{self.spec} refuses what was asked for (HTTP {status}): {message}")
        return RecordError("", f"{self.spec} refuses this prompt (HTTP {status}): {message}")

    def _message(self, data: bytes) -> str:
        """What the server says, without the key that it may quote."""
        try:
            error = orjson.loads(data)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            text = data.decode(errors="replace")
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _completion(self, answer: Any) -> Completion:
        """The first choice of a response's body. Raises TryAgain when it has none."""
        try:
            choices, usage = answer["choices"], answer.get("usage") or {}
            if not choices:
                raise TryAgain("an empty list of choices")
            choice = choices[0]
            text = choice["message"].get("content") if self.options.api == "chat" else choice["text"]
            counts = {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens") if usage.get(name) is not None}
        except (KeyError, TypeError, AttributeError, IndexError):
            raise TryAgain("an answer that is no completion") from None
        return Completion(text or "", choice.get("finish_reason"), self._priced(counts), _log_probability(choice), _alternatives(choice))

    def _priced(self, counts: dict[str, int]) -> dict[str, Any] | None:
        if self.meter.priced and len(counts) == 2:
            return {**counts, "cost": round(self.meter.cost(**counts), 8)}
        return dict(counts) or None

    def _counted(self, completion: Completion, paid: bool) -> Completion:
        self.cut += completion.finish_reason == "length"
        self.meter.cached += not paid
        return completion

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self._model}
        if self.options.api == "chat":
            request["messages"] = prompt.messages
        else:
            request["prompt"] = prompt.text()
        request |= {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "seed": prompt.seed}
        # The rest is said only where it differs from what every server does: some refuse what they do not know.
        if sampling.top_p < 1:
            request["top_p"] = sampling.top_p
        if sampling.top_k:
            request["top_k"] = sampling.top_k
        if sampling.min_p:
            request["min_p"] = sampling.min_p
        stop = [*prompt.stop, *sampling.stop]
        if stop:
            request["stop"] = stop
        if sampling.logprobs:
            request["logprobs"] = True if self.options.api == "chat" else 0
        if sampling.alternatives:
            chat = self.options.api == "chat"
            request |= {"logprobs": True, "top_logprobs": sampling.alternatives} if chat else {"logprobs": sampling.alternatives}
        if sampling.schema:
            request["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": sampling.schema}}
        return request

    def describe(self) -> dict[str, Any]:
        """The model and where it is, without credentials, and what was asked and paid."""
        return {"model": self.spec, "base_url": _host(self._base_url), "api": self.options.api, **self.meter.describe()}

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        loop, session = self._loop, self._session
        self._loop = self._session = None
        if loop is not None:
            # Waited for: the next call's loop is another thread, and the cache serves one at a time.
            asyncio.run_coroutine_threadsafe(self._shut(session), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    async def _shut(self, session: Any) -> None:
        if session is not None:
            await session.close()
        if self._cache is not None:
            self._cache.close()

    def warnings(self) -> list[str]:
        """What a run cost, and how many answers were cut off."""
        found = []
        if self._writer is not None:
            found.append(
                f"{self._writer.count} requests are in {self.options.emit_batch}; give the batch's output to --read-batch, with the same records and flags"
            )
        if self.cut:
            found.append(f"{self.cut} answers of {self.spec} ended at --max-new-tokens (finish_reason `length`)")
        if self.meter.priced:
            cached = f", {self.meter.cached:,} from the cache" if self.meter.cached else ""
            found.append(f"{self.spec}: {self.meter.requests:,} answers for ${self.meter.spent:.4f}{cached}")
        return found


def _digest(body: dict[str, Any]) -> str:
    """A hash of everything that decides the answer; a batch's custom_id has room for 64 characters."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _tokens(body: dict[str, Any]) -> int:
    """About four characters a token."""
    text = body.get("prompt") or "".join(message["content"] for message in body.get("messages", ()))
    return len(text) // 4 + 1


def _log_probability(choice: dict[str, Any]) -> float | None:
    """The mean over tokens, in nats, in either API's form."""
    logprobs = choice.get("logprobs") or {}
    values = [token["logprob"] for token in logprobs.get("content") or ()] or [value for value in logprobs.get("token_logprobs") or () if value is not None]
    return sum(values) / len(values) if values else None


def _alternatives(choice: dict[str, Any]) -> dict[str, float] | None:
    """Log-probabilities of the tokens that the first one that is no blank could have been, in either API's form."""
    logprobs = choice.get("logprobs") or {}
    for token in logprobs.get("content") or ():
        if str(token.get("token", "")).strip():
            return {str(other.get("token")): float(other.get("logprob", -math.inf)) for other in token.get("top_logprobs") or ()} or None
    for token, others in zip(logprobs.get("tokens") or (), logprobs.get("top_logprobs") or (), strict=False):
        if token.strip():
            return dict(others) or None
    return None


def _retry_after(headers: Any) -> float | None:
    """Seconds, from `retry-after-ms` or from `Retry-After` in seconds or as a date; None when it says nothing."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (value := headers.get("Retry-After")) is None:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _host(url: str) -> str:
    from blendkit.running import hide_keys

    return hide_keys(url)
