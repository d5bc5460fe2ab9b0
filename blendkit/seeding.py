"""Derives every random choice from one seed."""

from __future__ import annotations

import hashlib


def seeded(seed: int, *parts: str) -> int:
    """The seed for what `parts` name; it is the same on every machine and in every order of records."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big")
