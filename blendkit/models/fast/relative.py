"""DeBERTa's disentangled attention (He et al. 2021, section 3.1) without its gathers.

The score of query i and key j is (Q_i·K_j + Q_i·Kr[δ] + K_j·Qr[δ]) / sqrt(3d), where δ is the bucket of i - j.
The rows of Kr that one query meets, key after key, are a run of one table (`Kr[bucket(c - m)]` for m = 0, 1, …),
and the next query's run begins one row earlier. So a block of B queries needs one product with L + B - 1 rows,
and its scores are that product read with a skewed stride: nothing is gathered, and no index of L×L exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 128
STEP = 64


@dataclass
class Relative:
    """One layer's projected relative embeddings: `keys` (Kr) and `queries` (Qr, scaled), [h, 2s, d]; either may be absent."""

    keys: Tensor | None
    queries: Tensor | None


class Buckets:
    """The row of the relative embeddings for a distance query minus key."""

    def __init__(self, span: int, buckets: int, furthest: int, device: torch.device) -> None:
        self.span, self.buckets, self.furthest, self.device = span, buckets, furthest, device
        self._rows = torch.empty(0, dtype=torch.long, device=device)
        self._on_host: NDArray[np.int64] = np.empty(0, np.int64)

    def met(self, length: int) -> tuple[int, int]:
        """The rows that inputs of this many tokens meet, first and behind the last, in steps of 64, which products are quickest with."""
        self.rows(length)
        reach = len(self._on_host) // 2
        low, high = int(self._on_host[reach - length + 1]), int(self._on_host[reach + length - 1]) + 1
        return low // STEP * STEP, min(-(-high // STEP) * STEP, 2 * self.span)

    def rows(self, length: int) -> tuple[Tensor, int]:
        """The rows of all distances -c … c, [2c + 1], and c, which is at least `length` - 1."""
        if len(self._rows) < 2 * length - 1:
            from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

            reach = max(length, 512)
            distances = torch.arange(1 - reach, reach)
            if self.buckets > 0 and self.furthest > 0:
                distances = make_log_bucket_position(distances, self.buckets, self.furthest).long()
            rows = (distances + self.span).clamp(0, 2 * self.span - 1)
            self._rows, self._on_host = rows.to(self.device), rows.numpy()
        return self._rows, len(self._rows) // 2


class Shared:
    """One number a head for each distance, the same in all layers: MPNet's."""

    def __init__(self, table: Tensor) -> None:
        """`table` [h, 2c + 1] is for the distances query minus key -c … c; further ones count as the furthest."""
        self.table, self.centre = table, table.shape[1] // 2

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """What the scores of queries at places […, m] and keys at places […, L] get, [h, …, m, L]."""
        return self.of(queries[..., :, None] - keys[..., None, :])

    def of(self, distance: Tensor) -> Tensor:
        """The same for distances query minus key […, m, L]."""
        return self.table[:, self.row(distance)]

    def row(self, distance: Tensor) -> Tensor:
        """The column of the table for distances query minus key."""
        return distance.long().clamp(-self.centre, self.centre) + self.centre


class Workspace:
    """Memory for scores that is asked for once and used again: a fresh page costs more than the product that fills it."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape, of the number type and device of `like`; the next `take` of the same name overwrites it."""
        size = 1
        for side in shape:
            size *= side
        key = (name, like.dtype, like.device)
        memory = self._memory.get(key)
        if memory is None or len(memory) < size:
            memory = self._memory[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return memory[:size].view(shape)


class Disentangled:
    """Disentangled attention, one input at a time, all heads at once."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets, self.workspace = buckets, Workspace()

    def __call__(self, qkv: Tensor, bounds: list[tuple[int, int]], longest: int, relative: Relative) -> Tensor:
        """Contexts [T, h·d] of packed queries, keys and values [T, 3, h, d]."""
        rows, centre = self.buckets.rows(longest)
        # In these tables the distance falls (keys) and rises (queries) from row to row.
        span = rows[centre - longest + 1 : centre + longest]
        keys = None if relative.keys is None else relative.keys[:, span.flip(0)]
        queries = None if relative.queries is None else relative.queries[:, span]
        contexts = qkv.new_zeros(qkv.shape[0], *qkv.shape[2:])
        for start, end in bounds:
            q, k, v = (qkv[start:end, part].transpose(0, 1) for part in range(3))
            heads, length, _ = q.shape
            scores = self.workspace.take("scores", (heads, length, length), qkv)
            torch.bmm(q, k.transpose(1, 2), out=scores)
            if keys is not None:
                self._add(scores, q, keys, longest - 1)
            if queries is not None:
                self._add(scores.transpose(1, 2), k, queries, longest - 1)
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, v, out=contexts[start:end].transpose(0, 1))
        return contexts.flatten(1)

    def _add(self, scores: Tensor, states: Tensor, table: Tensor, centre: int) -> None:
        """scores[h, i, j] += states[h, i]·table[h, centre - i + j], a block of rows i at a time."""
        heads, length, _ = states.shape
        for first in range(0, length, BLOCK):
            rows = min(BLOCK, length - first)
            width = length + rows - 1
            begin = centre - first - rows + 1
            product = self.workspace.take("product", (heads, rows, width), states)
            torch.bmm(states[:, first : first + rows], table[:, begin : begin + width].transpose(1, 2), out=product)
            skewed = product.as_strided((heads, rows, length), (rows * width, width - 1, 1), product.storage_offset() + rows - 1)
            scores[:, first : first + rows] += skewed
