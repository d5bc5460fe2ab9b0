"""How fast and for how much an endpoint may be asked: requests and tokens a minute, and what they cost."""

from __future__ import annotations

import asyncio
import time

from blendkit.errors import BlendkitError, EndpointError


class RateLimit:
    """Spaces requests out so that neither requests nor tokens exceed their number a minute; None is no limit."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self.requests, self.tokens = requests, tokens
        self._free = 0.0
        self._paused = 0.0

    async def wait(self, tokens: int) -> None:
        """Returns when a request of so many tokens may be sent."""
        now = time.monotonic()
        start = max(now, self._free)
        spacing = max(60 / self.requests if self.requests else 0.0, 60 * tokens / self.tokens if self.tokens else 0.0)
        self._free = start + spacing
        if start > now:
            await asyncio.sleep(start - now)
        while (left := self._paused - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def pause(self, seconds: float) -> None:
        """Holds everybody back: the server said so."""
        self._paused = max(self._paused, time.monotonic() + seconds)


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
