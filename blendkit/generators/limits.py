"""How fast, how many at a time and for how much an endpoint may be asked."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC
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

    def pause(self, seconds: float) -> bool:
        """Holds everybody back: the server said so. True where this is news, and not the same wait that another request was told of."""
        now = time.monotonic()
        longer = max(0.0, now + seconds - max(now, self._quiet))
        self._held += longer
        self._quiet = max(self._quiet, now + seconds)
        return longer > seconds / 2


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


class Purse:
    """What all models of a run may spend together, in $; each asks from a thread of its own."""

    def __init__(self, most: float | None, name: str = "--max-cost") -> None:
        self.most, self.name = most, name
        self.spent = self.promised = 0.0
        self._lock = threading.Lock()

    def reserve(self, cost: float) -> BlendkitError | None:
        """Puts aside the most that a request can cost, or says that there is not enough left."""
        with self._lock:
            if self.most is not None and self.spent + self.promised + cost > self.most:
                return CostLimit(f"{self.name} {self.most:g}: ${self.spent:.4f} are spent, and the next answer could exceed it; all answers so far are kept")
            self.promised += cost
        return None

    def settle(self, reserved: float, used: float) -> None:
        """A request ended, and cost so much."""
        with self._lock:
            self.promised = max(0.0, self.promised - reserved)
            self.spent += used


class Meter:
    """Counts tokens and money of what was really asked, not of what a cache had."""

    def __init__(self, price_in: float | None, price_out: float | None, *purses: Purse) -> None:
        """Prices in $ a million tokens, None where there is none; each answer is paid from all of the purses."""
        self.price_in, self.price_out, self.purses = price_in, price_out, purses
        self.requests = self.cached = self.prompt_tokens = self.completion_tokens = 0
        self.spent = 0.0

    @property
    def priced(self) -> bool:
        """Whether there are prices at all; 0 is one."""
        return self.price_in is not None or self.price_out is not None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In $."""
        return (prompt_tokens * (self.price_in or 0.0) + completion_tokens * (self.price_out or 0.0)) / 1e6

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> BlendkitError | None:
        """Puts aside the most that a request can cost, or says that there is not enough left."""
        cost = self.cost(prompt_tokens, completion_tokens)
        for number, purse in enumerate(self.purses):
            if (fault := purse.reserve(cost)) is not None:
                for other in self.purses[:number]:
                    other.settle(cost, 0.0)
                return fault
        return None

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """A request ended: with so many tokens, or (None) without an answer."""
        cost = 0.0 if used is None else self.cost(*used)
        for purse in self.purses:
            purse.settle(self.cost(*reserved), cost)
        if used is not None:
            self.requests += 1
            self.prompt_tokens += used[0]
            self.completion_tokens += used[1]
            self.spent += cost

    def describe(self) -> dict[str, float]:
        """For the manifest."""
        counts: dict[str, float] = {"requests": self.requests, "cached": self.cached}
        counts |= {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, "cost": round(self.spent, 6)} if self.priced else counts


def retry_after(headers: Any) -> float | None:
    """Seconds, from `retry-after-ms` or from `Retry-After` in seconds or as a date; None when it says nothing."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("Retry-After")
    ways: list[tuple[Any, Callable[[Any], float]]] = [(milliseconds, lambda text: float(text) / 1000), (value, float), (value, _until)]
    for text, read in ways:
        with suppress(ValueError, TypeError, OverflowError):
            # A number that is none (nan) asks for nothing.
            return max(0.0, read(text))
    return None


def _until(value: str) -> float:
    """Seconds from now to a date; one without a zone is GMT, as all of HTTP's are."""
    date = parsedate_to_datetime(value)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
