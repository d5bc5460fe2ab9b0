"""BERTScore F1 (Zhang et al. 2020) by the bert-score package, on any encoder."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version

from blendkit.models.encoder import Encoder
from blendkit.models.loading import EMBEDDED, fingerprint
from blendkit.scorers.base import Item, Scorer


class BertScore(Scorer):
    """F1 of greedy token matching, without idf and without rescaling; an empty text scores 0, as in bert-score."""

    about = "BERTScore F1 by bert-score; bertscore:MODEL takes any encoder"

    def __init__(self, name: str, model: str | None = None, device: str = "auto", dtype: str = "auto", layers: int | None = None) -> None:
        super().__init__(name)
        self.encoder = Encoder(model or EMBEDDED, layers, device, dtype)

    def score(self, items: list[Item]) -> list[float]:
        return self.f1([(item.candidate, item.reference) for item in items])

    def f1(self, pairs: list[tuple[str, str]]) -> list[float]:
        """F1 of each (candidate, reference)."""
        from bert_score.utils import bert_cos_score_idf

        # The package fails on an empty text with transformers 5, and gives it 0 with older ones.
        real = [place for place, (candidate, reference) in enumerate(pairs) if candidate.strip() and reference.strip()]
        scores = [0.0] * len(pairs)
        if not real:
            return scores
        tokenizer = self.encoder.tokenizer
        weights: dict[int, float] = defaultdict(lambda: 1.0)
        weights[tokenizer.sep_token_id] = weights[tokenizer.cls_token_id] = 0.0
        found = bert_cos_score_idf(
            self.encoder.model,
            [pairs[place][1] for place in real],
            [pairs[place][0] for place in real],
            tokenizer,
            weights,
            batch_size=len(real),
            device=self.encoder.device,
        )
        for place, value in zip(real, found[:, 2].tolist(), strict=True):
            scores[place] = float(value)
        return scores

    @property
    def signature(self) -> str:
        model = f"{self.encoder.name}@{fingerprint(self.encoder.name)}|layer:{self.encoder.layers}"
        return f"bertscore|f1|model:{model}|idf:no|rescale:no|v:bert-score-{version('bert-score')}"
