"""Which candidate the others are measured against, as `rank_with_ref` of the reference implementation chooses it.

Each function gives an index among texts; lengths are in characters, and among equals the earlier one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from blendkit.errors import RecordError
from blendkit.rankers import REFERENCES


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


def reference_index(mode: str, models: Sequence[str], texts: Sequence[str]) -> int:
    """The index of the candidate that a mode, or the name of a candidate's model, chooses.

    Raises:
        RecordError: it is neither a mode nor the model of a candidate here.
    """
    if mode in REFERENCES:
        index: int = REFERENCES[mode].load()(texts)
        return index
    if mode in models:
        return models.index(mode)
    raise RecordError("candidates", f"--reference {mode}: expected {', '.join(REFERENCES)}, or one of these models: {', '.join(dict.fromkeys(models))}")
