"""A ranker with an expert: a second set of its last layers, which reads the instructions that a gate sends to it.

What people want of an answer to a chat (much of it) and of one that could do harm (little, or none) hinder each other in the few weights of a
small encoder. So the lower layers are shared and the last ones are there twice, each with a head of its own. The gate is one linear layer over
the mean state of x behind the shared layers: it knows the instruction alone, so that all pairs of a record are read by the same weights.
(A mixture of two experts that is chosen once a record: Jacobs et al. 1991, with a hard gate.)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blendkit.models.encoder import layers_of, with_layers
from blendkit.models.encoder_reader import EncoderReader

if TYPE_CHECKING:
    from blendkit.models.pairrm import PairRM


class Expert(nn.Module):
    """The expert's layers, head and paired bias, and the gate. They start as copies of the ranker's own; the gate starts shut."""

    def __init__(self, ranker: PairRM, layers: int) -> None:
        super().__init__()
        encoder: Any = ranker.pretrained_model
        self.layers = deepcopy(layers_of(encoder)[-layers:])
        self.head_layer = deepcopy(ranker.head_layer)
        if ranker.config.paired_layers:
            self.paired_bias = deepcopy(ranker.paired_bias)
        self.gate = nn.Linear(encoder.config.hidden_size, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -1.0)


def with_expert(ranker: PairRM, expert: PairRM | None, layers: int) -> PairRM:
    """The ranker, with the last `layers` layers and the head of another one as its expert, or with a copy of its own; the gate is shut."""
    from blendkit.models.pairrm import PairRM

    config = copy(ranker.config)
    config.expert_layers = layers
    found = PairRM(config, ranker.pretrained_model)
    found.load_state_dict(ranker.state_dict(), strict=False)
    found.expert = Expert(expert or ranker, layers)
    return found.train(ranker.training)


def without_expert(ranker: PairRM) -> PairRM:
    """The ranker that reads what the gate does not send to the expert; the weights are the same objects."""
    return _ranker(ranker, ranker.pretrained_model, ranker)


def expert_alone(ranker: PairRM) -> PairRM:
    """The ranker that reads what the gate sends to the expert; the lower layers are the same objects."""
    assert ranker.expert is not None
    encoder: Any = ranker.pretrained_model
    shared = layers_of(encoder)[: -ranker.config.expert_layers]
    return _ranker(ranker, with_layers(encoder, [*shared, *ranker.expert.layers]), ranker.expert)


def _ranker(ranker: PairRM, encoder: Any, owner: PairRM | Expert) -> PairRM:
    from blendkit.models.pairrm import PairRM

    config = copy(ranker.config)
    config.expert_layers = 0
    found = PairRM(config, encoder)
    found.head_layer = owner.head_layer
    if config.paired_layers:
        found.paired_bias = owner.paired_bias
    return found.train(ranker.training)


class Gate:
    """Calls say of each x whether the expert reads its record. In float32 whatever the ranker's number type, so that this does not depend on it."""

    def __init__(self, ranker: PairRM, pad: int | None, device: torch.device, packed: bool = True) -> None:
        """`packed=False` runs the encoder as transformers does."""
        assert ranker.expert is not None
        encoder: Any = ranker.pretrained_model
        shared = with_layers(encoder, layers_of(encoder)[: -ranker.config.expert_layers])
        self.reader = EncoderReader(shared, pad, device, torch.float32, places_only=False, packed=packed)
        self.linear = deepcopy(ranker.expert.gate).to(device, torch.float32)

    @torch.inference_mode()
    def __call__(self, sources: Sequence[tuple[int, ...]]) -> list[bool]:
        return [bool(found) for found in self.linear(self.means(sources))[:, 0] > 0]

    def means(self, sources: Sequence[tuple[int, ...]]) -> Tensor:
        """What the gate sees of each x: the mean state of its tokens behind the shared layers, [n, H], float32 on the device."""
        return torch.stack([states.mean(0) for states in self.reader.states(sources)])
