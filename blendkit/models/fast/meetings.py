"""Attention of packed queries over packed keys: which spans of tokens meet which, span by span or in padded blocks."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.fast.transfer import counted

Spans = list[tuple[int, int]]
# Spans are in one block with others up to twice as long, and a block whose longest has no more than this many tokens takes all that are shorter.
SHORT = 64


class OneByOne:
    """A call for each pair of spans: nothing is padded, and a span's scores stay in a CPU's cache."""

    parts: tuple[Tensor, ...] = ()

    def __init__(self, readers: Spans, sources: Spans) -> None:
        """The first span of queries reads the first span of keys, and so on; spans of queries lie end to end."""
        self.pairs = list(zip(readers, sources, strict=True))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Contexts of queries (scaled) [T, h, d] by keys and values [S, h, d]; `causal`: a query sees no key of its span behind its own place."""
        contexts = torch.empty_like(q)
        for (start, end), (first, last) in self.pairs:
            asking, keys, values = (part.transpose(0, 1)[None] for part in (q[start:end], k[first:last], v[first:last]))
            found = functional.scaled_dot_product_attention(asking, keys, values, is_causal=causal, scale=1.0)
            contexts[start:end] = found[0].transpose(0, 1)
        return contexts


class InBlocks:
    """A call for all pairs of spans of about one length, padded: the same contexts in few kernels, for a GPU.

    `parts` are int64 tensors, made on the CPU and to be replaced by what they are on the device: starts and lengths of the spans [4, n],
    sorted by length, and where each query's context is among those of all blocks [T].
    """

    parts: tuple[Tensor, ...]

    def __init__(self, readers: Spans, sources: Spans) -> None:
        asking, seen = ([end - start for start, end in spans] for spans in (readers, sources))
        order = sorted(range(len(readers)), key=lambda place: -max(asking[place], seen[place]))
        groups: list[list[int]] = []
        longest = 0
        for place in order:
            width = max(asking[place], seen[place])
            if not groups or 2 * width < longest > SHORT:
                groups.append([])
                longest = width
            groups[-1].append(place)
        # Rows and columns of each block, and whether any of its keys is padding.
        self.blocks = [
            (len(group), max(asking[place] for place in group), max(seen[place] for place in group), len({seen[place] for place in group}) > 1)
            for group in groups
        ]
        rows, filled = [0] * len(readers), 0
        for group, (_, width, _, _) in zip(groups, self.blocks, strict=True):
            for place in group:
                rows[place] = filled
                filled += width
        starts = ([start for start, _ in spans] for spans in (readers, sources))
        spans = torch.tensor([[values[place] for place in order] for values in (*starts, asking, seen)])
        back = counted(asking) + torch.repeat_interleave(torch.tensor(rows), torch.tensor(asking))
        self.parts = (spans, back)

    @cached_property
    def _places(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each block the places of its queries [n, Q] and keys [n, K], and which keys are real [n, 1, 1, K]."""
        found, first = [], 0
        for count, queries, keys, ragged in self.blocks:
            ask, see, asked, seen = self.parts[0][:, first : first + count, None]
            rows, columns = (torch.arange(width, device=ask.device) for width in (queries, keys))
            real = (columns < seen)[:, None, None] if ragged else None
            found.append((ask + torch.minimum(rows, asked - 1), see + torch.minimum(columns, seen - 1), real))
            first += count
        return found

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """As `OneByOne` has it."""
        contexts = []
        for asked, seen, real in self._places:
            asking, keys, values = q[asked].transpose(1, 2), k[seen].transpose(1, 2), v[seen].transpose(1, 2)
            # Padding stands behind all that is real, where a causal query does not look.
            mask = None if causal else real
            found = functional.scaled_dot_product_attention(asking, keys, values, attn_mask=mask, is_causal=causal, scale=1.0)
            contexts.append(found.transpose(1, 2).flatten(0, 1))
        return torch.cat(contexts)[self.parts[1]]


Meeting = OneByOne | InBlocks
