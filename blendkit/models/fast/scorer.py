"""Logits of pairs, by the fastest path that a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blendkit.models.fast.encoder import packed_encoder
from blendkit.models.loading import to_device
from blendkit.models.pairrm import PairRM

if TYPE_CHECKING:
    from blendkit.models.pair_inputs import PairInputs, Segment


class PairScorer:
    """Calls give s_ij, [B], float32 on the CPU.

    BERT, RoBERTa, MPNet, DeBERTa-v2/v3 and ModernBERT run packed (`models.fast.encoder`). Any other encoder, and any
    with `packed=False`, runs as transformers has it, padded to the longest input of the batch.
    """

    def __init__(self, network: PairRM, inputs: PairInputs, device: torch.device, dtype: torch.dtype, packed: bool = True) -> None:
        self.inputs, self.device = inputs, device
        self.encoder = packed_encoder(network.pretrained_model, network.config.candidate_bias, device, dtype) if packed else None
        if self.encoder is None:
            self.network = network.to(device, dtype).eval()
        self.head = network.head_layer.to(device, torch.float32 if self.encoder else dtype).eval()

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Sequence[Segment]]) -> Tensor:
        if self.encoder is None:
            inputs, markers = self.inputs.collate(rows)
            logits: Tensor = self.network(to_device(inputs, self.device), markers.to(self.device))
            return logits.float().cpu()
        states = self.encoder(self.inputs.pack(rows).to(self.device))
        source, first, second = states.unbind(1)
        left, right = self.head(torch.cat([source, first], -1)), self.head(torch.cat([source, second], -1))
        return (left - right).mean(-1).float().cpu()  # type: ignore[no-any-return]
