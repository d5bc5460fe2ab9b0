"""Which candidate the others are measured against, as `rank_with_ref` of the reference implementation chooses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blendkit.errors import RecordError


def _median_length(texts: Sequence[str]) -> int:
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))[len(texts) // 2]


# Lengths are in characters, and among equals the earlier candidate is taken.
REFERENCES: dict[str, Callable[[Sequence[str]], int]] = {
    "longest": lambda texts: max(range(len(texts)), key=lambda index: len(texts[index])),
    "shortest": lambda texts: min(range(len(texts)), key=lambda index: len(texts[index])),
    "median-length": _median_length,
    "first": lambda texts: 0,
    "last": lambda texts: len(texts) - 1,
}


def reference_index(mode: str, models: Sequence[str], texts: Sequence[str]) -> int:
    """The index of the candidate that a mode, or the name of a candidate's model, chooses.

    Raises:
        RecordError: it is neither a mode nor the model of a candidate here.
    """
    if mode in REFERENCES:
        return REFERENCES[mode](texts)
    if mode in models:
        return models.index(mode)
    raise RecordError("candidates", f"--reference {mode}: expected {', '.join(REFERENCES)}, or one of these models: {', '.join(dict.fromkeys(models))}")
