"""DeBERTa's attention in one Triton kernel, for CUDA: scores stay on the chip, as in FlashAttention. This module needs Triton: import it where it is used.

A program has a block of one input's queries i and goes over blocks of its keys j, with the softmax as a running sum (Milakov and Gimelshein 2018). What
distances add to a block of scores is taken from products with rows of the relative embeddings, by distance: i - j takes 2B - 1 values in a block of B by B,
those of two aligned blocks of the table. Of the two products each place (x, c) is needed once, so they are merged into one tile [B, B], and row x of it
is turned by x: score (x, y) is at (x, (x - y) mod B). So nothing is looked up by bucket, and nothing as large as the scores is in memory.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Buckets, Relative
from blendkit.models.fast.transfer import sent

# Queries and keys of a block in half precision, and in float32, which takes twice the registers. Of nine ways tried on an H200 in bfloat16 these were the
# quickest: 0.9 ms a layer of DeBERTa-v3-large with 32,768 tokens, against 1.1 to 2.3.
BLOCK, BLOCK_FLOAT = 64, 32
# In float32 four warps would have too few registers for what they multiply without matrix cores.
WARPS, WARPS_FLOAT = 4, 8
# How many blocks of keys are on their way at a time. Only cards of compute capability 9 and 10 have shared memory for more than one.
STAGES = 2


def attention(qkv: Tensor, batch: Packed, relative: Relative, buckets: Buckets) -> Tensor:
    """Contexts [T, h·d] of packed queries (scaled), keys and values [T, 3, h, d]. Zeros for tokens of no input."""
    heads, size = qkv.shape[2:]
    whole = qkv.dtype == torch.float32
    block = BLOCK_FLOAT if whole else BLOCK
    work, forward, backward, reach = _plan(batch, buckets, block)
    keys = None if relative.keys is None else relative.keys.index_select(1, forward)
    queries = None if relative.queries is None else relative.queries.index_select(1, backward)
    contexts = qkv.new_empty(len(qkv), heads * size)
    contexts[sum(batch.lengths) :] = 0
    programs = len(work) * heads
    many = not whole and qkv.device.type == "cuda" and torch.cuda.get_device_capability(qkv.device)[0] in (9, 10)
    # Triton launches on the current device.
    with torch.cuda.device_of(qkv):  # type: ignore[no-untyped-call]
        _attention[(programs,)](
            qkv.contiguous(),
            qkv if keys is None else keys,
            qkv if queries is None else queries,
            contexts,
            work,
            heads,
            reach,
            size=size,
            width=max(16, triton.next_power_of_2(size)),
            block=block,
            with_keys=keys is not None,
            with_queries=queries is not None,
            num_warps=WARPS_FLOAT if whole else WARPS,
            num_stages=STAGES if many else 1,
        )
    return contexts


def _plan(batch: Packed, buckets: Buckets, block: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The programs' blocks [m, 3] (int32: where the input begins, its tokens, the first query), the longest input's first; the rows of the relative
    embeddings by distance query minus key, -reach … reach - 1, and by distance key minus query; and reach. Made once for all layers."""
    found: tuple[Tensor, Tensor, Tensor, int] | None = batch.kept.get(("blocks", block))
    if found is None:
        lengths = np.array(batch.lengths)
        order = np.argsort(-lengths, kind="stable")
        blocks = -(-lengths // block)[order]
        owner = np.repeat(order, blocks)
        first = np.arange(len(owner)) - np.repeat(blocks.cumsum() - blocks, blocks)
        work = np.stack((np.array(batch.bounds)[owner, 0], lengths[owner], first * block), 1)
        reach = int(blocks[0]) * block
        table, centre = buckets.rows(reach + 1)
        (there,) = sent([torch.from_numpy(work)], batch.ids.device)
        forward, backward = table[centre - reach : centre + reach], table[centre - reach + 1 : centre + reach + 1].flip(0)
        found = batch.kept["blocks", block] = (there.int(), forward, backward, reach)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _attention(
    qkv: tl.tensor,
    keys: tl.tensor,
    queries: tl.tensor,
    contexts: tl.tensor,
    work: tl.tensor,
    heads: tl.tensor,
    reach: tl.tensor,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    with_keys: tl.constexpr,
    with_queries: tl.constexpr,
) -> None:
    # Programs that run at a time share an input's keys and values.
    head = (tl.program_id(0) % heads).to(tl.int64)
    item = tl.program_id(0) // heads
    start = tl.load(work + item * 3).to(tl.int64)
    length = tl.load(work + item * 3 + 1)
    first = tl.load(work + item * 3 + 2)
    stride = 3 * heads * size
    qkv += start * stride + head * size
    keys += (head * 2 * reach + reach + first) * size
    queries += (head * 2 * reach + reach - first) * size
    contexts += start * heads * size + head * size
    line = tl.arange(0, block)
    number = tl.arange(0, width)
    within = number[None, :] < size
    own = (first + line)[:, None]
    q = tl.load(qkv + own * stride + number[None, :], mask=(own < length) & within, other=0.0)
    rows = line[:, None] * size + number[None, :]
    tokens = line[:, None] * stride + number[None, :]
    if with_keys:
        above = _pairs(_times(q, _rows(keys + rows, within, size, width)), q.dtype, block)
    greatest = tl.full((block,), float("-inf"), tl.float32)
    amount = tl.zeros((block,), tl.float32)
    total = tl.zeros((block, width), tl.float32)
    for begin in tl.range(0, length, block):
        real = begin + line < length
        there = qkv + heads * size + begin * stride
        k = tl.load(there + tokens, mask=real[:, None] & within, other=0.0)
        scores = tl.zeros((block, block), tl.float32)
        if with_queries:
            at = queries + begin * size
            upper = _pairs(_times(k, _rows(at + rows, within, size, width)), q.dtype, block)
            lower = _pairs(_times(k, _rows(at - block * size + rows, within, size, width)), q.dtype, block)
            scores = tl.trans(_turned(upper, lower, q.dtype, block))
        if with_keys:
            below = _pairs(_times(q, _rows(keys - (begin + block) * size + rows, within, size, width)), q.dtype, block)
            found = _turned(above, below, q.dtype, block)
            scores = scores + found if with_queries else found
            above = below
        scores = tl.dot(q, tl.trans(k), scores, input_precision="ieee")
        scores = tl.where(real[None, :], scores, float("-inf"))
        # Powers of 2 are what the processor has.
        peak = tl.maximum(greatest, tl.max(scores, 1) * 1.4426950408889634)
        weights = tl.exp2(scores * 1.4426950408889634 - peak[:, None])
        fading = tl.exp2(greatest - peak)
        amount = amount * fading + tl.sum(weights, 1)
        v = tl.load(there + heads * size + tokens, mask=real[:, None] & within, other=0.0)
        total = tl.dot(weights.to(v.dtype), v, total * fading[:, None], input_precision="ieee")
        greatest = peak
    tl.store(contexts + own * (heads * size) + number[None, :], total / amount[:, None], mask=(own < length) & within)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(places: tl.tensor, within: tl.tensor, size: tl.constexpr, width: tl.constexpr) -> tl.tensor:
    """Rows of a table of relative embeddings."""
    return tl.load(places) if size == width else tl.load(places, mask=within, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _times(states: tl.tensor, rows: tl.tensor) -> tl.tensor:
    return tl.dot(states, tl.trans(rows), input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _pairs(tile: tl.tensor, dtype: tl.constexpr, block: tl.constexpr) -> tl.tensor:
    """A tile [B, B] in half precision: the numbers of columns c and c + B/2 in one word each, [B, B/2]. One in float32 as it is."""
    if dtype != tl.float32:
        bits = tile.to(dtype).to(tl.uint16, bitcast=True)
        low, high = tl.split(tl.permute(tl.reshape(bits, (block, 2, block // 2)), (0, 2, 1)))
        tile = low.to(tl.uint32) | (high.to(tl.uint32) << 16)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _turned(above: tl.tensor, below: tl.tensor, dtype: tl.constexpr, block: tl.constexpr) -> tl.tensor:
    """The number of row x and column (x - y) mod B of `above` where x >= y, and of `below` elsewhere, in float32, for all x and y. Both are by `_pairs`."""
    x = tl.arange(0, block)[:, None]
    if dtype == tl.float32:
        c = tl.arange(0, block)[None, :]
        found = tl.gather(tl.where(c <= x, above, below), (x - c) & (block - 1), 1)
    else:
        c = tl.arange(0, block // 2)[None, :]
        kept = tl.where(c <= x, 0xFFFF, 0).to(tl.uint32) | (tl.where(c + block // 2 <= x, 0xFFFF, 0).to(tl.uint32) << 16)
        word = tl.gather(below ^ ((above ^ below) & kept), (x - c) & (block // 2 - 1), 1)
        # The halves of a word are of y and y + B/2, or the other way round.
        word = tl.where(((x - c) & (block // 2)) == 0, word, (word >> 16) | (word << 16))
        low = (word & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
        found = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (block, block))
    return found
