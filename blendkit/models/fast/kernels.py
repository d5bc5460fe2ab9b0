"""The softmax of DeBERTa's scores in one Triton kernel, for CUDA. This module needs Triton: import it where the kernel is used.

In torch's own operations each part of the scores is written and read again: the products with a table by distance, two additions, the mask,
the softmax. Here they meet in registers. The relative scores are looked up in tables by bucket, which are as large as the scores of 512 tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Queries of a program. What a key adds to 16 neighbours lies together: 32 bytes in half precision, which a GPU reads at once.
QUERIES = 16
# Up to so many keys, scores stay in registers. Longer inputs are read twice, in steps of so many bytes of a query's scores.
WHOLE, STEP = 1024, 1024


def softmax(scores: Tensor, to_keys: Tensor | None, to_queries: Tensor | None, table: Tensor, lengths: Tensor) -> None:
    """Turns scores [h, n, L, L] (query, key) into weights, where they are: those of an input's own tokens. Rows behind its end hold anything finite.

    `to_keys` (of each query) and `to_queries` (of each key) [h, n, L, R] hold relative scores by bucket; either may be absent. `table` [2, 2L - 1]
    (int32) is the bucket of each distance query minus key, from 1 - L on and from L - 1 down; `lengths` [n] (int32) are the inputs' tokens. All are
    contiguous, and sums are float32.
    """
    heads, count, length, _ = scores.shape
    by_bucket = to_keys if to_keys is not None else to_queries
    rows = 1 if by_bucket is None else by_bucket.shape[-1]
    # Triton launches on the current device.
    with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]
        _softmax[(heads * count * triton.cdiv(length, QUERIES),)](
            scores,
            scores if to_keys is None else to_keys,
            scores if to_queries is None else to_queries,
            table,
            lengths,
            count,
            length,
            rows,
            with_keys=to_keys is not None,
            with_queries=to_queries is not None,
            queries=QUERIES,
            num_stages=1,
            **tile(length, scores.element_size()),
        )


def tile(length: int, size: int) -> dict[str, int | bool | None]:
    """Keys that a program has in registers at a time, its warps, and registers a thread, for numbers of `size` bytes. Each kind of tile is compiled once."""
    keys = max(128, triton.next_power_of_2(length)) if length <= WHOLE else STEP // size
    # With 64 registers a thread, several programs share a processor: one reads while another sums. Other tiles would not fit into these.
    fits = keys in (256, 512) and length <= keys and size == 2
    return {"keys": keys, "whole": length <= keys, "num_warps": min(keys // 32, 16), "maxnreg": 64 if fits else None}


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _softmax(
    scores: tl.tensor,
    to_keys: tl.tensor,
    to_queries: tl.tensor,
    table: tl.tensor,
    lengths: tl.tensor,
    count: tl.tensor,
    length: tl.tensor,
    rows: tl.tensor,
    with_keys: tl.constexpr,
    with_queries: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
    whole: tl.constexpr,
) -> None:
    blocks = tl.cdiv(length, queries)
    first = (tl.program_id(0) % blocks) * queries
    group = tl.program_id(0) // blocks
    held = tl.load(lengths + group % count)
    if first >= held:
        return
    # Numbers of all heads and inputs may be more than 2^31; those of one are not.
    start = group.to(tl.int64) * length
    scores += start * length
    to_keys += start * rows
    to_queries += start * rows
    forward = table + length - 1
    backward = table + 3 * length - 2
    i = first + tl.arange(0, queries)
    if whole:
        j = tl.arange(0, keys)
        total = _sum(scores, to_keys, to_queries, forward, backward, i, j, held, length, rows, with_keys, with_queries)
        total = tl.exp(total - tl.max(total, 1)[:, None])
        total = total / tl.sum(total, 1)[:, None]
        tl.store(scores + i[:, None] * length + j[None, :], total, mask=(i[:, None] < held) & (j[None, :] < length))
    else:
        greatest = tl.full((queries,), float("-inf"), tl.float32)
        amount = tl.zeros((queries,), tl.float32)
        begin = 0
        while begin < held:
            j = begin + tl.arange(0, keys)
            total = _sum(scores, to_keys, to_queries, forward, backward, i, j, held, length, rows, with_keys, with_queries)
            found = tl.maximum(greatest, tl.max(total, 1))
            amount = amount * tl.exp(greatest - found) + tl.sum(tl.exp(total - found[:, None]), 1)
            greatest = found
            begin += keys
        begin = 0
        while begin < length:
            j = begin + tl.arange(0, keys)
            total = _sum(scores, to_keys, to_queries, forward, backward, i, j, held, length, rows, with_keys, with_queries)
            total = tl.exp(total - greatest[:, None]) / amount[:, None]
            tl.store(scores + i[:, None] * length + j[None, :], total, mask=(i[:, None] < held) & (j[None, :] < length))
            begin += keys


@triton.jit  # type: ignore[untyped-decorator]
def _sum(
    scores: tl.tensor,
    to_keys: tl.tensor,
    to_queries: tl.tensor,
    forward: tl.tensor,
    backward: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    held: tl.tensor,
    length: tl.tensor,
    rows: tl.tensor,
    with_keys: tl.constexpr,
    with_queries: tl.constexpr,
) -> tl.tensor:
    """Scores of queries i and keys j with what distances add, float32; -inf for keys behind the input's end."""
    inside = (i[:, None] < held) & (j[None, :] < held)
    # Scores of the padding are read and dropped: by the bound of `length`, a multiple of 16, Triton reads eight in one instruction.
    total = tl.load(scores + i[:, None] * length + j[None, :], mask=(i[:, None] < held) & (j[None, :] < length), other=0.0).to(tl.float32)
    # Neighbouring threads should read neighbouring numbers: those of neighbouring keys in a query's table, of neighbouring queries in a key's. Triton gives
    # neighbours along the first side of a looked-up tile to neighbouring threads, so the first of the two is looked up with its sides exchanged.
    if with_keys:
        there = (j[:, None] < held) & (i[None, :] < held)
        bucket = tl.load(backward + (j[:, None] - i[None, :]), mask=there, other=0)
        total += tl.trans(tl.load(to_keys + i[None, :] * rows + bucket, mask=there, other=0.0)).to(tl.float32)
    if with_queries:
        bucket = tl.load(forward + (i[:, None] - j[None, :]), mask=inside, other=0)
        total += tl.load(to_queries + j[None, :] * rows + bucket, mask=inside, other=0.0).to(tl.float32)
    return tl.where(j[None, :] < held, total, float("-inf"))
