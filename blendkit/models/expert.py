"""A late-paired ranker with an expert: a second set of its last layers, for the instructions that a gate knows.

People want long answers to chats, and short ones or none where an answer could do harm. A small encoder's few weights do not learn both well.
So the lower layers are shared and the last ones are there twice, each with a head of its own. The gate is one linear layer over the mean state of x
as the encoder gives it when it is cut off behind the shared layers, and its output between 0 and 1 is the expert's share: a logit is the mean of the
two that the ranker and its expert give, weighted by it. It knows the instruction alone, so that all pairs of a record are weighted the same, and most
records have a share of 0 or 1 and are read once. (A mixture of experts, Jacobs et al. 1991.)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.layer_list import layers_of, with_layers
from blendkit.models.pairrm import PairRM, SecondLayers, made_of


def with_expert(ranker: PairRM, expert: PairRM | None, layers: int) -> PairRM:
    """A ranker with the last `layers` layers and the head of another one as its expert, or with a copy of its own; the gate is shut."""
    return made_of(ranker.config, ranker.pretrained_model, ranker, SecondLayers(expert or ranker, layers), ranker.relevance)


def without_expert(ranker: PairRM) -> PairRM:
    """The ranker that reads what is not the expert's, which is itself where it has none; the weights are the same objects."""
    if ranker.expert is None:
        return ranker
    return made_of(ranker.config, ranker.pretrained_model, ranker, relevance=ranker.relevance)


def expert_alone(ranker: PairRM) -> PairRM:
    """The ranker that reads what is the expert's, without a head for relevance; the lower layers are the same objects."""
    assert ranker.expert is not None
    encoder = with_layers(ranker.pretrained_model, [*_shared(ranker), *ranker.expert.layers])
    return made_of(ranker.config, encoder, ranker.expert)


def _shared(ranker: PairRM) -> Any:
    return layers_of(ranker.pretrained_model)[: -ranker.config.expert_layers]


class Gate:
    """Calls give the expert's share of each x's record, 0 to 1.

    It computes in float32 whatever the ranker's number type, so that the type does not decide who reads a record.
    """

    def __init__(self, ranker: PairRM, pad: int | None, device: torch.device, packed: bool = True) -> None:
        """`packed=False` runs the encoder as transformers does."""
        assert ranker.expert is not None
        encoder = with_layers(ranker.pretrained_model, _shared(ranker))
        # transformers' own modules are placed where they are, and the ranker's stay as they are. A few short texts need no kernel that compiles.
        encoder = encoder if packed else deepcopy(encoder)
        self.reader = EncoderReader(encoder, pad, device, torch.float32, places_only=False, packed=packed, attends=False)
        self.linear = deepcopy(ranker.expert.gate).to(device, torch.float32)

    @torch.inference_mode()
    def __call__(self, sources: Sequence[tuple[int, ...]]) -> list[float]:
        found: list[float] = self.linear(self.means(sources))[:, 0].clamp(0, 1).tolist()
        return found

    def means(self, sources: Sequence[tuple[int, ...]]) -> Tensor:
        """What the gate sees of each x: the mean state of its tokens, [n, H], float32 on the device."""
        return torch.stack([states.mean(0) for states in self.reader.states(sources)])
