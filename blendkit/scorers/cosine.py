"""Cosine of the sentence embeddings of x and a candidate (Reimers and Gurevych 2019): a zero-shot ranker."""

from __future__ import annotations

from typing import Any

from blendkit.models.loading import EMBEDDED, shared
from blendkit.models.unread import UNKNOWN
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature


class Cosine(ModelScorer):
    """Mean-pooled embeddings; each text is embedded once."""

    about, paper, bounds = "cosine of the embeddings of x and candidate", "Reimers and Gurevych 2019", "-1 to 1"
    needs_reference, needs_source = False, True
    default_model = EMBEDDED
    plans_ahead = True
    empty = "that of an embedding of no words"

    def __init__(self, name: str, model: str = EMBEDDED, device: str = "auto", dtype: str = "auto") -> None:
        from blendkit.models.encoder import Encoder

        super().__init__(name, model)
        self.encoder = shared(("encoder", model, None, device, dtype), lambda: Encoder(model, None, device, dtype))
        self.dtype, self.hints = self.encoder.dtype, self.encoder.hints
        self.job = shared(("embed", self.encoder), lambda: Job(f"cosine:{model}", self._embeddings))

    def rounds(self, items: list[Item]) -> Scores:
        """Embeds each text once."""
        texts = list(dict.fromkeys(text for item in items for text in (item.source, item.candidate)))
        ids = self.encoder.ids(texts, self.cuts)
        if items:
            self.unread.count([self.encoder.unknown.most(row) for row in ids], items[0].record_id)
        works = [Work(self.job, text, len(row), row) for text, row in zip(texts, ids, strict=True)]
        embedded = dict(zip(texts, (yield works), strict=True))
        return [float(embedded[item.source] @ embedded[item.candidate]) for item in items]

    def _embeddings(self, payloads: list[Any]) -> list[Any]:
        """Embeddings of token ids."""
        return list(self.encoder.embed(payloads))

    def warnings(self) -> list[str]:
        instead = "a multilingual one can, such as cosine:sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
        return [*super().warnings(), *self.unread_warnings(UNKNOWN.format(self.model_name), instead)]

    @property
    def signature(self) -> str:
        return str(Signature("cosine", model=self.model_at, layer=self.encoder.layers, pool="mean"))
