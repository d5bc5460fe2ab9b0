"""Texts quoted in prompts: data between fences that no text can forge."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fence_for(texts: Iterable[str]) -> str:
    """A run of `=` longer than any in the texts, so that none of them can end its own quotation."""
    longest = max((len(run) for text in texts for run in re.findall("=+", text)), default=0)
    return "=" * max(8, longest + 1)


def quoted(fence: str, parts: Iterable[tuple[str, str]]) -> str:
    """Each (heading, text) behind a fence with its heading; a last fence ends the material."""
    return "\n".join([*(f"{fence} {heading}\n{text}" for heading, text in parts), f"{fence} END"])
