"""SummaReranker (Ravaut et al. 2022): x and candidate read together, a mixture of experts for several metrics on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blendkit.models.cuts import Cuts, read_to
from blendkit.models.loading import choose_device
from blendkit.models.number_type import encoder_dtype
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.scorers.simcls import CANDIDATE, SOURCE, with_markers
from blendkit.signature import Signature


def summareranker_ids(
    tokenizer: TextTokenizer, source: str, candidates: Sequence[str], source_maxlength: int, candidate_maxlength: int, cuts: Cuts | None = None
) -> list[tuple[int, ...]]:
    """`<s><source> x </s><candidate> y </s>` for each candidate y; x and y are cut to their lengths, markers not counted; `cuts` counts."""

    def cut(marker: str, text: str, longest: int) -> list[int]:
        return read_to(longest + 1, tokenizer, marker + tokenizer.material(text), cuts)

    x = cut(SOURCE, source, source_maxlength)
    # The second text brings its end, and no start.
    return [(*x, *cut(CANDIDATE, text, candidate_maxlength)[1:]) for text in candidates]


class SummaReranker(ModelScorer):
    """σ of the mean of the tasks' logits, as the reference code has it."""

    about, paper, bounds = "probability of being the best, from a mixture of experts on x and candidate", "Ravaut et al. 2022", "0 to 1"
    needs_reference, needs_source = False, True
    default_model = ""
    plans_ahead = True
    empty = "the model's"

    def __init__(self, name: str, model: str, device: str = "auto", dtype: str = "auto") -> None:
        from blendkit.models.encoder_reader import EncoderReader
        from blendkit.models.mixture_of_experts import load_summareranker

        super().__init__(name, model)
        self.device = choose_device(device)
        encoder, head, self.tokenizer, config = load_summareranker(model)
        with_markers(self.tokenizer, encoder, model)
        self.texts = TextTokenizer(self.tokenizer)
        self.source_maxlength, self.candidate_maxlength = config["source_maxlength"], config["candidate_maxlength"]
        self.head = head.to(self.device)
        self.dtype = encoder_dtype(dtype, self.device, encoder.config, self.hints)
        self.reader = EncoderReader(encoder, self.tokenizer.pad_token_id, self.device, self.dtype, places_only=True)
        self.job = Job(f"summareranker:{model}", self._scores)

    def rounds(self, items: list[Item]) -> Scores:
        """One work a distinct (x, candidate)."""
        lengths = self.source_maxlength, self.candidate_maxlength
        # Those of a record have one x, which is read once.
        rows = summareranker_ids(self.texts, items[0].source, [item.candidate for item in items], *lengths, self.cuts) if items else []
        return (yield [Work(self.job, row, len(row), row) for row in rows])

    def logits(self, rows: list[tuple[int, ...]]) -> Any:
        """Task logits, [n, tasks]."""
        import torch

        with torch.inference_mode():
            return self.head(self.reader.at(rows, [[0]] * len(rows))[:, 0])

    def _scores(self, payloads: list[Any]) -> list[float]:
        """Scores of token ids."""
        return self.logits(payloads).mean(1).sigmoid().tolist()  # type: ignore[no-any-return]

    @property
    def signature(self) -> str:
        return str(Signature("summareranker", model=self.model_at, max=f"{self.source_maxlength}+{self.candidate_maxlength}"))
