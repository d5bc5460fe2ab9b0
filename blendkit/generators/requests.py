"""A prompt as the body of a request, and what is known of a body before it is sent."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from blendkit.generators.base import Prompt
from blendkit.generators.options import Sampling


def request_body(model: str, api: str, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """What is asked, in the form of the chat or the completions API."""
    request: dict[str, Any] = {"model": model}
    if api == "chat":
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
        request["logprobs"] = True if api == "chat" else 0
    if sampling.alternatives:
        chat = api == "chat"
        request |= {"logprobs": True, "top_logprobs": sampling.alternatives} if chat else {"logprobs": sampling.alternatives}
    if sampling.effort and api == "chat":
        request["reasoning_effort"] = sampling.effort
    if sampling.schema:
        request["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": sampling.schema}}
    return request


def digest(body: dict[str, Any]) -> str:
    """A hash of everything that decides the answer; a batch's custom_id has room for 64 characters."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def tokens(body: dict[str, Any]) -> int:
    """About four characters a token."""
    text = body.get("prompt") or "".join(message["content"] for message in body.get("messages", ()))
    return len(text) // 4 + 1


def answer_tokens(body: dict[str, Any]) -> int:
    """The most that an answer may have."""
    return int(body.get("max_completion_tokens") or body["max_tokens"])
