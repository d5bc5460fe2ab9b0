"""Attention in matrix products alone: inputs of about one length in rows, all heads at once. It runs wherever torch does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import BlendkitWarning, first_line, out_of_memory
from blendkit.models.attention_forms import AMPERE, Machine, triton_fault
from blendkit.models.fast.compiled import keep_kernels
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import BLOCK, Buckets, Relative, Shared
from blendkit.models.fast.transfer import sent

# Scores that are in memory at a time: 128 MB in bfloat16. One input may have more.
CELLS = 1 << 26
# On a GPU: 512 MB in bfloat16, and two tables of relative scores beside them. One with less memory has a cell for each 64 bytes of it.
CELLS_THERE, BYTES_A_CELL = 1 << 28, 64
# An input joins a longer one's rows if no more than a fifth of its row is padding.
FULL = 0.8


@dataclass
class Rows:
    """n inputs in rows of `length` tokens. `places` [n, L] are their tokens' places among the T, and `real` [n, L] which of them are no padding,
    None where all are. `cells` [t] are the real ones' places among the n·L, and `tokens` [t] among the T."""

    places: Tensor
    real: Tensor | None
    cells: Tensor
    tokens: Tensor
    length: int


class Batched:
    """All inputs of a batch, in as many rows at a time as their scores have room for."""

    def __init__(self, buckets: Buckets | None, candidate_bias: float, shared: Shared | None = None) -> None:
        self.buckets, self.candidate_bias, self.shared = buckets, candidate_bias, shared
        self._kernel_fails = False

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """Contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""
        heads, size = qkv.shape[2:]
        if relative is not None and (found := self._in_one_kernel(qkv, batch, relative)) is not None:
            return found
        contexts = qkv.new_zeros(len(qkv), heads, size)
        apart = qkv.permute(1, 2, 0, 3)
        for rows in rows_of(batch, lambda length: heads * length**2, FULL):
            q, k, v = apart.index_select(2, rows.places.flatten()).view(3, heads, *rows.places.shape, size)
            if relative is not None and self.buckets is not None:
                found = self._disentangled(q, k, v, rows, relative)
            else:
                mask = self._mask(batch, rows, window, qkv.dtype)
                q, k, v = (part.transpose(0, 1) for part in (q, k, v))
                found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(0, 1)
            found = found.permute(1, 2, 0, 3).flatten(0, 1)
            contexts.index_copy_(0, rows.tokens, found if rows.real is None else found.index_select(0, rows.cells))
        return contexts.flatten(1)

    def _disentangled(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, relative: Relative) -> Tensor:
        """DeBERTa's contexts [h, n, L, d] of the same, by the products of `relative`."""
        assert self.buckets is not None
        scores = q @ k.transpose(2, 3)
        table, centre = self.buckets.rows(rows.length)
        span = table[centre - rows.length + 1 : centre + rows.length]
        if relative.keys is not None:
            _add(scores, q, relative.keys[:, span.flip(0)])
        if relative.queries is not None:
            _add(scores.transpose(2, 3), k, relative.queries[:, span])
        if rows.real is not None:
            scores.masked_fill_(~rows.real[:, None], float("-inf"))
        return scores.softmax(-1) @ v

    def _in_one_kernel(self, qkv: Tensor, batch: Packed, relative: Relative) -> Tensor | None:
        """DeBERTa's contexts by a kernel of our own, in which no scores are written. None, and it is told, where Triton fails to compile it."""
        kernel = None if self._kernel_fails else attention_kernel(qkv.device, qkv.dtype)
        if kernel is None:
            return None
        try:
            found: Tensor = kernel(qkv, batch, relative, self.buckets)
            return found
        except Exception as error:
            # A fault of the device itself would meet the other operations, too.
            if out_of_memory(error) or type(error).__name__ == "AcceleratorError":
                raise
            said = f"{type(error).__name__}: {first_line(error)}"
            warnings.warn(BlendkitWarning(f"attention: batched goes on without its kernel, as Triton cannot compile it here ({said})"), stacklevel=2)
            self._kernel_fails = True
        return None

    def _mask(self, batch: Packed, rows: Rows, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to scores [n, h, L, L], or which of them count; it may have sides of 1. None where all count as they are."""
        device, length = batch.ids.device, rows.length
        allowed = None if rows.real is None else rows.real[:, None, None]
        if window is not None and length > window + 1:
            near = torch.ones(length, length, dtype=torch.bool, device=device).triu(-window).tril(window)
            allowed = near if allowed is None else allowed & near
        bias = None
        if self.shared is not None:
            places = batch.places[rows.places]
            bias = self.shared.bias(places, places).transpose(0, 1).to(dtype)
        if self.candidate_bias:
            types = batch.types[rows.places]
            across = ((types[:, :, None] * types[:, None] == 2).to(dtype) * self.candidate_bias)[:, None]
            bias = across if bias is None else bias + across
        if bias is None or allowed is None:
            return allowed if bias is None else bias
        return bias.masked_fill(~allowed, float("-inf"))


def _add(scores: Tensor, states: Tensor, table: Tensor) -> None:
    """scores[h, n, i, j] += states[h, n, i]·table[h, L - 1 - i + j], a block of rows i at a time."""
    heads, count, length, _ = states.shape
    for first in range(0, length, BLOCK):
        rows = min(BLOCK, length - first)
        width = length + rows - 1
        begin = length - first - rows
        some = states[:, :, first : first + rows].reshape(heads, count * rows, -1)
        product = some @ table[:, begin : begin + width].transpose(1, 2)
        # Each row begins one place earlier than the one before it: the same numbers, read in rows that are one shorter.
        skewed = product.as_strided((heads, count, rows, length), (count * rows * width, rows * width, width - 1, 1), rows - 1)
        scores[:, :, first : first + rows] += skewed


@cache
def attention_kernel(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """`kernels.attention`, where Triton can compile it."""
    if device.type != "cuda":
        return None
    machine = Machine.of(device)
    # For earlier cards Triton uses no matrix cores here.
    if machine.capability < AMPERE or triton_fault(machine, str(dtype).removeprefix("torch.")):
        return None
    keep_kernels()
    return _attention


def _attention(*given: Any) -> Tensor:
    # Here, so that a Triton which can be imported and fails at this is one that does not compile.
    from blendkit.models.fast.kernels import attention

    return attention(*given)


def rows_of(batch: Packed, cells: Callable[[int], int], full: float) -> list[Rows]:
    """The batch's inputs in rows, as `groups` has them, made once for all layers."""
    found: list[Rows] | None = batch.kept.get("rows")
    if found is None:
        room = _room(batch.ids.device)
        found = batch.kept["rows"] = [_laid_out(batch, group) for group in groups(batch.lengths, cells, full, room)]
    return found


def _room(device: torch.device) -> int:
    """Scores that are in memory at a time."""
    if device.type != "cuda":
        return CELLS
    return min(CELLS_THERE, torch.cuda.get_device_properties(device).total_memory // BYTES_A_CELL)


def groups(lengths: Sequence[int], cells: Callable[[int], int], full: float, room: int | None = None) -> Iterator[list[int]]:
    """Texts that share rows, by number, the longest first: none shorter than `full` of the longest, and as many as have room, `cells(longest)` each."""
    room = CELLS if room is None else room
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[group[0]] if group else 0
        if group and (lengths[number] < full * longest or (len(group) + 1) * cells(longest) > room):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _laid_out(batch: Packed, group: list[int]) -> Rows:
    bounds, device = np.array([batch.bounds[number] for number in group]), batch.ids.device
    lengths = bounds[:, 1] - bounds[:, 0]
    length = int(lengths.max())
    column = np.arange(length)
    real = column < lengths[:, None]
    # Padding is a token of its own input, so that one with a NaN spoils no other.
    places = np.where(real, bounds[:, :1] + column, bounds[:, :1])
    numbers = (places, np.flatnonzero(real), places[real], real.astype(np.int64))
    places_there, cells, tokens, real_there = sent([torch.from_numpy(part) for part in numbers], device)
    return Rows(places_there, None if real.all() else real_there.bool(), cells, tokens, length)
