"""Exact match and token F1, as SQuAD defines them (Rajpurkar et al. 2016), 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter

from blendkit.scorers.base import Item, TextScorer
from blendkit.signature import Signature

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Words in lower case, without punctuation and English articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


class ExactMatch(TextScorer):
    """1 when candidate and reference are the same words."""

    about, paper, bounds = "the same words as the reference (SQuAD's normalisation)", "Rajpurkar et al. 2016", "0 or 1"
    empty = "1 if both are"

    def score(self, items: list[Item]) -> list[float]:
        return [float(normalised(item.candidate) == normalised(item.reference)) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature("exact-match", norm="squad"))


class TokenF1(TextScorer):
    """Harmonic mean of the shares of words that the two have in common."""

    about, paper, bounds = "F1 of words shared with the reference (SQuAD's normalisation)", "Rajpurkar et al. 2016", "0 to 1"
    empty = "1 if both are, else 0"

    def score(self, items: list[Item]) -> list[float]:
        return [_f1(normalised(item.candidate), normalised(item.reference)) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature("token-f1", norm="squad"))


def _f1(candidate: list[str], reference: list[str]) -> float:
    if not candidate or not reference:
        return float(candidate == reference)
    common = sum((Counter(candidate) & Counter(reference)).values())
    return 2 * common / (len(candidate) + len(reference))
