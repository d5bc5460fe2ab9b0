"""A batch of inputs end to end, without padding: T tokens in all, n inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.fast.transfer import counted, sent


@dataclass
class Packed:
    """n inputs laid end to end.

    `ids`, `positions` and `types` are [T] (long); `lengths` are the n inputs' tokens, T in sum unless `rounded`
    added filling; `markers` is [n, 3]: where each input's markers stand among the T tokens.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    lengths: list[int]
    markers: Tensor

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each input begins and ends among the T tokens."""
        ends = list(accumulate(self.lengths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """Where each input begins, and behind the last one the filling, [n + 1]."""
        return torch.tensor([0, *accumulate(self.lengths)], device=self.ids.device)

    @cached_property
    def owner(self) -> Tensor:
        """Which input a token belongs to, [T] (int32); the filling is number n."""
        tokens = torch.arange(len(self.ids), device=self.ids.device)
        return torch.searchsorted(self.starts, tokens, right=True, out_int32=True) - 1

    @cached_property
    def offsets(self) -> Tensor:
        """A token's place within its own input, counted from 0, [T] (int32)."""
        return (torch.arange(len(self.ids), device=self.ids.device) - self.starts[self.owner]).to(torch.int32)

    @cached_property
    def places(self) -> Tensor:
        """`offsets`, but that candidate 2 (type 2), where there is one, begins where x ends, as candidate 1 (type 1) does, [T] (int32)."""
        firsts = torch.zeros(len(self.lengths) + 1, dtype=torch.int32, device=self.ids.device).index_add_(0, self.owner, (self.types == 1).to(torch.int32))
        return self.offsets - (self.types == 2) * firsts[self.owner]

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """The tokens in rows: their places among the T, [n, longest], and which of them are real, [n, longest]."""
        columns = torch.arange(self.longest, device=self.ids.device)
        real = columns < self.starts.diff()[:, None]
        # Padding is a token of its own input, so that one with a NaN spoils no other.
        return torch.where(real, self.starts[:-1, None] + columns, self.starts[:-1, None]), real

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """Values that one layer computes for this batch and later layers use again."""
        return {}

    def rounded(self, multiple: int) -> Packed:
        """The same batch with T filled up to a multiple.

        Libraries keep a plan for each shape that they meet; without this their memory grows with the stream.
        """
        extra = -len(self.ids) % multiple
        if not extra:
            return self
        ids, positions, types = (functional.pad(part, (0, extra)) for part in (self.ids, self.positions, self.types))
        return self._with(ids, positions, types, self.markers, self.starts)

    def to(self, device: torch.device) -> Packed:
        """The same batch on another device, in one transfer: all else that is asked of it is computed there."""
        return self._with(*sent((self.ids, self.positions, self.types, self.markers, self.starts), device))

    def _with(self, ids: Tensor, positions: Tensor, types: Tensor, markers: Tensor, starts: Tensor) -> Packed:
        found = replace(self, ids=ids, positions=positions, types=types, markers=markers)
        found.starts = starts
        return found


def pack(rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None, markers: Sequence[Sequence[int]] | None = None) -> Packed:
    """Token ids of n inputs end to end, positions counted from 0 in each.

    `types` are token types, 0 where there are none; `markers` are m places within each input, [n, m].
    """
    lengths = [len(row) for row in rows]
    starts = [0, *accumulate(lengths)][:-1]
    ids = torch.tensor([token for row in rows for token in row])
    kinds = torch.zeros_like(ids) if types is None else torch.tensor([kind for row in types for kind in row])
    places = [[start + place for place in row] for start, row in zip(starts, markers, strict=True)] if markers else [[start] for start in starts]
    return Packed(ids, counted(lengths), kinds, lengths, torch.tensor(places))
