"""The one way of a batch's whole numbers to a device: one tensor, in pinned memory where the device is a GPU, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same int64 tensors on the device, in one transfer."""
    if device.type == "cpu":
        return list(parts)
    sizes = [part.numel() for part in parts]
    whole = torch.empty(sum(sizes), dtype=torch.long, pin_memory=device.type == "cuda")
    torch.cat([part.flatten() for part in parts], out=whole)
    # Pinned memory is kept until it was read; other memory would be gone before.
    moved = whole.to(device, non_blocking=device.type == "cuda")
    return [piece.view(part.shape) for piece, part in zip(torch.split(moved, sizes), parts, strict=True)]


def counted(lengths: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """0, 1, … in each of several parts that lie end to end, [their sum]."""
    sizes = np.asarray(lengths, dtype=np.int64)
    ends = sizes.cumsum()
    return torch.from_numpy(np.arange(sizes.sum()) - (ends - sizes).repeat(sizes))
