"""Which form of attention a packed encoder runs with: chosen once, when the encoder is made, by the device and by what the encoder asks for.

`flex`: one compiled kernel over all inputs of a batch. `varlen`: torch's own kernels for inputs of several lengths. `batched`: inputs of
about one length in rows, in matrix products, DeBERTa's with a kernel of our own where Triton is. `per-input`: one input at a time. The last
two can do with plain kernels, so that there is no device on which none runs.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError

if TYPE_CHECKING:
    import torch

FORMS = ("flex", "varlen", "batched", "per-input")
# FlexAttention's kernels multiply blocks of at least 16 by 16.
LEAST_HEAD = 16
# From here on cards multiply in bfloat16, and FlashAttention runs.
AMPERE = (8, 0)
VOLTA = (7, 0)
# By how much a number may differ from the plain form's in float32: logits by this much, or by this share of the largest where that is above 1;
# the states of an input by this share of their length. docs/performance.md names these bounds; checks and tests take them from here.
BOUNDS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}


@dataclass(frozen=True)
class Machine:
    """What of a device decides which forms run there. `compiler` is what is wrong with the C compiler, empty where it works."""

    kind: str
    capability: tuple[int, int] = (0, 0)
    rocm: bool = False
    triton: bool = False
    compiler: str = ""

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """The device as it is."""
        import torch

        if device.type != "cuda":
            return cls(device.type)
        rocm = getattr(torch.version, "hip", None) is not None
        return cls("cuda", torch.cuda.get_device_capability(device), rocm, has_triton(), compiler_fault())


@dataclass(frozen=True)
class Needs:
    """What of an encoder decides which forms compute it: numbers a head, its number type by name, DeBERTa's relative scores, other numbers that are
    added to scores by distance, and layers that see a window."""

    head: int
    dtype: str
    relative: bool = False
    bias: bool = False
    windows: bool = False


@dataclass
class TakenForm:
    """The form, and what was in the way of one that would have been taken before it."""

    form: str
    why: str = ""


def obstacle(form: str, machine: Machine, needs: Needs) -> str:
    """Why a form cannot run, in a few words; empty where it can."""
    if form == "flex":
        return _of_flex(machine, needs)
    return _of_varlen(machine, needs) if form == "varlen" else ""


def _of_flex(machine: Machine, needs: Needs) -> str:
    if machine.kind == "cpu":
        # Its form written out, which compiles nothing: slow, and the same function.
        return ""
    if machine.kind != "cuda":
        return f"FlexAttention is for CUDA, and the device is {machine.kind}"
    if machine.rocm:
        return "FlexAttention has not been tried on ROCm"
    if needs.head < LEAST_HEAD:
        return f"FlexAttention needs heads of {LEAST_HEAD} numbers, and the encoder's have {needs.head}"
    return triton_fault(machine, needs.dtype)


def triton_fault(machine: Machine, dtype: str) -> str:
    """Why Triton compiles no kernel for a CUDA device that computes in this number type; empty where it does."""
    if machine.rocm:
        return "Triton's kernels have not been tried on ROCm"
    shown = f"{machine.capability[0]}.{machine.capability[1]}"
    if machine.capability < VOLTA:
        return f"torch's compiler needs compute capability 7.0, and the card has {shown}"
    if dtype == "bfloat16" and machine.capability < AMPERE:
        return f"bfloat16 needs compute capability 8.0 there, and the card has {shown}"
    return machine.compiler if machine.triton else "Triton is not installed"


def _of_varlen(machine: Machine, needs: Needs) -> str:
    if needs.relative or needs.bias:
        what = "relative scores" if needs.relative else "numbers that are added to scores by distance"
        return f"attention of variable length takes no {what}, and the encoder has them"
    if machine.kind not in ("cpu", "cuda"):
        return f"attention of variable length is for CUDA and the CPU, and the device is {machine.kind}"
    if machine.kind == "cuda" and needs.dtype == "bfloat16" and machine.capability < AMPERE:
        return f"bfloat16 needs compute capability 8.0 there, and the card has {machine.capability[0]}.{machine.capability[1]}"
    if needs.windows and not has_varlen_kernel(machine.kind, machine.capability, needs.dtype, needs.head):
        return "layers that see a window need torch's varlen_attn: CUDA, compute capability 8.0, bfloat16 or float16"
    return ""


def choose(asked: str, machine: Machine, needs: Needs, *without: str) -> TakenForm:
    """The form that was asked for, or, for `auto`, the quickest that runs, other than those of `without`.

    Raises:
        UsageError: the form that was asked for cannot run there.
    """
    if asked != "auto":
        if fault := obstacle(asked, machine, needs):
            raise UsageError(f"--attention {asked}: {fault}; try --attention {choose('auto', machine, needs).form}")
        return TakenForm(asked, "written out on a CPU, which is slow" if (asked, machine.kind) == ("flex", "cpu") else "")
    if machine.kind == "cpu":
        return TakenForm("per-input")
    if machine.kind == "cuda" and not machine.rocm and needs.relative:
        # Flex, which looks relative scores up one by one, took longer there than all the rest of a layer (docs/performance.md).
        fault = triton_fault(machine, needs.dtype)
        return TakenForm("batched", f"without its kernel: {fault}" if fault else "")
    found: list[str] = []
    # What nobody has tried on ROCm and MPS is not taken there unasked. FlashAttention is the quickest (docs/performance.md), nested tensors are not.
    flash = has_varlen_kernel(machine.kind, machine.capability, needs.dtype, needs.head)
    first = (("varlen", "flex") if flash else ("flex", "varlen")) if machine.kind == "cuda" and not machine.rocm else ("flex",)
    for form in first:
        if form in without:
            continue
        fault = obstacle(form, machine, needs)
        if not fault:
            return TakenForm(form, "; ".join(found))
        found.append(f"no {form}: {fault}")
    return TakenForm("batched", "; ".join(found))


def has_triton() -> bool:
    """Whether Triton can be imported: one that is broken is none."""
    try:
        importlib.import_module("triton")
    except Exception:
        return False
    return True


@cache
def compiler_fault() -> str:
    """What keeps Triton from building what calls its kernels, which it does in C against Python's headers; empty where nothing does."""
    named = os.environ.get("CC")
    compiler = named or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        return "no C compiler (gcc, clang, or the one that CC names), which Triton needs"
    command = [compiler, "-fsyntax-only", "-x", "c", f"-I{sysconfig.get_path('include')}", "-"]
    try:
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C compiler {compiler} does not run ({type(error).__name__}), which Triton needs"
    if done.returncode == 0:
        return ""
    said = next((line for line in done.stderr.splitlines() if "error" in line), "it says nothing")
    return f"the C compiler {compiler} cannot read Python.h, which Triton needs ({said.strip()[:200]})"


