"""What those kinds of ranker share that read one candidate at a time: a part is one record's group of candidates."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from blendkit.errors import UsageError
from blendkit.training.examples import Example, Pair, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.trainee import Part, Trainee


def expect_no_pairs(new: NewRanker) -> None:
    """Raises UsageError for a setting that only a ranker has which reads two candidates together."""
    if new.mode != "pairs" or new.candidate_bias is not None or new.paired_layers is not None:
        raise UsageError("--mode, --candidate-bias and --paired-layers are for --kind pairranker")


class Pointwise(Trainee):
    """A subclass says how texts become input (`rows`), how it is scored (`logits`), and what the loss of a group is (`group_loss`)."""

    pairing: Pairing | None = None
    model: Any

    def __init__(self, candidates: int) -> None:
        """`candidates` of each record are sampled a step."""
        super().__init__()
        self.sampled = candidates

    @classmethod
    def start(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Makes a ranker that is ready to be trained.

        Raises:
            UsageError: a setting that the kind does not have.
            NoInputError: there is no such model.
        """
        expect_no_pairs(new)
        trainee = cls.of(new, pairing)
        if new.checkpointing:
            trainee.model.gradient_checkpointing_enable()
        return trainee

    @classmethod
    @abstractmethod
    def of(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Takes from the settings what concerns this kind."""

    @abstractmethod
    def rows(self, example: Example) -> Any:
        """The example's candidates as the network reads them."""

    @abstractmethod
    def logits(self, rows: Any) -> Tensor:
        """Gives the candidates' scores, [N, T]."""

    @abstractmethod
    def group_loss(self, logits: Tensor, labels: Tensor, pairs: list[Pair]) -> Tensor:
        """Gives the mean loss of a group; `pairs` holds (better, worse) where the kind has a `pairing`, and is empty otherwise."""

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Makes a part of each record, and leaves out one that has no pair to learn from."""
        found = []
        for example in examples:
            _, group = example.sampled(self.sampled, rng)
            pairs = self.pairing.of(group, rng) if self.pairing else []
            if pairs or not self.pairing:
                found.append(Part((self.rows(group), group.labels, pairs), 1.0, sum(map(len, group.candidates)) // 4))
        return found

    def forward(self, part: Part) -> Tensor:
        """Gives the group's mean loss, so that every record counts the same."""
        rows, labels, pairs = part.inputs
        logits = self.logits(rows)
        return self.group_loss(logits, torch.tensor(labels, device=logits.device), pairs)

    def network(self) -> torch.nn.Module:
        """The backbone, without a classifier's head."""
        return self.model.base_model  # type: ignore[no-any-return]

    def scores(self, example: Example, rng: random.Random) -> list[float]:
        """Gives each candidate's mean score over tasks."""
        found: list[float] = self.logits(self.rows(example)).float().mean(dim=1).tolist()
        return found
