"""Exact match and token F1, as SQuAD defines them (Rajpurkar et al. 2016), 0 to 1."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from blendkit.scorers.base import Item
from blendkit.scorers.tokenizers import AUTO, Tokenized, make_tokenizer, words
from blendkit.signature import Signature

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """Words in lower case, without punctuation and English articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


class Overlap(Tokenized):
    """Compares words. SQuAD's own are those between spaces, without ASCII's punctuation and English articles."""

    own_tokenizer = "squad"
    head: ClassVar[str]

    def __init__(self, name: str, tokenize: str = own_tokenizer) -> None:
        self.settings = (tokenize,)
        super().__init__(name, tokenize)

    def variant(self, tokenizer: str) -> Callable[[str], list[str]]:
        if tokenizer == self.own_tokenizer:
            return normalised
        other = make_tokenizer(tokenizer)
        return lambda text: words(text, other)

    def score(self, items: list[Item]) -> list[float]:
        scores = []
        for item in items:
            taken_apart = self.variants[self.choice(item)]
            scores.append(self.compared(taken_apart(item.candidate), taken_apart(item.reference)))
        return scores

    @staticmethod
    @abstractmethod
    def compared(candidate: list[str], reference: list[str]) -> float:
        """The score of two lists of words."""

    def signed(self, tokenizer: str) -> str:
        if tokenizer == self.own_tokenizer:
            return str(Signature(self.head, norm="squad"))
        return str(Signature(self.head, tok=AUTO if tokenizer == AUTO else make_tokenizer(tokenizer).signature()))


class ExactMatch(Overlap):
    """1 when candidate and reference are the same words."""

    about, paper, bounds = "the same words as the reference (SQuAD's normalisation)", "Rajpurkar et al. 2016", "0 or 1"
    empty, head = "1 if both are", "exact-match"

    @staticmethod
    def compared(candidate: list[str], reference: list[str]) -> float:
        return float(candidate == reference)


class TokenF1(Overlap):
    """Harmonic mean of the shares of words that the two have in common."""

    about, paper, bounds = "F1 of words shared with the reference (SQuAD's normalisation)", "Rajpurkar et al. 2016", "0 to 1"
    empty, head = "1 if both are, else 0", "token-f1"

    @staticmethod
    def compared(candidate: list[str], reference: list[str]) -> float:
        if not candidate or not reference:
            return float(candidate == reference)
        common = sum((Counter(candidate) & Counter(reference)).values())
        return 2 * common / (len(candidate) + len(reference))
