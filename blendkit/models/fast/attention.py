"""Attention over packed inputs, one input at a time or all in one compiled kernel; `rows` and `varlen` have it in two more forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from blendkit.models.fast.compiled import compiled
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Buckets, Disentangled, Relative, Shared
from blendkit.models.fast.transfer import sent

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Numbers of one table of relative scores, [heads, T, rows]: 128 MB in bfloat16.
TABLE, TOKENS = 1 << 26, 1 << 15


class PerInput:
    """One input at a time: its scores stay in cache, and no token is padding. For CPUs."""

    def __init__(self, buckets: Buckets | None, candidate_bias: float, shared: Shared | None = None) -> None:
        self.disentangled = Disentangled(buckets) if buckets else None
        self.candidate_bias, self.shared = candidate_bias, shared

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """Contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""
        if relative is not None and self.disentangled is not None:
            return self.disentangled(qkv, batch.bounds, batch.longest, relative)
        contexts = qkv.new_zeros(qkv.shape[0], *qkv.shape[2:])
        for start, end in batch.bounds:
            q, k, v = (qkv[start:end, part].transpose(0, 1)[None] for part in range(3))
            mask = self._mask(batch, start, end, window, qkv.dtype) if self.shared is None else self._kept(self.shared, batch, start, end)
            contexts[start:end] = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[0].transpose(0, 1)
        return contexts.flatten(1)

    def _kept(self, shared: Shared, batch: Packed, start: int, end: int) -> Tensor:
        """The bias by distance and the one between candidates, [1, h, L, L], made once for all layers."""
        found: Tensor | None = batch.kept.get(("shared", start))
        if found is None:
            places, across = batch.places[start:end], self._mask(batch, start, end, None, shared.table.dtype)
            found = shared.bias(places, places)[None]
            found = batch.kept["shared", start] = found if across is None else found + across
        return found

    def _mask(self, batch: Packed, start: int, end: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        bias = None
        if self.candidate_bias:
            types = batch.types[start:end]
            bias = ((types[:, None] * types == 2).to(dtype) * self.candidate_bias)[None, None]
        if window is not None and end - start > window + 1:
            near = torch.ones(end - start, end - start, dtype=torch.bool, device=batch.ids.device).triu(-window).tril(window)
            return torch.where(near, 0.0 if bias is None else bias, float("-inf")).to(dtype).view(1, 1, *near.shape)
        return bias


class Flex:
    """All inputs of a batch in one kernel: FlexAttention with a mask of documents, compiled on a GPU.

    DeBERTa's relative scores are looked up inside the kernel (`score_mod`), so that no L×L tensor is written.
    """

    def __init__(self, buckets: Buckets | None, candidate_bias: float, shared: Shared | None = None) -> None:
        self.buckets, self.candidate_bias, self.shared = buckets, candidate_bias, shared

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """Contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""
        blocks = batch.kept.get(window)
        if blocks is None:
            blocks = batch.kept[window] = block_mask(batch, window)
        parts = []
        for some in self._heads(qkv, relative):
            q, k, v = (qkv[:, part, some].transpose(0, 1)[None] for part in range(3))
            score_mod = self._score_mod(q, k, batch, relative, some)
            parts.append(_flex(qkv.device.type)(q, k, v, score_mod=score_mod, block_mask=blocks, scale=1.0)[0].transpose(0, 1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(1)

    def _heads(self, qkv: Tensor, relative: Relative | None) -> list[slice]:
        """The heads in equal parts, whose tables of relative scores take no more than TABLE numbers each, where one head's do not already.

        Batches of up to TOKENS are in the same parts, as the kernel is compiled for their number of heads.
        """
        heads = qkv.shape[2]
        if relative is None or self.buckets is None:
            return [slice(0, heads)]
        a_head = max(len(qkv), TOKENS) * 2 * self.buckets.span
        most = next(some for some in range(heads, 0, -1) if heads % some == 0 and (some * a_head <= TABLE or some == 1))
        return [slice(first, first + most) for first in range(0, heads, most)]

    def _score_mod(self, q: Tensor, k: Tensor, batch: Packed, relative: Relative | None, some: slice) -> Callable[..., Tensor] | None:
        offsets, types = batch.offsets, batch.types
        if relative is not None and self.buckets is not None:
            low, high = self.buckets.met(batch.longest)
            table, centre = self.buckets.rows(batch.longest)
            # Those of the rows that are met, from 0 on. Scores between two inputs are masked, yet computed: their row must stay inside, too.
            table, last = (table - low).clamp(0, high - low - 1), len(table) - 1
            zero = q.new_zeros(1, 1, 1)
            to_keys = zero if relative.keys is None else q[0] @ relative.keys[some, low:high].transpose(1, 2)
            to_queries = zero if relative.queries is None else k[0] @ relative.queries[some, low:high].transpose(1, 2)
            use_keys, use_queries = relative.keys is not None, relative.queries is not None

            def disentangled(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                row = table[(offsets[i] - offsets[j] + centre).clamp(0, last)]
                if use_keys:
                    score = score + to_keys[h, i, row]
                return score + to_queries[h, j, row] if use_queries else score

            return disentangled
        shared = self.shared
        if self.candidate_bias or shared is not None:
            # Two vectors: the compiler fails on whole numbers in a score, and on a captured one that is no whole number.
            first, second = ((types == role).to(q.dtype) for role in (1, 2))
            first = first * self.candidate_bias
            if shared is not None:
                places, by_distance, furthest, end = batch.places, shared.table, shared.centre, shared.table.shape[1] - 1

            def apart(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                if shared is not None:
                    # As DeBERTa's above: the compiler fails on a captured number that is turned or multiplied.
                    score = score + by_distance[h, (places[i] - places[j] + furthest).clamp(0, end)]
                return score + first[i] * second[j] + first[j] * second[i]

            return apart
        return None


def block_mask(batch: Packed, window: int | None, side: int = 128) -> BlockMask:
    """FlexAttention's mask of a batch: a token sees its own input, and no further than `window` to each side.

    The blocks come from the inputs' bounds. torch's own `create_block_mask` would write all T×T cells first.
    """
    from torch.nn.attention.flex_attention import BlockMask

    owner, offsets = batch.owner, batch.offsets
    # A tensor: the compiler fails on a captured Python number.
    reach = torch.full((1,), len(offsets) if window is None else window, dtype=torch.int32, device=batch.ids.device)

    def same_input(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = owner[i] == owner[j]
        return same if window is None else same & ((offsets[i] - offsets[j]).abs() <= reach[0])

    tokens = len(batch.ids)
    ends = np.array([*(end for _, end in batch.bounds), tokens])
    starts = np.concatenate([[0], ends[:-1]])
    firsts = np.arange(0, tokens, side)
    lasts = np.minimum(firsts + side, tokens) - 1
    first_owner, last_owner = np.searchsorted(ends, firsts, "right"), np.searchsorted(ends, lasts, "right")
    low, high = starts[first_owner], ends[last_owner] - 1
    if window is not None:
        low, high = np.maximum(low, firsts - window), np.minimum(high, lasts + window)
    column = np.arange(len(firsts))
    seen = (column >= low[:, None] // side) & (column <= high[:, None] // side)
    # Where both blocks lie inside one input all cells count, and the kernel need not ask cell by cell.
    inside = (firsts >= low[:, None]) & (lasts <= high[:, None]) & (first_owner == last_owner)[:, None]
    whole = inside if window is None else np.zeros_like(seen)

    def listed(blocks: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        order = np.argsort(~blocks, axis=1, kind="stable")
        return torch.from_numpy(blocks.sum(axis=1)), torch.from_numpy(order)

    some, where, full, where_full = (part[None, None].int() for part in sent((*listed(seen & ~whole), *listed(whole)), batch.ids.device))
    return BlockMask.from_kv_blocks(some, where, full, where_full, BLOCK_SIZE=side, mask_mod=same_input, seq_lengths=(tokens, tokens))


@cache
def _flex(device: str) -> Any:
    """FlexAttention, compiled for a GPU; elsewhere its eager form, which is the same function written out."""
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention) if device == "cuda" else flex_attention
