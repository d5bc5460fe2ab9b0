"""The forms of attention by name, and what happens where one that was chosen does not compile after all."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor

from blendkit.errors import BlendkitWarning, UsageError, first_line, out_of_memory
from blendkit.models.attention_forms import Machine, Needs, TakenForm, choose
from blendkit.models.fast.attention import Flex, PerInput
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Buckets, Relative, Shared
from blendkit.models.fast.rows import Batched
from blendkit.models.fast.varlen import Varlen


class AttentionForm(Protocol):
    """Any form: contexts [T, h·d] of queries (scaled), keys and values [T, 3, h, d]."""

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor: ...


FORMS: dict[str, type[Flex] | type[PerInput] | type[Batched] | type[Varlen]] = {"flex": Flex, "varlen": Varlen, "batched": Batched, "per-input": PerInput}
# What is added to scores: the buckets of DeBERTa's distances, a number between candidates, numbers by distance.
Added = tuple[Buckets | None, float, Shared | None]


def form_of(choice: TakenForm, asked: str, device: torch.device, needs: Needs, added: Added) -> AttentionForm:
    """The form that was chosen."""
    made = FORMS[choice.form](*added)
    return OrAnother(made, choice, asked, device, needs, added) if choice.form == "flex" else made


class OrAnother:
    """FlexAttention until torch fails to compile it, which shows at its first use; from then on the next form, which is told and noted in the choice.

    One that was asked for by name is not replaced: the run ends with what torch said.
    """

    def __init__(self, form: AttentionForm, choice: TakenForm, asked: str, device: torch.device, needs: Needs, added: Added) -> None:
        self.form, self.choice, self.asked = form, choice, asked
        self.device, self.needs, self.added = device, needs, added
        self.worked = False

    def __call__(self, qkv: Tensor, batch: Packed, relative: Relative | None, window: int | None) -> Tensor:
        """As `AttentionForm`. Raises UsageError where the form was asked for by name and does not compile."""
        try:
            found = self.form(qkv, batch, relative, window)
            self.worked = True
            return found
        except Exception as error:
            # What compiled before has another fault now, and one of the device itself would meet the next form, too.
            if self.worked or self.choice.form != "flex" or out_of_memory(error) or type(error).__name__ == "AcceleratorError":
                raise
            said = f"{type(error).__name__}: {first_line(error)}"
            if self.asked != "auto":
                raise UsageError(f"--attention flex: torch cannot compile it here ({said})") from error
            another = choose("auto", Machine.of(self.device), self.needs, "flex")
            self.choice.form, self.choice.why = another.form, f"flex does not compile: {said}"
            self.form = FORMS[another.form](*self.added)
            warnings.warn(BlendkitWarning(f"attention: {another.form} from here on, as torch cannot compile flex here ({said})"), stacklevel=2)
        return self.form(qkv, batch, relative, window)
