"""Sentence BLEU (Papineni et al. 2002) by sacrebleu, with effective order, 0 to 100."""

from __future__ import annotations

from sacrebleu.metrics import BLEU

from blendkit.scorers.base import Item, Scorer


class Bleu(Scorer):
    """sacrebleu's own numbers."""

    about = "sentence BLEU by sacrebleu, 0 to 100"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._metric = BLEU(effective_order=True)

    def score(self, items: list[Item]) -> list[float]:
        return [float(self._metric.sentence_score(item.candidate, [item.reference]).score) for item in items]

    @property
    def signature(self) -> str:
        return f"bleu|{self._metric.get_signature()}"
