"""Chat and text completions of any OpenAI-compatible server: many at a time, retried, cached, within limits.

Requests go by aiohttp and not by the openai client: at 64 at a time and 50 ms an answer, the client alone takes a
whole core for 75 % of the possible rate, aiohttp a tenth of one for 95 % (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
import warnings
import weakref
from dataclasses import replace
from typing import Any

import orjson

from blendkit.errors import BlendkitError, BlendkitWarning, EndpointError, RecordError, UsageError
from blendkit.generators import requests
from blendkit.generators.adaptation import Adapted, Adapting
from blendkit.generators.base import Completion, Prompt, TextModel
from blendkit.generators.batch_file import Batch, Errored
from blendkit.generators.cache import Cache
from blendkit.generators.extra_body import with_extra
from blendkit.generators.limits import Meter, RateLimit, connections
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.generators.reasoning import Room
from blendkit.generators.replies import BadReply, SaidError, read_kept, read_reply
from blendkit.generators.server import ROUTES, Refused, Server, TryAgain
from blendkit.terminal_text import count_of

GONE = 3  # requests in a row that used up their retries
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
MOST_FIXES = 16  # changes of one request, until its refusal is its own fault
# Codes of an error in a 200 that may pass, where it has a word in place of a status.
PASSING = re.compile(r"rate.?limit|overload|time.?out|unavailable|busy|(?:server|internal|api|upstream|engine)_?error|capacity|exhausted", re.IGNORECASE)


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
        if endpoint.max_cost is not None and not endpoint.priced:
            whose = f"{endpoint.asked}: " if endpoint.own else ""
            raise UsageError(f"{whose}--max-cost needs --price-in and --price-out, in $ a million tokens, or both of each model in its table; 0 is free")
        self.spec, self._model, self.options = f"openai:{model}", model, endpoint
        self.server = Server(model, endpoint)
        self._batch = Batch(endpoint, ROUTES[endpoint.api], self.server.quoted) if endpoint.offline else None
        self._cache = Cache(endpoint.cache, endpoint.max_body_bytes) if endpoint.cache and not endpoint.offline else None
        self._limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self.meter = Meter(endpoint.price_in, endpoint.price_out, *endpoint.purses())
        self._gone: BlendkitError | None = None
        self._last_success, self._failures = 0.0, 0
        self.cut = self.unbelieved = self.hidden = self.unreadable = self.repaired = 0
        self._room = Room()
        self._adapting = Adapting(f"{self.server.where} {model} {endpoint.api}", endpoint.extra_body or (), self._cache)
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
        found = self._complete(prompts, sampling) if self.options.offline else self._room.complete(self._complete, prompts, sampling)
        if not sampling.alternatives:  # which is a look at the first tokens alone
            self.cut += sum(isinstance(result, Completion) and result.finish_reason == "length" for result in found)
        return found

    def _complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        bodies = [with_extra(requests.request_body(self._model, self.options.api, prompt, sampling), self.options.extra_body) for prompt in prompts]
        if self._batch is not None:
            return [self._without_secrets(self._from_batch(self._batch, body)) for body in bodies]
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="endpoint", daemon=True).start()
        return [self._without_secrets(result) for result in asyncio.run_coroutine_threadsafe(self._all(bodies), self._loop).result()]

    def _without_secrets(self, result: Completion | Exception) -> Completion | Exception:
        """What leaves: a server may quote the key that it got, or a URL that has one."""
        if isinstance(result, Exception):
            result.args = (self.server.masked(str(result)),)
            return result
        clean = self.server.without_secrets(result)
        self.hidden += clean is not result
        return clean

    def _from_batch(self, batch: Batch, body: dict[str, Any]) -> Completion | Exception:
        """What the batch has for the request; where it has a refusal, for the request as it may be put instead."""
        adapted = Adapted()
        for _ in range(MOST_FIXES):
            sent = self._adapting.put(body, adapted)
            said = batch.find(sent)
            changed = None
            if isinstance(said, Errored) and isinstance(refused := self.server.refusal(said.status, said.data, {}), Refused):
                changed = self._adapting.changed(refused, sent, adapted)
            elif said is None and not adapted.fixes and self._adapting.put(body) != body:
                # It was made when more was known of the server.
                changed = self._adapting.known
            if changed is None:
                break
            adapted = changed
            self._adapting.learned(adapted)

        sent = self._adapting.put(body, adapted)

        def read(answer: bytes) -> Completion:
            completion = self._completion(answer, sent)
            return self._counted(_stopped(completion, body) if adapted.left_out("stop") else completion, paid=True)

        found = batch.answer(sent, read)
        if isinstance(found, RecordError):
            found.args = (f"{self.spec}: {found}",)
        return found

    async def _all(self, bodies: list[dict[str, Any]]) -> list[Completion | Exception]:
        try:
            if self._gate is None:
                self._open()
            asked = [(body, requests.digest(body)) for body in bodies]
            keys = [self._key(self._adapting.put(body), body, digest) for body, digest in asked]
            cached = self._kept(keys)
        except BlendkitError as error:
            self._gone = error
            return [error for _ in bodies]
        return [self._judged(result) for result in await asyncio.gather(*(self._one(*one, cached.get(key)) for one, key in zip(asked, keys, strict=True)))]

    def _open(self) -> None:
        many, files = connections(self.options.concurrency, len(_endpoints))
        if many < self.options.concurrency:
            go = count_of(many, "request goes", "requests go")
            self._fewer = f"--concurrency {self.options.concurrency}: this process may open {count_of(files, 'file')} (ulimit -n), so {go} at a time"
        self._adapting.load()
        self.server.open(many)
        self._gate = asyncio.Semaphore(many)

    def _key(self, sent: dict[str, Any], body: dict[str, Any], digest: str) -> str:
        """By which the cache finds the answer to what is sent; `digest` is the body's, which mostly is sent as it is."""
        return f"{self.server.identity} {digest if sent is body else requests.digest(sent)}"

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
        self._gone = self._gone or EndpointError(f"{result}; {_ask_yourself(result.answered)}")
        return self._gone

    async def _one(self, body: dict[str, Any], digest: str, cached: Completion | None) -> Completion | Exception:
        if cached is not None:
            return self._counted(cached, paid=False)
        if (same := self._under_way.get(digest)) is not None:
            # Another window in work has asked just this.
            answer = await asyncio.shield(same)
            return self._counted(answer, paid=False) if isinstance(answer, Completion) else answer
        self._under_way[digest] = asyncio.ensure_future(self._in_turn(body, digest))
        try:
            return await self._under_way[digest]
        finally:
            del self._under_way[digest]

    async def _in_turn(self, body: dict[str, Any], digest: str) -> Completion | Exception:
        assert self._gate is not None
        async with self._gate:
            return await self._asked(body, digest)

    async def _asked(self, body: dict[str, Any], digest: str) -> Completion | Exception:
        """Asks until there is an answer, the retries are used up, or the server is gone; what it does not take of the request is changed."""
        reason, first, answered, attempt, fixes = "", 0.0, False, 0, 0
        most = (requests.tokens(body), requests.answer_tokens(body))
        adapted = self._adapting.known
        while attempt <= self.options.retries:
            await self._limit.wait(sum(most))
            if self._gone is not None:
                return self._gone
            sent = self._adapting.put(body, adapted)
            key = self._key(sent, body, digest)
            try:
                if fixes and (cached := self._kept([key]).get(key)) is not None:
                    self._adapting.learned(adapted)
                    return self._counted(cached, paid=False)
                completion = await self._metered(sent, key, most)
            except TryAgain as error:
                reason, first, answered = str(error), first or time.monotonic(), error.paid
                backoff = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**attempt) * random.uniform(0.5, 1.0)
                if attempt < self.options.retries:
                    if error.wait is not None:
                        if self._limit.pause(error.wait) and error.wait > self.options.timeout:
                            told = f"{self.server.where} {error}; it asks for {error.wait:.0f} s of patience: waiting"
                            warnings.warn(told, BlendkitWarning, stacklevel=1)
                    else:
                        await asyncio.sleep(backoff)
                attempt += 1
                continue
            except Refused as refused:
                changed = self._adapting.changed(refused, sent, adapted)
                fixes += 1
                if changed is None or fixes > MOST_FIXES:
                    return RecordError("", f"{self.spec} refuses the request (HTTP {refused.status}): {refused}")
                adapted = changed
                continue
            except BlendkitError as error:
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
            self._adapting.learned(adapted)
            return self._counted(_stopped(completion, body) if adapted.left_out("stop") else completion, paid=True)
        failure = Exhausted(f"{self.server.where} {reason}, after {count_of(self.options.retries, 'retry', 'retries')}", first, answered)
        self._failures += 1
        if self._failures >= GONE:
            self._gone = self._gone or EndpointError(f"{failure}; {_ask_yourself(answered)}")
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
        """One request. Raises TryAgain, Refused, or a fault that ends all."""
        try:
            return self._completion(await self.server.ask(body, key.rpartition(" ")[2]), body)
        except BadReply as error:
            raise TryAgain(str(error), paid=True) from None
        except SaidError as error:
            raise self._failed(error) from None

    def _failed(self, error: SaidError) -> Exception:
        """An error within a 200, as its code says: it may pass, or it is this request's."""
        said = self.server.quoted(str(error))
        if isinstance(error.code, int) and error.code >= 400:
            failed = self.server.refusal(error.code, orjson.dumps({"error": {"message": said}}), {})
            return TryAgain(f"answers with an error, {error.code}: {said}", failed.wait, error.begun) if isinstance(failed, TryAgain) else failed
        # A half answer without a code is another one the next time.
        if PASSING.search(str(error.code)) or (error.begun and error.code is None):
            return TryAgain(f"answers with an error: {said}", paid=error.begun)
        return Refused(200, f"it answers with an error: {said}", orjson.dumps({"error": {"message": said}}))

    def _completion(self, data: bytes, body: dict[str, Any]) -> Completion:
        """A response's body, priced. Raises BadReply when it is none."""
        reply = read_reply(data, self.options.api, "logprobs" in body)
        self.unbelieved += not reply.believable
        self.repaired += reply.repaired
        completion = self._without_secrets(reply.completion)
        assert isinstance(completion, Completion)
        return replace(completion, usage=self._priced(completion.usage or {}))

    def _priced(self, counts: dict[str, int]) -> dict[str, Any] | None:
        if self.meter.priced and {"prompt_tokens", "completion_tokens"} <= set(counts):
            return {**counts, "cost": round(self.meter.cost(counts["prompt_tokens"], counts["completion_tokens"]), 8)}
        return dict(counts) or None

    def _counted(self, completion: Completion, paid: bool) -> Completion:
        self.meter.cached += not paid
        return completion

    def describe(self) -> dict[str, Any]:
        """The model and where it is, without credentials, and what was asked and paid."""
        return {"model": self.spec, "base_url": self.server.where, "api": self.options.api, **self.meter.describe(), **self._noticed()}

    def _noticed(self) -> dict[str, Any]:
        found = {"adapted": self._adapting.known.as_dict(), "repaired": self.repaired}
        return {name: value for name, value in found.items() if value} | self._room.describe()

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
            were = "was no answer of ours; its question was" if self.unreadable == 1 else "were no answers of ours; their questions were"
            found.append(f"{count_of(self.unreadable, 'row')} of --cache {self.options.cache} {were} asked again")
        if self.unbelieved:
            told = f"{count_of(self.unbelieved, 'answer')} of {self.spec} had no count of tokens that can be believed"
            found.append(f"{told}; each counts as the most that it can have had")
        if self._adapting.known.fixes:
            found.append(f"{self.spec} does not take all of a request: {self._adapting.known.message()}")
        found += self._room.warnings(self.spec)
        if self.repaired:
            found.append(f"{count_of(self.repaired, 'answer')} of {self.spec} held half characters, NULs or broken UTF-8; U+FFFD stands there")
        if self.hidden:
            found.append(f"{count_of(self.hidden, 'answer')} of {self.spec} quoted a key or password; *** stands in its place")
        if self.cut:
            found.append(f"{count_of(self.cut, 'answer')} of {self.spec} ended at --max-new-tokens (finish_reason `length`)")
        if self.meter.priced:
            cached = f", {self.meter.cached:,} from the cache" if self.meter.cached else ""
            where = f" at {self.server.where}" if self.options.own_server else ""
            found.append(f"{self.spec}{where}: {count_of(self.meter.requests, 'answer')} for ${self.meter.spent:.4f}{cached}")
        return found


def _ask_yourself(answered: bool) -> str:
    return "is it an OpenAI-compatible server?" if answered else "is the server running?"


def _stopped(completion: Completion, body: dict[str, Any]) -> Completion:
    """The answer up to the first stop, where the server would not take them."""
    ends = [place for stop in body.get("stop", ()) if (place := completion.text.find(stop)) >= 0]
    return replace(completion, text=completion.text[: min(ends)], finish_reason="stop") if ends else completion


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
