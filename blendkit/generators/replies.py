"""Reads replies of servers without trusting them: the bytes of a body become a completion, or an error with one clear reason.

The bodies come from a connection, from a batch's output and, in a form of our own, from a cache's rows.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import orjson

from blendkit.generators.base import Completion
from blendkit.generators.reasoning import answer_begins, apart
from blendkit.terminal_text import count_of

NOTHING = msgspec.Raw(b"null")
# Of a refusal, no more than this is read.
REFUSAL_BYTES = 1 << 16
CHUNK_OVERHEAD = 1 << 16
MOST_TOKENS = 10**9
DEEPEST = 8  # levels of parts within parts
_SURROGATE = re.compile("[\ud800-\udfff]")

Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)] | Annotated[float, msgspec.Meta(ge=0, le=MOST_TOKENS)]
# Servers round a probability of 1 to a little above it, and write -9999 for one of 0.
Logprob = Annotated[float, msgspec.Meta(ge=-1e9, le=0.01)]


class BadReply(Exception):
    """A server answered, but the answer holds no completion. The message goes behind the server's name."""


class SaidError(Exception):
    """A server answered with an error, though by status 200. The message is its own; `code` is a status or a word, where it gave one.

    `begun`: it had begun an answer, which has been paid for.
    """

    def __init__(self, message: str, code: int | str | None, begun: bool = False) -> None:
        super().__init__(message)
        self.code, self.begun = code, begun


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    completion_tokens_details: msgspec.Raw = NOTHING


class _Details(msgspec.Struct):
    reasoning_tokens: Count | None = None


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
    # A string, null, or parts: `{"type": "text", "text": …}`, `{"type": "thinking", "thinking": …}`, and what else there is.
    content: str | list[Any] | dict[str, Any] | None = None
    # Reasoning by the names that servers give it (DeepSeek's and vLLM's, OpenRouter's and Ollama's).
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    refusal: Any = None


class _ChatChoice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING
    error: Any = None


class _TextChoice(msgspec.Struct):
    text: str | msgspec.UnsetType | None = msgspec.UNSET
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NOTHING
    error: Any = None


Choice = TypeVar("Choice")


class _Reply(msgspec.Struct, Generic[Choice]):
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NOTHING
    error: Any = None


class _Failed(msgspec.Struct):
    """What is looked for in a reply that is of another form than a completion."""

    error: Any = None


class _Kept(msgspec.Struct):
    text: str
    finish_reason: str | None
    usage: dict[str, Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)]] | None
    logprob: Logprob | None = None
    alternatives: dict[str, Logprob | None] | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion; whether the server's count of tokens could be believed (one that could not is left out); whether text had to be repaired."""

    completion: Completion
    believable: bool
    repaired: bool = False


def read_reply(data: bytes, api: str, logprobs: bool = False) -> Reply:
    """The first choice of a response's body, whichever of its fields is not what it should be.

    Only what is used is read, so that what else a server sends makes no objects. Log-probabilities are read where they
    were asked for; a usage that is absurd does not cost the answer.

    Raises:
        BadReply: it holds no completion.
        SaidError: it says that there was an error, in place of an answer or in its midst.
    """
    kind: Any = _Reply[_ChatChoice] if api == "chat" else _Reply[_TextChoice]
    what = "an answer that is no completion"
    repaired = False
    try:
        reply = _typed(data, kind)
    except msgspec.ValidationError as error:
        _said_error(data)
        if not _too_large(error):
            raise BadReply(f"answers with {what}: {_in_our_words(error)}") from None
        reply, repaired = _decoded(_repaired(data), kind, what), True
    except ValueError:
        reply, repaired = _decoded(_repaired(data), kind, what), True
    if reply.error:
        raise _said(reply.error)
    if not reply.choices:
        raise BadReply("answers without choices" if reply.choices is None else "answers with an empty list of choices")
    choice = reply.choices[0]
    if choice.error or choice.finish_reason == "error":
        raise _said(choice.error, begun=True)
    if (choice.message is None) if api == "chat" else (choice.text is msgspec.UNSET):
        raise BadReply(f"answers with {what}: choices[0] has no {'message' if api == 'chat' else 'text'}")
    text, thoughts, finish_reason = _parts(choice.message, choice.finish_reason) if api == "chat" else (choice.text or "", "", choice.finish_reason)
    mean, others = (_chat_logprobs if api == "chat" else _text_logprobs)(choice.logprobs) if logprobs else (None, None)
    usage, believable = _usage(reply.usage)
    answer, inner = apart(text)
    found = [part for part in (thoughts, inner) if part]
    reasoning = "\n\n".join(found) if found else inner
    clean, clean_reasoning = without_faults(answer), reasoning and without_faults(reasoning)
    repaired = repaired or clean != answer or clean_reasoning != reasoning
    return Reply(Completion(clean, finish_reason, usage, mean, others, clean_reasoning), believable, repaired)


def read_kept(data: bytes) -> Completion | None:
    """A completion as `Completion.as_dict` keeps it; None for anything else."""
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except (ValueError, RecursionError):
        return None
    others = {token: value for token, value in (kept.alternatives or {}).items() if value is not None}
    return Completion(kept.text, kept.finish_reason, kept.usage, kept.logprob, others or None, kept.reasoning)


