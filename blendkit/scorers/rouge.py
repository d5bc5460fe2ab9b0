"""ROUGE-1, -2, -L and -Lsum F1 (Lin 2004) by rouge-score, 0 to 1."""

from __future__ import annotations

from importlib.metadata import version

from blendkit.scorers.base import Item, TextScorer
from blendkit.signature import Signature


class Rouge(TextScorer):
    """rouge-score's F1, with the Porter stemmer; a label keeps the kind: `mine=rouge2`."""

    about, paper, bounds = "ROUGE F1 by rouge-score, with stemming", "Lin 2004", "0 to 1"

    def __init__(self, name: str, kind: str) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        super().__init__(name)
        self.kind, self.settings = kind, (kind,)
        self._scorer = RougeScorer([kind], use_stemmer=True)

    def score(self, items: list[Item]) -> list[float]:
        return [float(self._scorer.score(item.reference, item.candidate)[self.kind].fmeasure) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature(self.kind, "f1", stem=True, v=f"rouge-score-{version('rouge-score')}"))
