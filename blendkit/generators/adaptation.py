"""What a server does not take of a request: a parameter is renamed, lowered or left out, as the server's refusal says.

OpenAI's reasoning models want `max_completion_tokens` and no `temperature`, others know no `seed`, no `logprobs` or no
`system` role; what they say of it differs from server to server, and so do the statuses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from blendkit.errors import BlendkitError
from blendkit.generators.cache import Cache
from blendkit.generators.server import Refused

# Statuses of a refusal that may be about a parameter.
STATUSES = (200, 400, 403, 404, 405, 409, 415, 422, 501)
# What may be left out: without it the server decides.
SPARE = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "response_format", "reasoning_effort", "top_logprobs", "logprobs")
LIMITS = ("max_tokens", "max_completion_tokens")
# English words, which a message may hold without speaking of the parameter.
WORDS = frozenset(("stop", "seed", "temperature"))
ALTERNATIVES = 5  # what a server without a word on it takes of `top_logprobs`
LEAST_TOKENS = 16
SYSTEM = "system"

# A prompt that is too long is not the parameter's fault, whatever the message names.
_TOO_LONG = re.compile(r"context|input (?:length|token)|prompt|max_model_len|max_seq_len|reduce the length", re.IGNORECASE)
_NO_SYSTEM = re.compile(
    r"(?:system|developer)[\s'\"`]*(?:role|message|prompt|instruction)|role[\s'\"`:]*(?:system|developer)|'system'|\"system\"|`system`|roles must alternate",
    re.IGNORECASE,
)
_REFUSING = re.compile(
    r"not (?:\w+ )?(?:support|enabled|allowed|permitted|accept|valid|recogni)|unsupported|invalid|unknown|must alternate|only .*roles?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What a server takes of a model's requests, as far as it has said; `fixes` are the parameters and what is done with each.

    A number is the most that it takes, a string the parameter's name there, None that it is left out; `system` is the role
    of a message.
    """

    fixes: tuple[tuple[str, str | int | None], ...] = ()

    def of(self, body: dict[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
        """The request as the server takes it; parameters that the user has `given` stay."""
        if not self.fixes:
            return body
        body = dict(body)
        for name, how in self.fixes:
            if name == SYSTEM:
                if "messages" in body:
                    body["messages"] = folded(body["messages"])
            elif name in body and name not in given:
                value = body.pop(name)
                if isinstance(how, str):
                    body[how] = value
                elif how is not None:
                    body[name] = min(value, how) if isinstance(value, int) and not isinstance(value, bool) else value
        return body

    def having(self, name: str, how: str | int | None) -> Adapted:
        """One more fix; a new one of a parameter stands in place of an older one."""
        return Adapted((*(fix for fix in self.fixes if fix[0] != name), (name, how)))

    def joined(self, other: Adapted) -> Adapted:
        """What either has learned."""
        known = dict(self.fixes)
        return Adapted((*self.fixes, *((name, how) for name, how in other.fixes if name not in known)))

    def left_out(self, name: str) -> bool:
        """Whether a parameter is not sent."""
        return (name, None) in self.fixes

    def message(self) -> str:
        """In words, for the end of a run."""
        return ", ".join(_in_words(name, how) for name, how in self.fixes)

    def as_dict(self) -> dict[str, str | int | None]:
        """For the manifest and the cache."""
        return dict(self.fixes)


class Adapting:
    """What a server takes of one model's requests, learned from its refusals.

    A change counts from the first answer that came to it. It is kept in the cache beside the answers, so that a second run
    asks nothing. `given` are parameters that the user has written, which stay as they are.
    """

    def __init__(self, name: str, given: Collection[str], cache: Cache | None) -> None:
        """`name` is the server's and the model's, for the cache."""
        self.known = Adapted()
        self._key, self._given, self._cache = f"{name} takes", frozenset(given), cache

    def load(self) -> None:
        """Reads what earlier runs have learned. Raises OutputError where the cache cannot be read."""
        if self._cache is not None:
            self.known = self.known.joined(read_stored(self._cache.get([self._key]).get(self._key)))

    def put(self, body: dict[str, Any], adapted: Adapted | None = None) -> dict[str, Any]:
        """The request as the server takes it, by what is known or by what is tried."""
        return (self.known if adapted is None else adapted).of(body, self._given)

    def changed(self, refused: Refused, sent: dict[str, Any], adapted: Adapted) -> Adapted | None:
        """How the request may be put instead: as others have learned meanwhile, or as this refusal says; None where nothing helps."""
        known = adapted.joined(self.known)
        if self.put(sent, known) != sent:
            return known
        if refused.status not in STATUSES:
            return None
        changed = adapted_to(refused.data, str(refused), sent, known, sent.keys() - self._given)
        return changed if changed is not None and self.put(sent, changed) != sent else None

    def learned(self, adapted: Adapted) -> None:
        """An answer came to a request so changed: from now on all are."""
        joined = self.known.joined(adapted)
        if joined == self.known:
            return
        self.known = joined
        if self._cache is not None:
            with suppress(BlendkitError):
                # Only a help for the next run: without it, one more request is refused there.
                self._cache.drop([self._key])
                self._cache.put(self._key, stored(joined))


class _Stored(msgspec.Struct):
    adapted: dict[str, str | int | None]


def stored(adapted: Adapted) -> bytes:
    """As a cache keeps it."""
    return orjson.dumps({"adapted": adapted.as_dict()})


def read_stored(data: bytes | None) -> Adapted:
    """What `stored` wrote; nothing, for anything else: a cache's rows are not ours alone."""
    if data is None:
        return Adapted()
    try:
        fixes = msgspec.json.decode(data, type=_Stored).adapted
    except (ValueError, RecursionError):
        return Adapted()
    fine = all(_known(name, how) for name, how in fixes.items())
    return Adapted(tuple(fixes.items())) if fine else Adapted()


def _known(name: str, how: str | int | None) -> bool:
    if how is None:
        return name in (*SPARE, SYSTEM)
    if isinstance(how, str):
        return (name, how) == ("max_tokens", "max_completion_tokens")
    return how >= 1 and name in (*LIMITS, "top_logprobs", "logprobs")


def adapted_to(data: bytes, message: str, sent: Mapping[str, Any], known: Adapted, ours: Collection[str]) -> Adapted | None:
    """What is known with what this refusal says of a parameter that was sent, or None where it says nothing of one.

    `message` is what the refusal says, `data` its whole body; `ours` are the parameters that may be changed, all but those
    that the user has written.
    """
    named, words = _named(data, message)
    for limit in LIMITS:
        if limit in sent and limit in ours and (named == limit or _speaks_of(words, limit)):
            return _limited(limit, words, sent, known)
    if "max_tokens" in sent and "max_tokens" in ours and "max_completion_tokens" in words:
        return known.having("max_tokens", "max_completion_tokens")
    chosen = [name for name in SPARE if name in sent and name in ours]
    for name in [name for name in chosen if named == name] or [name for name in chosen if _speaks_of(words, name)]:
        if name in ("top_logprobs", "logprobs"):
            return _fewer_alternatives(words, sent, known)
        return known.having(name, None)
    if "response_format" in chosen and _speaks_of(words, "json_schema"):
        return known.having("response_format", None)
    system = any(part.get("role") == SYSTEM for part in sent.get("messages", ()))
    if system and (named == "messages.role" or _NO_SYSTEM.search(words)) and _REFUSING.search(words):
        return known.having(SYSTEM, None)
    return None


def folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation without a system role: what it says stands before the first words of the user."""
    system = "\n\n".join(str(message["content"]) for message in messages if message["role"] == SYSTEM)
    rest = [message for message in messages if message["role"] != SYSTEM]
    if not system:
        return messages
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _in_words(name: str, how: str | int | None) -> str:
    if name == SYSTEM:
        return "the system message stands in the user's turn"
    if how is None:
        return f"{name} is left out"
    return f"{name} is {how}" if isinstance(how, str) else f"{name} is at most {how:,}"


def _limited(limit: str, words: str, sent: Mapping[str, Any], known: Adapted) -> Adapted | None:
    """A limit of tokens is renamed or lowered, and never left out: answers without an end cost money."""
    if limit == "max_tokens" and ("max_completion_tokens" in words or not re.search(r"\d", words)):
        if _TOO_LONG.search(words) and "instead" not in words:
            return None
        return known.having("max_tokens", "max_completion_tokens")
    most = _most_below(words, int(sent[limit]))
    if most < LEAST_TOKENS or (_TOO_LONG.search(words) and "completion tokens" not in words and "output tokens" not in words and limit + "` must" not in words):
        return None
    # The fix of a renamed one is its own: the order of fixes is the order in which they are applied.
    return known.having(limit, most)


def _fewer_alternatives(words: str, sent: Mapping[str, Any], known: Adapted) -> Adapted:
    """Fewer alternatives where that will do, else no log-probabilities at all."""
    name = "top_logprobs" if "top_logprobs" in sent else "logprobs"
    value = sent[name]
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        most = _most_below(words, value) or (ALTERNATIVES if name in words and value > ALTERNATIVES else 0)
        if most:
            return known.having(name, most)
    known = known.having("logprobs", None)
    return known.having("top_logprobs", None) if "top_logprobs" in sent else known


def _most_below(words: str, number: int) -> int:
    """The largest number in the words that is below one; 0 where there is none."""
    found = [int(digits.replace(",", "")) for digits in re.findall(r"(?<![\w.])\d[\d,]{0,8}(?![\w.]*\d)", words)]
    return max((value for value in found if 0 < value < number), default=0)


def _speaks_of(words: str, name: str) -> bool:
    """Whether a message names a parameter; a name that is an English word must look like one."""
    escaped = re.escape(name)
    if name not in WORDS:
        return re.search(rf"(?<![\w.]){escaped}(?!\w)", words) is not None
    quoted = rf"['\"`]{escaped}['\"`]"
    before = rf"(?:parameters?|arguments?|fields?|property|option|keys?|name|value for)[\s:]+{escaped}\b"
    behind = (
        rf"(?<![\w.]){escaped}(?:\s*:|\s+(?:parameter|is not|is unsupported|is un|not supported|not permitted|not allowed|must|should|does not|cannot|can't))"
    )
    return re.search(f"{quoted}|{before}|{behind}", words, re.IGNORECASE) is not None


def _named(data: bytes, message: str) -> tuple[str | None, str]:
    """The parameter that a refusal names in a field of its own, and its words, without what it quotes of the request."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None, message
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None, message
    if isinstance(error.get("detail"), list):
        # FastAPI's: `{"loc": ["body", "seed"], "msg": …, "input": the whole request}`.
        faults = [fault for fault in error["detail"] if isinstance(fault, dict)]
        places = [[str(part) for part in fault.get("loc", ())] for fault in faults if isinstance(fault.get("loc"), list)]
        place = next((part for parts in places for part in parts[1:] if not part.isdigit()), None)
        return place, "; ".join(f"{'.'.join(parts)}: {fault.get('msg', '')}" for parts, fault in zip(places, faults, strict=False))
    param = error.get("param")
    if not isinstance(param, str):
        return None, message
    if param.startswith("messages"):
        return ("messages.role" if param.endswith("role") else None), message
    return re.split(r"[.\[]", param)[0], message