def without_faults(text: str) -> str:
    """The text with U+FFFD in place of what no text holds: halves of surrogate pairs, and NUL."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _parts(message: _Message, finish_reason: str | None) -> tuple[str, str, str | None]:
    """Text, reasoning and finish reason of a message whose content is a string, parts, or nothing."""
    texts, thoughts = [], [_text_of(field) for field in (message.reasoning_content or message.reasoning or message.thinking,) if field]
    content = message.content
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            kind = part.get("type", "text")
            if kind in ("thinking", "reasoning", "reasoning_content", "redacted_thinking"):
                thoughts.append(_text_of({key: value for key, value in part.items() if key != "type"}))
            elif kind in ("text", "output_text"):
                texts.append(_text_of(part.get("text")))
    refused = bool(message.refusal) and not any(texts)
    return "".join(texts), "\n\n".join(filter(None, thoughts)), "refusal" if refused else finish_reason


def _text_of(value: Any, depth: int = 0) -> str:
    """The words of a field that is a string, or an object or list which holds some, a few levels deep."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < DEEPEST:
        return "".join(_text_of(part, depth + 1) for part in value)
    if isinstance(value, dict) and depth < DEEPEST:
        return next((_text_of(value[key], depth + 1) for key in ("text", "thinking", "reasoning", "content", "summary", "value") if value.get(key)), "")
    return ""


def _said_error(data: bytes) -> None:
    """Raises SaidError where a reply of any form has an error in it."""
    try:
        failed = _typed(data, _Failed)
    except ValueError:
        return
    if failed.error:
        raise _said(failed.error)


def _said(error: Any, begun: bool = False) -> SaidError:
    """The server's own words and code, whatever form the error has."""
    if not isinstance(error, dict):
        return SaidError(str(error) if error else "it ended the answer with finish_reason `error`", None, begun)
    codes = [code for code in (error.get("code"), error.get("status"), error.get("type")) if isinstance(code, int | str) and not isinstance(code, bool)]
    number = next((int(code) for code in codes if str(code).isdecimal() and len(str(code)) == 3), None)
    message = error.get("message")
    return SaidError(message if isinstance(message, str) and message else str(error), number or next(iter(codes), None), begun)


def _repaired(data: bytes) -> bytes:
    """The same JSON without what msgspec does not read: half surrogates, bytes that are no UTF-8, infinities.

    Raises:
        BadReply: it is no JSON at all.
    """
    try:
        return json.dumps(_clean(json.loads(data.decode(errors="replace")))).encode()
    except RecursionError:
        raise BadReply("answers with an answer that is no completion: it is nested too deep") from None
    except ValueError:
        raise BadReply("answers with something that is no JSON") from None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, float) and not math.isfinite(value):
        # What servers write for the logarithm of 0.
        return -9999.0 if value < 0 else None
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


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
                raise BadReply(f"answers with a body of more than {count_of(limit, 'byte')}; --max-body-bytes raises the limit")
    except zlib.error:
        raise BadReply("answers with a body that cannot be decompressed") from None
    if packed and arrived and not unpacking.eof:
        raise BadReply("answers with a compressed body that is cut off")


def _typed(data: bytes, kind: Any) -> Any:
    """Raises ValueError for what is no JSON, and of these ValidationError for JSON of another form."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise BadReply("answers with an answer that is no completion: it is nested too deep") from None


def _decoded(data: bytes | msgspec.Raw, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        if _too_large(error):
            return _decoded(_repaired(bytes(data)), kind, what)
        raise BadReply(f"answers with {what}: {_in_our_words(error)}") from None
    except RecursionError:
        raise BadReply(f"answers with {what}: it is nested too deep") from None
    except ValueError:
        raise BadReply("answers with something that is no JSON") from None


def _too_large(error: msgspec.ValidationError) -> bool:
    """Whether a number such as -1e999 is the fault, which is no fault of the answer."""
    return str(error).startswith("Number out of range")


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
    with suppress(ValueError, RecursionError, AttributeError):
        # Of no account where it is absurd: nothing is paid by it.
        counts["reasoning_tokens"] = msgspec.json.decode(usage.completion_tokens_details, type=_Details | None).reasoning_tokens or None
    return {name: int(count) for name, count in counts.items() if count is not None} or None, True


def _chat_logprobs(data: msgspec.Raw) -> tuple[float | None, dict[str, float] | None]:
    """The mean over tokens, in nats, and what the first token that is no blank could have been."""
    found = _decoded(data, _ChatLogprobs | None, "log-probabilities of another form")
    tokens = (found.content if found else None) or []
    tokens = tokens[_answer_begins([token.token for token in tokens]) :]
    first = next((token for token in tokens if token.token.strip()), None)
    others = {other.token: other.logprob for other in (first.top_logprobs if first else None) or () if other.logprob is not None}
    return _mean([token.logprob for token in tokens]), others or None


def _text_logprobs(data: msgspec.Raw) -> tuple[float | None, dict[str, float] | None]:
    """The same, in the form of the completions API."""
    found = _decoded(data, _TextLogprobs | None, "log-probabilities of another form") or _TextLogprobs()
    begin = _answer_begins(found.tokens or [])
    pairs = zip((found.tokens or [])[begin:], (found.top_logprobs or [])[begin:], strict=False)
    others = next((others for token, others in pairs if token.strip()), None)
    return _mean([value for value in (found.token_logprobs or [])[begin:] if value is not None]), others or None


def _answer_begins(tokens: list[str]) -> int:
    """The first token behind the reasoning, where it is among the tokens."""
    text = "".join(tokens)
    end = answer_begins(text)
    if not end:
        return 0
    place = 0
    for number, token in enumerate(tokens):
        if place >= end:
            return number
        place += len(token)
    return len(tokens)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
