"""Training SimCLS (Liu and Liu 2021): x and candidates are encoded apart, and their cosines are ranked by margins, the reference above all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.encoder import load_encoder, without_attention_dropout
from blendkit.models.encoder_reader import longest_input, padded
from blendkit.models.loading import to_device
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.scorers.simcls import grow_markers, simcls_ids
from blendkit.training.examples import Example, Pair, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.losses import simcls
from blendkit.training.pointwise import Pointwise

Rows = tuple[list[tuple[int, ...]], bool]


class SimCLSTrainee(Pointwise):
    """A dual encoder; `score --metric simcls:DIR` loads it. Without a reference in the record, only the candidates are ranked.

    Raises:
        NoInputError: there is no such encoder.
    """

    def __init__(self, backbone: str, *, tasks: int = 1, candidates: int = 12, source_maxlength: int = 128, candidate_maxlength: int = 128) -> None:
        super().__init__(candidates)
        self.model, self.tokenizer = load_encoder(backbone)
        without_attention_dropout(self.model)
        grow_markers(self.tokenizer, self.model)
        self.texts = TextTokenizer(self.tokenizer)
        fits = longest_input(self.model, self.tokenizer)
        self.lengths = min(source_maxlength, fits), min(candidate_maxlength, fits)

    @classmethod
    def of(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Takes the backbone, the number of labels, the candidates a step and the lengths."""
        return cls(
            new.backbone_of("simcls"), tasks=new.tasks, candidates=new.candidates,
            source_maxlength=new.source_maxlength or 128, candidate_maxlength=new.candidate_maxlength or 128,
        )  # fmt: skip

    def rows(self, example: Example) -> Rows:
        """Gives the ids of x, of the candidates, and of the reference where there is one; and whether there is one."""
        texts = [*example.candidates, *([example.reference] if example.reference else [])]
        ids = [simcls_ids(self.texts, example.source, 0, self.lengths), *(simcls_ids(self.texts, text, 1, self.lengths) for text in texts)]
        return ids, bool(example.reference)

    def logits(self, rows: Rows) -> Tensor:
        """Gives the candidates' cosines, [N, 1], without the reference's."""
        return self._similarities(rows)[: len(rows[0]) - 1 - rows[1], None]

    def _similarities(self, rows: Rows) -> Tensor:
        # x is often much shorter than the answers: by itself it needs no padding.
        source, texts = (self._states(found) for found in (rows[0][:1], rows[0][1:]))
        return functional.cosine_similarity(source, texts)

    def _states(self, ids: list[tuple[int, ...]]) -> Tensor:
        inputs = to_device(padded(ids, self.tokenizer.pad_token_id), next(self.model.parameters()).device)
        states: Tensor = self.model(**inputs).last_hidden_state[:, 0]
        return states.float()

    def forward(self, part: Any) -> Tensor:
        """Gives the group's loss, which takes the reference's cosine behind the candidates'."""
        rows, labels, pairs = part.inputs
        found = self._similarities(rows)
        n = len(labels)
        return self.group_loss(found, torch.tensor(labels, device=found.device)[:n], pairs)

    def group_loss(self, logits: Tensor, labels: Tensor, pairs: list[Pair]) -> Tensor:
        """Ranks by margins, by the labels' sum over tasks. Without a reference, the highest cosine stands in for it, which adds no loss."""
        n = len(labels)
        candidates = logits[:n]
        reference = logits[n] if len(logits) > n else candidates.detach().max()
        return simcls(candidates[None], reference[None], labels.sum(dim=1)[None])

    def save(self, folder: Path) -> None:
        """Writes an encoder's layout, with the lengths in its config."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        path = folder / "config.json"
        lengths = {"source_maxlength": self.lengths[0], "candidate_maxlength": self.lengths[1]}
        path.write_text(json.dumps(json.loads(path.read_text()) | lengths, indent=2) + "\n")
