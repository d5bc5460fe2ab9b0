"""Which candidate the others are measured against, as `rank_with_ref` of the reference implementation chooses it.

Each function gives an index among texts; lengths are in characters, and among equals the earlier one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blendkit.errors import RecordError
from blendkit.names import Called
from blendkit.rankers import REFERENCES
from blendkit.terminal_text import listed, shown


def longest(texts: Sequence[str]) -> int:
    """The one of the most characters."""
    return max(range(len(texts)), key=lambda index: len(texts[index]))


def shortest(texts: Sequence[str]) -> int:
    """The one of the fewest characters."""
    return min(range(len(texts)), key=lambda index: len(texts[index]))


def median_length(texts: Sequence[str]) -> int:
    """The middle one by length; of an even number, the longer of the two."""
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))[len(texts) // 2]


def first(texts: Sequence[str]) -> int:
    """The first."""
    return 0


def last(texts: Sequence[str]) -> int:
    """The last."""
    return len(texts) - 1


def reference_index(mode: str, candidates: Sequence[dict[str, Any]]) -> int:
    """The index of the candidate that a mode, or a candidate's name, chooses.

    Raises:
        RecordError: it is neither a mode nor the name of one candidate here.
    """
    if mode in REFERENCES:
        index: int = REFERENCES[mode].load()([candidate["text"] for candidate in candidates])
        return index
    called = Called(candidates)
    if mode in called:
        return called.place(mode, f"--reference {shown(mode)}")
    raise RecordError("candidates", f"--reference {shown(mode)}: expected {', '.join(REFERENCES)}, or one of these models: {listed(called.methods)}")
