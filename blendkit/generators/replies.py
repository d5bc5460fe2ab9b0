"""Reads replies of servers without trusting them: the bytes of a body become a completion, or an error with one clear reason.

The bodies come from a connection, from a batch's output and, in a form of our own, from a cache's rows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import orjson

from blendkit.generators.base import Completion

# Of a refusal, no more than this is read.
REFUSAL_BYTES = 1 << 16
CHUNK_OVERHEAD = 1 << 16
MOST_TOKENS = 10**9

Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] | Annotated[float, msgspec.Meta(ge=0, le=MOST_TOKENS)]
# Servers round a probability of 1 to a little above it, and write -9999 for one of 0.
Logprob = Annotated[float, msgspec.Meta(ge=-1e9, le=0.01)]


class BadReply(Exception):
    """A server answered, but the answer holds no completion. The message goes behind the server's name."""


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Likely(msgspec.Struct):
    token: str
    logprob: Logprob | None = None


class _Token(msgspec.Struct):
    logprob: Logprob
    token: str = ""
    top_logprobs: list[_Likely] | None = None


class _ChatLogprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _TextLogprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[Logprob | None] | None = None
    top_logprobs: list[dict[str, Logprob] | None] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


NOTHING = msgspec.Raw(b"null")


class _ChatChoice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING


class _TextChoice(msgspec.Struct):
    text: str | None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING


Choice = TypeVar("Choice")


class _Reply(msgspec.Struct, Generic[Choice]):
    choices: list[Choice]
    usage: msgspec.Raw = NOTHING


class _Kept(msgspec.Struct):
    text: str
    finish_reason: str | None
    usage: dict[str, Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)]] | None
    logprob: Logprob | None = None
    alternatives: dict[str, Logprob | None] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion, and whether the server's count of tokens could be believed; one that could not is left out."""

    completion: Completion
    believable: bool


def read_reply(data: bytes, api: str, logprobs: bool = False) -> Reply:
    """The first choice of a response's body, whichever of its fields is not what it should be.

    Only what is used is read, so that what else a server sends makes no objects. Log-probabilities are read where they
    were asked for; a usage that is absurd does not cost the answer.

    Raises:
        BadReply: it holds no completion.
    """
    kind: Any = _Reply[_ChatChoice] if api == "chat" else _Reply[_TextChoice]
    reply = _decoded(data, kind, "an answer that is no completion")
    if not reply.choices:
        raise BadReply("answers with an empty list of choices")
    choice = reply.choices[0]
    text = choice.message.content if api == "chat" else choice.text
    mean, others = (_chat_logprobs if api == "chat" else _text_logprobs)(choice.logprobs) if logprobs else (None, None)
    usage, believable = _usage(reply.usage)
    return Reply(Completion(text or "", choice.finish_reason, usage, mean, others), believable)


def read_kept(data: bytes) -> Completion | None:
    """A completion as `Completion.as_dict` keeps it; None for anything else."""
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except (ValueError, RecursionError):
        return None
    others = {token: value for token, value in (kept.alternatives or {}).items() if value is not None}
    return Completion(kept.text, kept.finish_reason, kept.usage, kept.logprob, others or None)


def what_it_says(data: bytes) -> str:
    """The message of a refusal: `error.message` of its body where there is one, else the whole body."""
    try:
        error = orjson.loads(data)["error"]
        text = error["message"] if isinstance(error, dict) else error
        if isinstance(text, str):
            return text
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    return data.decode(errors="replace")


async def read_body(reply: Any, limit: int, whole: bool = True) -> bytes:
    """The body of an aiohttp response, decompressed: at most `limit` bytes of it are ever in memory.

    Raises:
        BadReply: it is longer, damaged, or packed in another way than was asked for. Where it need not be `whole`, what could be read is returned instead.
    """
    body = bytearray()
    try:
        await _unpack(reply, limit, body)
    except BadReply:
        if whole:
            raise
    return bytes(body[:limit])


async def _unpack(reply: Any, limit: int, body: bytearray) -> None:
    packing = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise BadReply(f"answers in an encoding that was not asked for: {packing[:40]!r}")
    packed = packing not in ("", "identity")
    arrived, unpacking = 0, zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        async for chunk in reply.content.iter_any():
            arrived += len(chunk)
            if not packed:
                body += chunk
            while packed and chunk and len(body) <= limit:
                if unpacking.eof:
                    # A next member of the same stream.
                    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
                body += unpacking.decompress(chunk, limit + 1 - len(body))
                chunk = unpacking.unconsumed_tail or unpacking.unused_data
            if len(body) > limit or arrived > limit + CHUNK_OVERHEAD:
                raise BadReply(f"answers with a body of more than {limit:,} bytes; --max-body-bytes raises the limit")
    except zlib.error:
        raise BadReply("answers with a body that cannot be decompressed") from None
    if packed and arrived and not unpacking.eof:
        raise BadReply("answers with a compressed body that is cut off")


def _decoded(data: bytes | msgspec.Raw, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BadReply(f"answers with {what}: {_in_our_words(error)}") from None
    except RecursionError:
        raise BadReply(f"answers with {what}: it is nested too deep") from None
    except ValueError:
        raise BadReply("answers with something that is no JSON") from None


def _in_our_words(error: msgspec.ValidationError) -> str:
    """msgspec's "Expected `str`, got `null` - at `$.choices[0].text`", the place first."""
    problem, _, place = str(error).partition(" - at `$.")
    return f"{place.rstrip('`')}: {problem[0].lower()}{problem[1:]}".replace("`", "").removeprefix(": ")


def _usage(data: msgspec.Raw) -> tuple[dict[str, Any] | None, bool]:
    try:
        usage = msgspec.json.decode(data, type=_Usage | None)
    except (ValueError, RecursionError):
        return None, False
    counts = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    return {name: int(count) for name, count in counts.items() if count is not None} or None, True


def _chat_logprobs(data: msgspec.Raw) -> tuple[float | None, dict[str, float] | None]:
    """The mean over tokens, in nats, and what the first token that is no blank could have been."""
    found = _decoded(data, _ChatLogprobs | None, "log-probabilities of another form")
    tokens = (found.content if found else None) or []
    first = next((token for token in tokens if token.token.strip()), None)
    others = {other.token: other.logprob for other in (first.top_logprobs if first else None) or () if other.logprob is not None}
    return _mean([token.logprob for token in tokens]), others or None


def _text_logprobs(data: msgspec.Raw) -> tuple[float | None, dict[str, float] | None]:
    """The same, in the form of the completions API."""
    found = _decoded(data, _TextLogprobs | None, "log-probabilities of another form") or _TextLogprobs()
    pairs = zip(found.tokens or (), found.top_logprobs or (), strict=False)
    others = next((others for token, others in pairs if token.strip()), None)
    return _mean([value for value in found.token_logprobs or () if value is not None]), others or None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