def has_varlen_kernel(kind: str, capability: tuple[int, int], dtype: str, head: int) -> bool:
    """Whether torch's `varlen_attn`, which is FlashAttention and knows windows, computes this."""
    if kind != "cuda" or capability < AMPERE or dtype not in ("bfloat16", "float16") or head % 8 or head > 256:
        return False
    try:
        module = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        return False
    # Earlier ones, such as torch 2.9's, have `is_causal` in its place.
    return "window_size" in (getattr(module.varlen_attn, "__kwdefaults__", None) or {})


@dataclass(eq=False)
class Attending:
    """How the packed encoders that are made within `attending` shall attend, and what was chosen for each."""

    asked: str = "auto"
    self_check: bool = True
    chosen: list[tuple[str, TakenForm]] = field(default_factory=list)

    def take(self, device: torch.device, needs: Needs) -> TakenForm:
        """The choice for one more encoder. Raises as `choose` does."""
        machine = Machine.of(device)
        choice = choose(self.asked, machine, needs)
        self.chosen.append((machine.kind, choice))
        return choice

    def described(self) -> dict[str, Any]:
        """For the manifest: the form, several where encoders of one run differ."""
        forms = dict.fromkeys(choice.form for _, choice in self.chosen)
        return {"attention": ", ".join(forms)} if forms else {}

    def lines(self) -> list[str]:
        """What a person should know at the start: the forms, and why no other; none for what a CPU does by itself."""
        told = dict.fromkeys(
            f"attention: {choice.form}{f' ({choice.why})' if choice.why else ''}" for kind, choice in self.chosen if kind != "cpu" or self.asked != "auto"
        )
        return list(told)


_CURRENT: ContextVar[Attending | None] = ContextVar("how packed encoders attend", default=None)


def current() -> Attending:
    """What packed encoders that are made now go by."""
    return _CURRENT.get() or Attending()


@contextmanager
def attending(asked: str = "auto", self_check: bool = True) -> Iterator[Attending]:
    """Within it, packed encoders take the form that is asked for; `self_check` lets those on a GPU prove themselves in their first batch.

    Raises:
        UsageError: there is no such form, it cannot run, or nothing that was made attends in any form.
    """
    if asked not in ("auto", *FORMS):
        raise UsageError(f"--attention {asked}: expected auto, {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    how = Attending(asked, self_check)
    token = _CURRENT.set(how)
    try:
        yield how
    finally:
        _CURRENT.reset(token)
    if asked != "auto" and not how.chosen:
        raise UsageError(f"--attention {asked}: nothing here is computed by a packed encoder, so there is no attention to choose")
