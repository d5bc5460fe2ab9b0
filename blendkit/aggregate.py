"""Comparisons into ranks (LLM-Blender, section 3.3). A new aggregation is a function and a line in AGGREGATIONS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def matrix(pairs: Iterable[Sequence[float]], n: int) -> Matrix:
    """M, [n, n]: M[i, j] is the logit of candidate i (shown first) over j; 0 where a pair was not compared."""
    m = np.zeros((n, n))
    for i, j, logit in pairs:
        m[int(i), int(j)] = logit
    return m


def max_logits(m: Matrix) -> Matrix:
    """Scores [n]: the mean over all n of M[i, :] - M[:, i] (the paper writes a sum; the ranks are the same)."""
    # Rounded, because the same sum taken in another order must stay a tie.
    return np.asarray((m - m.T).mean(axis=-1).round(9))


def max_wins(m: Matrix) -> Matrix:
    """Scores [n]: comparisons won, shown first or second. A logit of 0 is nobody's win."""
    return np.asarray((m > 0).sum(axis=-1) + (m < 0).sum(axis=-2), dtype=np.float64)


AGGREGATIONS: dict[str, Callable[[Matrix], Matrix]] = {"max-logits": max_logits, "max-wins": max_wins}


def ranks_from_scores(scores: Iterable[float]) -> list[int]:
    """1 is best (the highest score); ties share the lowest rank, as the reference implementation has it."""
    values = list(scores)
    ordered = sorted(values, reverse=True)
    places: dict[float, int] = {}
    for place, value in enumerate(ordered, 1):
        places.setdefault(value, place)
    return [places[value] for value in values]


VERDICT_LOGITS = {"A": (1.0, -1.0), "B": (-1.0, 1.0), "tie-good": (0.5, 0.5), "tie-bad": (-0.5, -0.5), "unparsed": (0.0, 0.0)}


def verdict_matrix(verdicts: Iterable[dict[str, Any]], n: int) -> Matrix:
    """GPT-Rank's matrix [n, n] as the reference code fills it: a win is +1 and -1, a tie is the same on both sides.

    Several verdicts on one pair (both orders, say) add up.
    """
    m = np.zeros((n, n))
    for verdict in verdicts:
        a, b = verdict["a"], verdict["b"]
        forward, backward = VERDICT_LOGITS[verdict["verdict"]]
        m[a, b] += forward
        m[b, a] += backward
    return m
