"""Attention for training, in rows of inputs of about one length, in operations that gradients go through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from blendkit.models.fast.encoder import PackedEncoder
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Relative
from blendkit.models.fast.rows import rows_of

# As good as no attention, and still a number where all is masked.
NEVER = -1e9
# A text joins a longer one's row if no more than half of it is padding: in the last layer, which markers alone read, and in training.
HALF = 0.5


class InRows:
    """Attention for training: the inputs in rows, in operations that gradients go through."""

    def __init__(self, encoder: PackedEncoder) -> None:
        self.encoder = encoder

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """Contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""
        contexts = torch.zeros_like(qkv[:, 0])
        # Without a bound, as gradients keep the whole layer's in any case, and of a step that is computed anew all of one layer's.
        for rows in rows_of(batch, lambda length: 0, HALF):
            n, length = rows.places.shape
            q, k, v = in_cells(qkv.index_select(0, rows.tokens), rows.cells, n * length).view(n, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
            column = torch.arange(length, device=qkv.device)
            distance = column[:, None] - column
            mask = None if rows.real is None else rows.real[:, None, None]
            if window is not None:
                near = distance.abs() <= window
                mask = near if mask is None else mask & near
            if window is not None and mask is not None:
                # Padding may see nothing at all, which some kernels make a NaN of.
                mask = q.new_zeros(()).masked_fill(~mask, NEVER)
            # What queries and keys have no part in is the same for all rows.
            bias = self.encoder.by_distance(relative, q, k, distance[None] if relative is None else distance[None].expand(n, -1, -1), length)
            if bias is not None:
                mask = bias if mask is None else bias.masked_fill(~mask, NEVER)
            # Not cuDNN's, which makes a plan for each new shape, and each step has one.
            with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            contexts = contexts.index_copy(0, rows.tokens, found.transpose(1, 2).flatten(0, 1).index_select(0, rows.cells).to(contexts.dtype))
        return contexts.flatten(1)


def in_cells(tokens: Tensor, cells: Tensor, count: int) -> Tensor:
    """Tokens [t, …] at their places [t] among `count` cells, zeros elsewhere [count, …].

    Padding is no copy of a token: the gradients of thousands of copies are added up one after the other on a GPU.
    """
    return tokens.new_zeros(count, *tokens.shape[1:]).index_copy(0, cells, tokens)
