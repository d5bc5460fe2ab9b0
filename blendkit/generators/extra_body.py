"""`--extra-body`: parameters of a server's own, at the top level of every request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from blendkit.errors import RecordError, UsageError
from blendkit.untrusted import json_value

# What a request is about; a stream would be no answer that is read here.
NOT_EXTRA = {"messages": "the prompt is blendkit's own", "prompt": "the prompt is blendkit's own", "stream": "answers are read whole"}
LIMITS = ("max_tokens", "max_completion_tokens")
_SECRET = re.compile(r"(?:api[-_]?key|password|secret|authorization|(?:access|auth)[-_]?token)$", re.IGNORECASE)


def extra_body_of(text: str | None) -> dict[str, Any] | None:
    """The object of the flag.

    Raises:
        UsageError: it is no JSON object.
    """
    if text is None:
        return None
    try:
        found = json_value(text)
    except RecordError as error:
        raise UsageError(f"--extra-body: {error}") from error
    if not isinstance(found, dict):
        raise UsageError("--extra-body: expected a JSON object, such as '{\"top_k\": 40}'")
    return found


def check_extra_body(found: Mapping[str, Any] | None, place: str = "--extra-body") -> None:
    """Raises UsageError for what no request may say for itself, or what is no JSON (TOML has dates, too)."""
    for name, value in (found or {}).items():
        if name in NOT_EXTRA and value:
            raise UsageError(f"{place}: {name}: {NOT_EXTRA[name]}")
        if name == "n" and value not in (None, 1):
            raise UsageError(f"{place}: n: an answer a request is read; --num-return asks for several")
        if name in LIMITS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{place}: {name}: expected a number of tokens, at least 1")
    try:
        orjson.dumps(found, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError as error:
        raise UsageError(f"{place}: it cannot be written as JSON: {error}") from None
    if any(isinstance(value, float) and not math.isfinite(value) for _, value in _values(found)):
        raise UsageError(f"{place}: a number in it is not finite, which JSON does not have")


def with_extra(body: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request with what was added to it, which stands above ours; null leaves out one of ours."""
    if not extra:
        return dict(body)
    found = {name: value for name, value in {**body, **extra}.items() if name not in extra or value is not None}
    if any(name in extra for name in LIMITS):
        # There is one limit of tokens, and it is theirs.
        found = {name: value for name, value in found.items() if name not in LIMITS or name in extra}
    return found


def secrets_in(extra: object) -> list[str]:
    """Texts of it that are named like secrets, at any depth."""
    return [value for name, value in _values(extra) if isinstance(value, str) and _SECRET.search(name)]


def _values(extra: object) -> Iterator[tuple[str, object]]:
    """All that is in it, with its name where it has one."""
    waiting = [("", extra)]
    while waiting:
        name, value = waiting.pop()
        yield name, value
        if isinstance(value, Mapping):
            waiting += [(str(key), part) for key, part in value.items()]
        elif isinstance(value, list):
            waiting += [(name, part) for part in value]
