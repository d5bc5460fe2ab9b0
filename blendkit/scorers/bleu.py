"""Sentence BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu, 0 to 100."""

from __future__ import annotations

from typing import Any

from blendkit.scorers.base import Item, TextScorer
from blendkit.signature import Signature


class SacreBleu(TextScorer):
    """A metric of sacrebleu, a sentence at a time."""

    bounds = "0 to 100"

    def __init__(self, name: str, metric: Any) -> None:
        super().__init__(name)
        self.metric = metric
        # sacrebleu's signature counts the references of what was scored last; here there is one, always.
        metric.num_refs = 1

    def score(self, items: list[Item]) -> list[float]:
        return [float(self.metric.sentence_score(item.candidate, [item.reference]).score) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature(self.name, str(self.metric.get_signature())))


class Bleu(SacreBleu):
    """With effective order, as sacrebleu's own sentence BLEU."""

    about, paper = "sentence BLEU by sacrebleu", "Papineni et al. 2002"

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics import BLEU

        super().__init__(name, BLEU(effective_order=True))


class Chrf(SacreBleu):
    """chrF2: character 6-grams, recall counted twice."""

    about, paper = "chrF2, character n-grams, by sacrebleu", "Popović 2015"

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics import CHRF

        super().__init__(name, CHRF())
