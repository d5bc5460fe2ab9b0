"""Sentence BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu, 0 to 100."""

from __future__ import annotations

from typing import Any, ClassVar

from blendkit.scorers.base import Item, TextScorer
from blendkit.scorers.tokenizers import AUTO, HAN, KANA, UNSPACED, Tokenized, make_tokenizer
from blendkit.signature import Signature


def _single(metric: Any) -> Any:
    # sacrebleu's signature counts the references of what was scored last; here there is one, always.
    metric.num_refs = 1
    return metric


class Bleu(Tokenized):
    """With effective order, as sacrebleu's own sentence BLEU."""

    about, paper, bounds = "sentence BLEU by sacrebleu", "Papineni et al. 2002", "0 to 100"
    own_tokenizer = "13a"
    # Tokenizers that `sacrebleu --tokenize` has, and that need no other package: a score must not depend on what is installed.
    by_script: ClassVar[dict[str, str]] = {HAN: "zh", KANA: "char", UNSPACED: "char"}

    def __init__(self, name: str, tokenize: str = own_tokenizer) -> None:
        self.settings = (tokenize,)
        super().__init__(name, tokenize)

    def variant(self, tokenizer: str) -> Any:
        from sacrebleu.metrics import BLEU

        metric = _single(BLEU(effective_order=True))
        metric.tokenizer = make_tokenizer(tokenizer)
        metric.tokenizer_signature = metric.tokenizer.signature()
        return metric

    def score(self, items: list[Item]) -> list[float]:
        return [float(self.variants[self.choice(item)].sentence_score(item.candidate, [item.reference]).score) for item in items]

    def signed(self, tokenizer: str) -> str:
        if tokenizer != AUTO:
            return str(Signature(self.name, str(self.variants[tokenizer].get_signature())))
        own = str(self.variants[self.own_tokenizer].get_signature())
        return str(Signature(self.name, own.replace(f"tok:{self.own_tokenizer}", f"tok:{AUTO}")))


class Chrf(TextScorer):
    """chrF2: character 6-grams, recall counted twice."""

    about, paper, bounds = "chrF2, character n-grams, by sacrebleu", "Popović 2015", "0 to 100"

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics import CHRF

        super().__init__(name)
        self.metric = _single(CHRF())

    def score(self, items: list[Item]) -> list[float]:
        return [float(self.metric.sentence_score(item.candidate, [item.reference]).score) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature(self.name, str(self.metric.get_signature())))
