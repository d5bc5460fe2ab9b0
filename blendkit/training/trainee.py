"""What a kind of model does to be trained: the contract between the shared loop and the files of the kinds."""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from blendkit.errors import UsageError
from blendkit.models.layer_list import layers_of
from blendkit.terminal_text import count_of
from blendkit.training.examples import Example


@dataclass
class Part:
    """What goes through the network at a time; `count` is how many terms its loss sums."""

    inputs: Any
    count: float
    tokens: int


class Trainee(nn.Module, ABC):
    """One kind of model in training. Its forward gives the summed loss of a part."""

    # A step reads at most so many candidates of a record, and about so many characters of a text.
    sampled: int = sys.maxsize
    longest: int = sys.maxsize
    # What decides the weights and is in no flag, such as the lengths of a checkpoint to go on from.
    decides: Mapping[str, Any] = {}

    @abstractmethod
    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """The examples of a step, cut into what fits in memory."""

    @abstractmethod
    def scores(self, example: Example, rng: random.Random) -> list[float] | None:
        """Scores of the example's candidates, for the evaluation; None for a model that gives none."""

    def characters(self, example: Example) -> float:
        """About how much text of an example a step reads; examples are shared among processes by it."""
        lengths = [min(self.longest, len(text)) for text in example.candidates]
        return min(self.longest, len(example.source)) + sum(lengths) * min(1.0, self.sampled / max(1, len(lengths)))

    def network(self) -> nn.Module:
        """The encoder or decoder, without the head, whose lower layers may be left as they are. Raises UsageError for a kind that has no such thing."""
        raise UsageError("--freeze: this kind of ranker has no layers to leave as they are")

    def freeze(self, count: int) -> None:
        """Leaves the embeddings and the first layers as they are.

        Raises:
            UsageError: the kind has no such layers, or no more than that.
        """
        freeze_layers(self.network(), count)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes a checkpoint that the commands load."""


def freeze_layers(network: Any, count: int) -> None:
    """Leaves the weights below a network's upper layers as they are: its embeddings, its first `count` layers, and all that its layers share.

    Raises:
        UsageError: it has no more layers than that.
    """
    upper = upper_layers(layers_of(network), count)
    network.requires_grad_(False)
    for layer in upper:
        layer.requires_grad_(True)


def upper_layers(layers: Any, count: int) -> Any:
    """The layers above the first `count`. Raises UsageError where there are none."""
    if count >= len(layers):
        raise UsageError(f"--freeze {count}: expected less than the {count_of(len(layers), 'layer')} that the model has")
    return layers[count:]
