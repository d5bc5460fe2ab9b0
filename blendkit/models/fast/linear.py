"""Linear layers laid out for the processor once, not on every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.models.loading import memory_left

_KEEPS = ContextVar("keeps gradients", default=False)


@contextmanager
def keeping_gradients() -> Iterator[None]:
    """Within it, layers are made of a model's weights themselves, so that gradients reach them."""
    token = _KEEPS.set(True)
    try:
        yield
    finally:
        _KEEPS.reset(token)


def keeps_gradients() -> bool:
    """Whether layers are being made of a model's weights themselves."""
    return _KEEPS.get()


def taken(weight: Tensor) -> Tensor:
    """A model's weight, apart from its gradients unless these are kept."""
    return weight if keeps_gradients() else weight.detach()


def moved(module: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """A module on this device and of this number type: a copy where that changes anything, so that its owner's stays as it is.

    Where gradients are kept, it is the owner's, and keeps its number type.
    """
    if keeps_gradients():
        return module.to(device)
    tensors = [*module.parameters(), *module.buffers()]
    if all(part.device == device and (dtype is None or part.dtype == dtype or not part.is_floating_point()) for part in tensors):
        return module
    return deepcopy(module).to(device, dtype)


class Linear:
    """x W^T + b, with GELU where asked for, in `dtype`; takes [T, in] of any number type and gives [T, out] in `dtype`.

    On a CPU with oneDNN the weights are stored in its blocked layout (on one two-core EPYC: 215 against 170
    GFLOP/s in float32), and GELU happens while the product is still in cache.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype, activation: Any = None) -> None:
        self.dtype = dtype
        self.out_features, self.in_features = weight.shape
        weight = taken(weight).to(device, dtype).contiguous()
        self.bias = None if bias is None else taken(bias).to(device, dtype).contiguous()
        self.activation = activation
        self.blocked = device.type == "cpu" and has_onednn(dtype) and not keeps_gradients()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.blocked else weight
        self.fused = "gelu" if self.blocked and _exact_gelu(activation) else "none"

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.blocked:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.fused, [], "none")
        else:
            y = functional.linear(x, self.weight, self.bias)
        if self.activation is not None and self.fused == "none":
            return self.activation(y)  # type: ignore[no-any-return]
        return y


# From so many rows on, the blocked layout is quicker; a few are bound by reading the weights, which plain ones are as good for.
FEW = 3


# Layers that read the same states, by their names in one module: one product is quicker than two or three.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Packed:
    """The product of some layers, which read the same input, with their weights in the blocked layout."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight.contiguous()
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        self._input: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def __call__(self, input: Tensor, number: int) -> Tensor:
        """The output of layer `number`. The others' are kept until they are asked for with the same input."""
        if self._input is not input or number not in self._left:
            whole: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.blocked, self.bias, "none", [], "none")
            if len(self.sizes) == 1:
                return whole
            self._input, self._left = input, dict(enumerate(torch.split(whole, self.sizes, -1)))
        found = self._left.pop(number)
        if not self._left:
            self._input = None
        return found


class _Forward:
    """`forward` of a layer, by the layout that suits the number of rows."""

    def __init__(self, layer: nn.Linear, packed: _Packed, number: int) -> None:
        self.weight, self.bias, self.packed, self.number = layer.weight, layer.bias, packed, number

    def __call__(self, input: Tensor) -> Tensor:
        if input.numel() <= FEW * input.shape[-1] or input.dtype != self.weight.dtype:
            return functional.linear(input, self.weight, self.bias)
        return self.packed(input, self.number)


@torch.inference_mode()
def pack_linears(network: nn.Module) -> None:
    """Gives the linear layers of a network on a CPU a second copy of their weights, in oneDNN's blocked layout, for passes over many rows.

    Nothing is done twice, nor where oneDNN is missing or the copy would take more than a quarter of the memory that is free.
    """
    groups = [group for module in network.modules() for group in _groups(module)]
    if sum(layer.weight.nbytes for group in groups for layer in group) * 4 > memory_left(torch.device("cpu")):
        return
    for group in groups:
        packed = _Packed(group)
        for number, layer in enumerate(group):
            layer.forward = _Forward(layer, packed, number)  # type: ignore[method-assign]


def _groups(module: nn.Module) -> list[list[nn.Linear]]:
    """A module's own layers that can be packed; those that read the same states are one group."""
    layers = {name: layer for name, layer in module.named_children() if type(layer) is nn.Linear and _packable(layer)}
    found = []
    for names in TOGETHER:
        group = [layers[name] for name in names if name in layers]
        # Equal in all but what they give.
        if len(group) == len(names) and len({(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in group}) == 1:
            found.append(group)
            layers = {name: layer for name, layer in layers.items() if name not in names}
    return [*found, *([layer] for layer in layers.values())]


def _packable(layer: nn.Linear) -> bool:
    return "forward" not in vars(layer) and layer.weight.device.type == "cpu" and has_onednn(layer.weight.dtype)


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN and the operators that take its weight layout, and oneDNN this number type on this processor."""
    operators = torch.ops.mkldnn
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    there = there and hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")
    if dtype == torch.bfloat16:
        # Without AVX-512 its operators refuse bfloat16, which plain ones compute all the same.
        return there and hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
    return there and dtype == torch.float32


def _exact_gelu(activation: Any) -> bool:
    """Whether it is GELU by the error function: torch's, or transformers', which is known by its name so that nothing is imported for it."""
    return (isinstance(activation, nn.GELU) and activation.approximate == "none") or type(activation).__name__ == "GELUActivation"
