"""How fast, how many at a time and for how much an endpoint may be asked."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from blendkit.errors import BlendkitError, EndpointError

# Files that a process opens beside its connections.
SPARE_FILES = 16


class RateLimit:
    """Spaces requests out so that neither requests nor tokens exceed their number a minute; None is no limit."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self.requests, self.tokens = requests, tokens
        # Slots are given out on a clock that stands still while the server wants quiet, `_held` seconds in all until
        # `_quiet`: so they keep their distance behind a pause, too.
        self._free = float("-inf")
        self._held = self._quiet = 0.0

    async def wait(self, tokens: int) -> None:
        """Returns when a request of so many tokens may be sent."""
        slot = max(max(time.monotonic(), self._quiet) - self._held, self._free)
        self._free = slot + max(60 / self.requests if self.requests else 0.0, 60 * tokens / self.tokens if self.tokens else 0.0)
        while (left := slot + self._held - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def pause(self, seconds: float) -> None:
        """Holds everybody back: the server said so."""
        now = time.monotonic()
        self._held += max(0.0, now + seconds - max(now, self._quiet))
        self._quiet = max(self._quiet, now + seconds)


def connections(wanted: int, endpoints: int) -> tuple[int, int]:
    """How many of the wanted connections each of several endpoints can have, at least one, and how many files this process may open.

    The process's own limit is raised as far as the system lets it, where that is needed.
    """
    try:
        import resource
    except ImportError:  # Windows counts no files
        return wanted, wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/dev/fd")) + SPARE_FILES
    needed = taken + wanted * endpoints
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return wanted, soft
    most = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    with suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return max(1, min(wanted, (soft - taken) // endpoints)), soft


class CostLimit(EndpointError):
    """The next request could exceed --max-cost (69)."""


class Meter:
    """Counts tokens and money of what was really asked, not of what a cache had."""

    def __init__(self, price_in: float, price_out: float, most: float | None) -> None:
        """Prices in $ a million tokens; `most` in $."""
        self.price_in, self.price_out, self.most = price_in, price_out, most
        self.requests = self.cached = self.prompt_tokens = self.completion_tokens = 0
        self.spent = self._promised = 0.0

    @property
    def priced(self) -> bool:
        """Whether there are prices at all."""
        return bool(self.price_in or self.price_out)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In $."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> BlendkitError | None:
        """Puts aside the most that a request can cost, or says that there is not enough left."""
        cost = self.cost(prompt_tokens, completion_tokens)
        if self.most is not None and self.spent + self._promised + cost > self.most:
            return CostLimit(f"--max-cost {self.most:g}: ${self.spent:.4f} are spent, and the next answer could exceed it; all answers so far are kept")
        self._promised += cost
        return None

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """A request ended: with so many tokens, or (None) without an answer."""
        self._promised = max(0.0, self._promised - self.cost(*reserved))
        if used is not None:
            self.requests += 1
            self.prompt_tokens += used[0]
            self.completion_tokens += used[1]
            self.spent += self.cost(*used)

    def describe(self) -> dict[str, float]:
        """For the manifest."""
        counts: dict[str, float] = {"requests": self.requests, "cached": self.cached}
        counts |= {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, "cost": round(self.spent, 6)} if self.priced else counts


def retry_after(headers: Any) -> float | None:
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
    except (ValueError, TypeError, OverflowError):
        return None
