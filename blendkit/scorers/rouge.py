"""ROUGE-1, -2, -L and -Lsum F1 (Lin 2004) by rouge-score, 0 to 1."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from blendkit.scorers.base import Item, Scores
from blendkit.scorers.tokenizers import AUTO, Tokenized, make_tokenizer, words
from blendkit.signature import Signature

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

# What rouge-score's own tokenizer keeps, in lower case; it takes all else for spaces.
_KEPT = re.compile("[a-z0-9]")


class Rouge(Tokenized):
    """rouge-score's F1, with the Porter stemmer; a label keeps the kind: `mine=rouge2`. Other tokenizers than its own stem nothing."""

    about, paper, bounds = "ROUGE F1 by rouge-score, with stemming", "Lin 2004", "0 to 1"
    own_tokenizer = "rouge"

    def __init__(self, name: str, kind: str, tokenize: str = own_tokenizer) -> None:
        self.kind, self.settings = kind, (kind, tokenize)
        super().__init__(name, tokenize)

    def variant(self, tokenizer: str) -> RougeScorer:
        from rouge_score.rouge_scorer import RougeScorer

        own = tokenizer == self.own_tokenizer
        return RougeScorer([self.kind], use_stemmer=own, tokenizer=None if own else _Words(tokenizer))

    def rounds(self, items: list[Item]) -> Scores:
        """Counts the texts of which the metric's own tokenizer leaves little."""
        if items:
            self.unread.count(self._lost(items), items[0].record_id)
        return (yield from super().rounds(items))

    def score(self, items: list[Item]) -> list[float]:
        return [float(self.variants[self.choice(item)].score(item.reference, item.candidate)[self.kind].fmeasure) for item in items]

    def signed(self, tokenizer: str, lost: bool = False) -> str:
        own = tokenizer == self.own_tokenizer
        name = None if own else AUTO if tokenizer == AUTO else make_tokenizer(tokenizer).signature()
        stem = None if tokenizer == AUTO else own
        return str(Signature(self.kind, "f1", stem=stem, tok=name, lost="letters" if lost else None, v=f"rouge-score-{_version()}"))

    def signature_of(self, items: list[Item]) -> str:
        """With `lost:letters` where the metric's own tokenizer leaves little of one of the texts."""
        lost = any(self._lost(items))
        chosen = {self.choice(item) for item in items}
        return " and ".join(sorted(self.signed(choice, lost and choice == self.own_tokenizer) for choice in chosen)) or self.signature

    def _lost(self, items: list[Item]) -> list[bool]:
        """Of each distinct text that goes through the metric's own tokenizer, whether hardly anything is left."""
        return [mostly_lost(text) for text in {text for item in items if self.choice(item) == self.own_tokenizer for text in (item.reference, item.candidate)}]

    def warnings(self) -> list[str]:
        what = "ROUGE's own tokenizer, which knows a to z and 0 to 9, leaves nothing or less than half of the letters"
        return [*super().warnings(), *self.unread_warnings(what, "METRIC:lang, such as rouge1:lang, takes the words of any language")]


class _Words:
    """A tokenizer as rouge-score has them."""

    def __init__(self, name: str) -> None:
        self.tokenizer = make_tokenizer(name)

    def tokenize(self, text: str) -> list[str]:
        return words(text, self.tokenizer)


@cache
def _version() -> str:
    # It reads a file, and every record has a signature.
    return version("rouge-score")


@lru_cache(maxsize=1024)
def mostly_lost(text: str) -> bool:
    """Whether rouge-score's own tokenizer leaves nothing of a text that has something, or less than half of its letters and digits."""
    if text.isascii():
        return not _KEPT.search(text.lower()) and bool(text.strip())
    lower = text.lower()
    kept, letters = len(_KEPT.findall(lower)), sum(map(str.isalnum, lower))
    return 2 * kept < letters or (not kept and bool(text.strip()))
