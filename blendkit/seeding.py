"""One seed, and from it every random choice."""

from __future__ import annotations

import hashlib


def seeded(seed: int, *parts: str) -> int:
    """A seed of its own for each thing that is named, the same on every machine and in every order of records."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big")
