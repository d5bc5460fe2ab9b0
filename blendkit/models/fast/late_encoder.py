"""The packed encoders of a late-paired ranker: its own, and the one that its head for relevance may have."""

from __future__ import annotations

import torch

from blendkit.errors import NoInputError
from blendkit.models.fast.encoder import FAMILIES, PackedEncoder, packed_encoder
from blendkit.models.layer_list import layers_of, with_layers
from blendkit.models.pairrm import PairRM
from blendkit.terminal_text import count_of


def packed(
    network: PairRM, device: torch.device, dtype: torch.dtype, markers_only: bool = True, gradients: bool = False, attends: bool = True
) -> PackedEncoder:
    """The packed form of a late-paired ranker's encoder. Raises NoInputError where there is none for its kind, or it has too few layers."""
    encoder, asked = network.pretrained_model, network.config.paired_layers
    found = packed_encoder(encoder, 0.0, device, dtype, markers_only, gradients, attends)
    name, kind = getattr(encoder, "name_or_path", "") or "the ranker", encoder.config.model_type  # type: ignore[union-attr]
    if found is None:
        raise NoInputError(f"{name}: paired_layers: a late-paired ranker has an encoder of one of {', '.join(FAMILIES)}, and this is a {kind}")
    if len(found.layers) < (asked or 0):
        raise NoInputError(f"{name}: paired_layers: expected at most {count_of(len(found.layers), 'layer')}, got {asked}")
    return found


def own_encoder(network: PairRM, shared: PackedEncoder, gradients: bool = False) -> PackedEncoder | None:
    """`shared` with copies of its last layers, to which the head for relevance adds; None where that head has no layers of its own.

    With `gradients`, they reach what is added.
    """
    head, encoder = network.relevance, network.pretrained_model
    if head is None or not head.own_layers:
        return None
    below = list(layers_of(encoder))[: -head.own_layers]
    # With all layers, as a family may tell by its number how a layer attends.
    found = packed_encoder(with_layers(encoder, [*below, *head.own(encoder)]), 0.0, *shared.where, markers_only=False, gradients=gradients, attends=False)
    assert found is not None
    # Not there twice.
    found.embeddings, found.layers[: len(below)] = shared.embeddings, shared.layers[: len(below)]
    return found
