"""Training SummaReranker (Ravaut et al. 2022): it reads x and one candidate, and says for each Q function whether it is the best."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from blendkit.models.encoder import load_encoder, without_attention_dropout
from blendkit.models.encoder_reader import longest_input, padded
from blendkit.models.loading import to_device
from blendkit.models.mixture_of_experts import SummaRerankerHead, save_summareranker
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.scorers.simcls import grow_markers
from blendkit.scorers.summareranker import summareranker_ids
from blendkit.training.examples import Example, Pair, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.losses import best_or_not
from blendkit.training.pointwise import Pointwise


class SummaRerankerTrainee(Pointwise):
    """A fresh head of `tasks` towers on any encoder; `score --metric summareranker:DIR` loads it.

    Raises:
        NoInputError: there is no such encoder.
    """

    def __init__(self, backbone: str, *, tasks: int = 1, candidates: int = 12, source_maxlength: int = 128, candidate_maxlength: int = 128) -> None:
        super().__init__(candidates)
        self.model, self.tokenizer = load_encoder(backbone)
        without_attention_dropout(self.model)
        grow_markers(self.tokenizer, self.model)
        self.texts = TextTokenizer(self.tokenizer)
        self.head = SummaRerankerHead(tasks, self.model.config.hidden_size)
        for gate in self.head.moe.w_gate:
            torch.nn.init.normal_(gate, std=0.02)
        # Both texts and four special tokens must fit.
        fits = longest_input(self.model, self.tokenizer)
        self.lengths = min(source_maxlength, fits // 3), min(candidate_maxlength, fits - min(source_maxlength, fits // 3) - 6)

    @classmethod
    def of(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Takes the backbone, the number of labels, the candidates a step and the lengths."""
        return cls(
            new.backbone_of("summareranker"), tasks=new.tasks, candidates=new.candidates,
            source_maxlength=new.source_maxlength or 128, candidate_maxlength=new.candidate_maxlength or 128,
        )  # fmt: skip

    def rows(self, example: Example) -> list[tuple[int, ...]]:
        """Gives the candidates as the scorer `summareranker` reads them."""
        return summareranker_ids(self.texts, example.source, example.candidates, *self.lengths)

    def logits(self, rows: list[tuple[int, ...]]) -> Tensor:
        """Gives the towers' logits, [N, T]."""
        inputs = to_device(padded(rows, self.tokenizer.pad_token_id), next(self.model.parameters()).device)
        return self.head(self.model(**inputs).last_hidden_state[:, 0]).float()  # type: ignore[no-any-return]

    def group_loss(self, logits: Tensor, labels: Tensor, pairs: list[Pair]) -> Tensor:
        """Asks of each task which candidate is the best of the group."""
        return best_or_not(logits, labels)

    def save(self, folder: Path) -> None:
        """Writes the layout that the scorer `summareranker` loads."""
        save_summareranker(folder, self.model, self.head, self.tokenizer, *self.lengths)
