"""The first batch on a GPU proves itself: two of its inputs are also computed by the plain form in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blendkit.errors import BlendkitError
from blendkit.models.attention_forms import BOUNDS, TakenForm, current


def wanted(device: torch.device) -> bool:
    """Whether what runs packed on this device shall prove itself. What runs on a CPU is tested on one."""
    return device.type != "cpu" and current().self_check


def some_of(count: int) -> list[int]:
    """The inputs of a batch that are computed twice: the first and the last, which differ most in length, as batches are sorted by it."""
    return sorted({0, count - 1})


@dataclass
class Proof:
    """What is compared, and where it was computed."""

    choice: TakenForm
    device: torch.device
    dtype: torch.dtype

    @property
    def bound(self) -> float:
        return BOUNDS[str(self.dtype).removeprefix("torch.")]

    def logits(self, found: Tensor, expected: Tensor) -> None:
        """Logits [n]. Raises BlendkitError where one differs beyond the bound."""
        found, expected = found.float().cpu(), expected.float().cpu()
        bound = self.bound * max(1.0, float(expected.abs().max()))
        if not float((found - expected).abs().max()) <= bound:
            self._fail("a logit", found, expected, f"they may differ by {bound:.3g}")

    def states(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """States of each input, [L, H]. Raises BlendkitError where those of one differ beyond the bound."""
        for ours, plain in zip(found, expected, strict=True):
            ours, plain = ours.float().cpu(), plain.float().cpu()
            share = float((ours - plain).norm() / plain.norm())
            if not share <= self.bound:
                self._fail("a state", ours, plain, f"an input's states differ by {share:.1%} of their length and may by {self.bound:.1%}")

    def _fail(self, what: str, found: Tensor, expected: Tensor, allowed: str) -> None:
        if not expected.isfinite().all():
            # The checkpoint is broken, which is told with the record; no attention can be blamed.
            return
        worst = int((found - expected).abs().nan_to_num(nan=float("inf")).argmax())
        ours, plain = (float(part.flatten()[worst]) for part in (found, expected))
        how = f"{self.choice.form} attention in {str(self.dtype).removeprefix('torch.')} on {self.device}"
        others = "another form (--attention) or number type (--dtype) may do, and --no-self-check goes on all the same"
        raise BlendkitError(
            f"the first batch does not prove itself: {what} is {ours:.6g} with {how}, and {plain:.6g} by the plain form in float32; {allowed}; {others}"
        )
