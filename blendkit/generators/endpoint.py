"""Chat and text completions of any OpenAI-compatible server: many at a time, retried, cached, within limits.

Requests go by aiohttp and not by the openai client: at 64 at a time and 50 ms an answer, the client alone takes a
whole core for 75 % of the possible rate, aiohttp a tenth of one for 95 % (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import orjson

from blendkit.errors import BlendkitError, EndpointError, RecordError, UsageError
from blendkit.generators import requests
from blendkit.generators.base import Completion, Prompt, TextModel, Unsupported
from blendkit.generators.batch_file import Batch
from blendkit.generators.cache import Cache
from blendkit.generators.limits import Meter, RateLimit, connections
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.generators.replies import BadReply, read_kept, read_reply
from blendkit.generators.server import ROUTES, Refused, Server, TryAgain

FEATURES = ("response_format", "json_schema", "logprobs")  # what not every server has; its refusal names them
GONE = 3  # requests in a row that used up their retries
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0


class Exhausted(Exception):
    """All retries of a request are used up; whether it or the server is at fault shows by whether others succeeded meanwhile.

    A server that `answered`, if with nonsense, is there: it is the request's fault, unless several in a row end so.
    """

    def __init__(self, problem: str, first: float, answered: bool) -> None:
        super().__init__(problem)
        self.first, self.last, self.answered = first, time.monotonic(), answered


# All that there are share the files which this process may open.
_endpoints: weakref.WeakSet[Endpoint] = weakref.WeakSet()


class Endpoint(TextModel):
    """A model behind a server. Nothing that leaves (exceptions, texts, what a cache keeps) holds a credential.

    Raises:
        UsageError: the `api` extra is not installed, options that do not go together, or a base URL that is none.
        EndpointError: no key for the default server.
    """

    local = False

    def __init__(self, model: str, endpoint: EndpointOptions) -> None:
        if endpoint.max_cost is not None and not (endpoint.price_in or endpoint.price_out):
            raise UsageError("--max-cost needs --price-in and --price-out, in $ a million tokens")
        self.spec, self._model, self.options = f"openai:{model}", model, endpoint
        self.server = Server(model, endpoint)
        self._batch = Batch(endpoint, ROUTES[endpoint.api], self.server.quoted) if endpoint.offline else None
        self._cache = Cache(endpoint.cache, endpoint.max_body_bytes) if endpoint.cache and not endpoint.offline else None
        self._limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self.meter = Meter(endpoint.price_in, endpoint.price_out, endpoint.max_cost)
        self._gone: BlendkitError | None = None
        self._last_success, self._failures = 0.0, 0
        self.cut = self.unbelieved = self.hidden = self.unreadable = 0
        self._fewer: str | None = None
        self._not_kept: str | None = None
        # One loop in a thread of its own serves all windows in work; connections stay open between them.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        self._gate: asyncio.Semaphore | None = None
        self._under_way: dict[str, asyncio.Future[Completion | Exception]] = {}
        if not endpoint.offline:
            _endpoints.add(self)

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """All prompts, at most `concurrency` at a time; once the server is gone, the rest fail at once."""
        bodies = [requests.request_body(self._model, self.options.api, prompt, sampling) for prompt in prompts]
        keys = [requests.digest(body) for body in bodies]
        if self._batch is not None:
            return [self._without_secrets(self._from_batch(self._batch, key, body)) for key, body in zip(keys, bodies, strict=True)]
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="endpoint", daemon=True).start()
        asked = [(body, f"{self.server.where} {key}") for key, body in zip(keys, bodies, strict=True)]
        return [self._without_secrets(result) for result in asyncio.run_coroutine_threadsafe(self._all(asked), self._loop).result()]

    def _without_secrets(self, result: Completion | Exception) -> Completion | Exception:
        """What leaves: a server may quote the key that it got, or a URL that has one."""
        if isinstance(result, Exception):
            result.args = (self.server.masked(str(result)),)
            return result
        clean = self.server.without_secrets(result)
        self.hidden += clean is not result
        return clean

    def _from_batch(self, batch: Batch, key: str, body: dict[str, Any]) -> Completion | Exception:
        def read(answer: bytes) -> Completion:
            return self._counted(self._completion(answer, body), paid=True)

        def refusal(status: int, data: bytes) -> Exception:
            fault = self.server.refusal(status, data, {})
            return self._refusal(fault) if isinstance(fault, Refused) else fault

        found = batch.answer(key, body, read, refusal)
        if isinstance(found, RecordError) and not isinstance(found, Unsupported):
            found.args = (f"{self.spec}: {found}",)
        return found

    async def _all(self, asked: list[tuple[dict[str, Any], str]]) -> list[Completion | Exception]:
        if self._gate is None:
            many, files = connections(self.options.concurrency, len(_endpoints))
            if many < self.options.concurrency:
                self._fewer = f"--concurrency {self.options.concurrency}: this process may open {files} files (ulimit -n), so {many} requests go at a time"
            self.server.open(many)
            self._gate = asyncio.Semaphore(many)
        try:
            cached = self._kept([key for _, key in asked])
        except BlendkitError as error:
            self._gone = error
            return [error for _ in asked]
        return [self._judged(result) for result in await asyncio.gather(*(self._one(body, key, cached.get(key)) for body, key in asked))]

    def _kept(self, keys: list[str]) -> dict[str, Completion]:
        """What the cache has; rows that nobody can read are taken out, and their questions asked again."""
        if self._cache is None:
            return {}
        found = {key: read_kept(value) for key, value in self._cache.get(keys).items()}
        foreign = [key for key, completion in found.items() if completion is None]
        if foreign:
            self.unreadable += len(foreign)
            self._cache.drop(foreign)
        return {key: completion for key, completion in found.items() if completion is not None}

    def _judged(self, result: Completion | Exception) -> Completion | Exception:
        if not isinstance(result, Exhausted):
            return result
        # Once several in a row have failed to the end, only a later answer shows that the server lives.
        if (result.answered and self._gone is None) or self._last_success > (result.first if self._gone is None else result.last):
            return RecordError("", f"{self.spec}: {result}")
        self._gone = self._gone or EndpointError(f"{result}; is the server running?")
        return self._gone

    async def _one(self, body: dict[str, Any], key: str, cached: Completion | None) -> Completion | Exception:
        if cached is not None:
            return self._counted(cached, paid=False)
        if (same := self._under_way.get(key)) is not None:
            # Another window in work has asked just this.
            answer = await asyncio.shield(same)
            return self._counted(answer, paid=False) if isinstance(answer, Completion) else answer
        self._under_way[key] = asyncio.ensure_future(self._in_turn(body, key))
        try:
            return await self._under_way[key]
        finally:
            del self._under_way[key]

    async def _in_turn(self, body: dict[str, Any], key: str) -> Completion | Exception:
        assert self._gate is not None
        async with self._gate:
            if self._gone is not None:
                return self._gone
            return await self._asked(body, key)

    async def _asked(self, body: dict[str, Any], key: str) -> Completion | Exception:
        """Asks until there is an answer, the retries are used up, or the server is gone."""
        reason, first, answered = "", 0.0, False
        most = (requests.tokens(body), int(body["max_tokens"]))
        for attempt in range(self.options.retries + 1):
            await self._limit.wait(sum(most))
            if self._gone is not None:
                return self._gone
            try:
                completion = await self._metered(body, key, most)
            except TryAgain as error:
                reason, first, answered = str(error), first or time.monotonic(), error.paid
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
                    # This answer is passed on all the same; it may be the last one, so that nobody else tells.
                    self._gone = self._gone or error
                    self._not_kept = str(error)
            return self._counted(completion, paid=True)
        failure = Exhausted(f"{self.server.where} {reason}, after {self.options.retries} retries", first, answered)
        self._failures += 1
        if self._failures >= GONE:
            self._gone = self._gone or EndpointError(f"{failure}; is the server running?")
        return failure

    async def _metered(self, body: dict[str, Any], key: str, most: tuple[int, int]) -> Completion:
        """One request, and what it cost: an answer without a count of tokens counts as the most that it can have had."""
        if (fault := self.meter.reserve(*most)) is not None:
            raise fault
        used = None
        try:
            completion = await self._attempt(body, key)
            counts = completion.usage or {}
            used = (counts.get("prompt_tokens", most[0]), counts.get("completion_tokens", most[1]))
            return completion
        except TryAgain as error:
            if error.paid:
                used = most
                self.unbelieved += self.meter.priced
            raise
        finally:
            self.meter.settle(most, used)

    async def _attempt(self, body: dict[str, Any], key: str) -> Completion:
        """One request. Raises TryAgain, or a fault that no second try will mend."""
        try:
            return self._completion(await self.server.ask(body, key.rpartition(" ")[2]), body)
        except BadReply as error:
            raise TryAgain(str(error), paid=True) from None
        except Refused as refused:
            raise self._refusal(refused) from None

    def _refusal(self, refused: Refused) -> RecordError:
        if refused.status in (400, 422, 501) and any(name in str(refused) for name in FEATURES):
            return Unsupported("", f"{self.spec} refuses what was asked for (HTTP {refused.status}): {refused}")
        return RecordError("", f"{self.spec} refuses this prompt (HTTP {refused.status}): {refused}")

    def _completion(self, data: bytes, body: dict[str, Any]) -> Completion:
        """A response's body, priced. Raises BadReply when it is none."""
        reply = read_reply(data, self.options.api, "logprobs" in body)
        self.unbelieved += not reply.believable
        completion = self._without_secrets(reply.completion)
        assert isinstance(completion, Completion)
        return replace(completion, usage=self._priced(completion.usage or {}))

    def _priced(self, counts: dict[str, int]) -> dict[str, Any] | None:
        if self.meter.priced and len(counts) == 2:
            return {**counts, "cost": round(self.meter.cost(**counts), 8)}
        return dict(counts) or None

    def _counted(self, completion: Completion, paid: bool) -> Completion:
        self.cut += completion.finish_reason == "length"
        self.meter.cached += not paid
        return completion

    def describe(self) -> dict[str, Any]:
        """The model and where it is, without credentials, and what was asked and paid."""
        return {"model": self.spec, "base_url": self.server.where, "api": self.options.api, **self.meter.describe()}

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        if self._batch is not None:
            self._batch.close()
        loop, self._loop = self._loop, None
        if loop is not None:
            # Waited for: the next call's loop is another thread, and the cache serves one at a time.
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    async def _shut(self) -> None:
        self._gate = None
        await self.server.close()
        if self._cache is not None:
            self._cache.close()

    def warnings(self) -> list[str]:
        """What a run cost, and how many answers were cut off."""
        found = []
        if self._batch is not None:
            found += self._batch.warnings()
        found += [said for said in (self._fewer, self._not_kept) if said]
        if self.unreadable:
            found.append(f"{self.unreadable} rows of --cache {self.options.cache} were no answers of ours; their questions were asked again")
        if self.unbelieved:
            found.append(f"{self.unbelieved} answers of {self.spec} had no count of tokens that can be believed; each counts as the most that it can have had")
        if self.hidden:
            found.append(f"{self.hidden} answers of {self.spec} quoted a key or password; *** stands in its place")
        if self.cut:
            found.append(f"{self.cut} answers of {self.spec} ended at --max-new-tokens (finish_reason `length`)")
        if self.meter.priced:
            cached = f", {self.meter.cached:,} from the cache" if self.meter.cached else ""
            found.append(f"{self.spec}: {self.meter.requests:,} answers for ${self.meter.spent:.4f}{cached}")
        return found


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
