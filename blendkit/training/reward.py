"""Training a scalar reward model (Ouyang et al. 2022): -log σ(r_better - r_worse) over a record's pairs, on any backbone, causal ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from blendkit.errors import UsageError
from blendkit.models.conversations import Conversations
from blendkit.models.encoder_reader import longest_input, padded
from blendkit.models.loading import to_device
from blendkit.models.pretrained import pretrained
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.scorers.base import Item
from blendkit.scorers.regression import Input
from blendkit.scorers.reward import reward_inputs
from blendkit.training.examples import Example, Pair, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.losses import PAIR_LOSSES
from blendkit.training.pointwise import Pointwise


class RewardTrainee(Pointwise):
    """A sequence-classification model with one output; `score --metric reward:DIR` loads it.

    Raises:
        NoInputError: there is no such backbone.
        UsageError: several tasks, or no such loss.
    """

    def __init__(self, backbone: str, pairing: Pairing, *, tasks: int = 1, loss: str = "instructgpt", candidates: int = 12) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        super().__init__(candidates)
        if tasks != 1:
            raise UsageError("--kind reward: one --label, as a reward is one number")
        if loss not in PAIR_LOSSES:
            raise UsageError(f"--loss {loss}: expected one of {', '.join(PAIR_LOSSES)}")
        what = "model that a reward model could start from"
        self.tokenizer: Any = pretrained(AutoTokenizer, backbone, what)
        self.model = pretrained(AutoModelForSequenceClassification, backbone, what, num_labels=1, dtype=torch.float32)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Without one, transformers cannot tell where the rows of a batch end.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id or 0
        self.pairing, self.loss = pairing, PAIR_LOSSES[loss]
        self.chats = Conversations(TextTokenizer(self.tokenizer))
        self.longest = longest_input(self.model, self.tokenizer)

    @classmethod
    def of(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Takes the backbone or the checkpoint, the loss and the candidates a step."""
        return cls(str(new.backbone or new.init), pairing, tasks=new.tasks, loss=new.loss, candidates=new.candidates)

    def rows(self, example: Example) -> list[Input]:
        """Gives the candidates as the scorer `reward` reads them."""
        conversation = (("user", example.source),)
        items = [Item(example.source, text, "", example.id, place, messages=conversation) for place, text in enumerate(example.candidates)]
        return reward_inputs(self.chats, items, self.longest)

    def logits(self, rows: list[Input]) -> Tensor:
        """Gives the rewards, [N, 1]."""
        inputs = padded([ids for ids, _ in rows], self.model.config.pad_token_id)
        if all(types is not None for _, types in rows):
            inputs["token_type_ids"] = padded([types or () for _, types in rows], 0)["input_ids"]
        found: Tensor = self.model(**to_device(inputs, next(self.model.parameters()).device)).logits
        return found.float()

    def group_loss(self, logits: Tensor, labels: Tensor, pairs: list[Pair]) -> Tensor:
        """Gives the mean loss over the pairs that the pairing took of this group."""
        left, right = torch.tensor(pairs, device=logits.device).T
        return self.loss(logits[left], logits[right], labels[left], labels[right]).mean()

    def save(self, folder: Path) -> None:
        """Writes the Hugging Face layout of a sequence-classification model."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
