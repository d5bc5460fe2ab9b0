"""Attention by torch's own kernels for inputs of several lengths, for encoders that add nothing to scores by distance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.attention_forms import has_varlen_kernel
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Buckets, Relative, Shared
from blendkit.models.fast.transfer import sent

# Numbers by which heads grow where candidates see each other with a bias: two are used, and kernels want a multiple of eight.
MORE = 8


class Varlen:
    """All inputs of a batch at once: `varlen_attn` where the device has it, else nested tensors, which know no windows."""

    def __init__(self, buckets: Buckets | None, candidate_bias: float, shared: Shared | None = None) -> None:
        """Nothing may be added to scores by distance, as `attention_forms` sees to."""
        assert buckets is None and shared is None
        self.candidate_bias = candidate_bias

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """Contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""
        if not self.candidate_bias:
            return self._contexts(qkv, batch, window).flatten(1)
        wider = torch.cat([qkv, self._between(batch, qkv.dtype).expand(-1, -1, qkv.shape[2], -1)], -1)
        return self._contexts(wider, batch, window)[..., : qkv.shape[-1]].flatten(1)

    def _between(self, batch: Packed, dtype: torch.dtype) -> Tensor:
        """What a head gets more, [T, 3, 1, MORE]: products of these numbers of a query and a key are the bias where the two are of different candidates."""
        found: Tensor | None = batch.kept.get("between")
        if found is None:
            found = batch.kept["between"] = torch.zeros(len(batch.types), 3, 1, MORE, dtype=dtype, device=batch.types.device)
            for place, (role, other) in enumerate(((1, 2), (2, 1))):
                found[:, 0, 0, place] = batch.types == role
                found[:, 1, 0, place] = (batch.types == other) * self.candidate_bias
        return found

    def _contexts(self, qkv: Tensor, batch: Packed, window: int | None) -> Tensor:
        """Contexts [T, h, d]."""
        ends, shortest, longest = self._ends(batch)
        kernel = varlen_kernel(qkv.device, qkv.dtype, qkv.shape[-1])
        if kernel is not None:
            reach = (-1, -1) if window is None else (window, window)
            found: Tensor = kernel(*qkv.unbind(1), ends, ends, longest, longest, scale=1.0, window_size=reach)
            return found
        # Nested tensors cannot be made of tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nested tensors is in prototype stage")
            parts = (qkv[:, part].clone(memory_format=torch.contiguous_format) for part in range(3))
            offsets = ends.long()
            q, k, v = (torch.nested.nested_tensor_from_jagged(part, offsets, min_seqlen=shortest, max_seqlen=longest).transpose(1, 2) for part in parts)
            return functional.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).values()

    def _ends(self, batch: Packed) -> tuple[Tensor, int, int]:
        """Where inputs begin and the last one ends, [n + 1] (int32), and the tokens of the shortest and the longest. The filling is one more input."""
        found: tuple[Tensor, int, int] | None = batch.kept.get("ends")
        if found is None:
            filling = len(batch.ids) - sum(batch.lengths)
            lengths = [*batch.lengths, filling] if filling else batch.lengths
            ends = [0, *(end for _, end in batch.bounds), *([len(batch.ids)] if filling else [])]
            # Nested tensors take none of inference mode.
            with torch.inference_mode(False):
                there = sent([torch.tensor(ends)], batch.ids.device)[0].int()
            found = batch.kept["ends"] = there, min(lengths), max(lengths)
        return found


@cache
def varlen_kernel(device: torch.device, dtype: torch.dtype, head: int) -> Callable[..., Any] | None:
    """torch's `varlen_attn`, where it computes this."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if not has_varlen_kernel(device.type, capability, str(dtype).removeprefix("torch."), head):
        return None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn
