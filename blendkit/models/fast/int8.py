"""Linear layers in int8: weights a channel, activations a token. For CPUs that multiply bytes (VNNI, AMX)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blendkit.errors import UsageError

# Rows a product: what is computed of so many stays in cache until it is done with (768 wide: 1.3 times as fast as 2,048 rows at a time).
ROWS = 512


class Int8Linear:
    """x W^T + b, with an activation where asked for; takes [T, in] of any number type and gives [T, out] in float32.

    W is about w Q and x_t about s_t q_t, q_t and Q being whole numbers from -127 to 127, w one number an output and s_t one a token:
    y_t = s_t w (q_t Q^T) + b. A token's output depends on nothing but that token, so that it is the same in any batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Any = None) -> None:
        weight = weight.detach().float()
        self.scales = _scales(weight)[:, 0]
        self.weight = (weight / self.scales[:, None]).round_().to(torch.int8).T.contiguous()
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float()
        if len(x) <= ROWS:
            y = self._product(x)
        else:
            y = x.new_empty(len(x), len(self.scales))
            for rows, out in zip(torch.split(x, ROWS), torch.split(y, ROWS), strict=True):
                self._product(rows, out)
        return y if self.activation is None else self.activation(y)

    def _product(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        scales = _scales(rows)
        whole = (rows * scales.reciprocal()).round_().to(torch.int8)
        product = torch._int_mm(whole, self.weight).float().mul_(self.scales)
        return torch.addcmul(self.bias, product, scales, out=product if out is None else out)


def _scales(rows: Tensor) -> Tensor:
    """What the largest number of each row is 127 of, [n, 1]."""
    return torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).clamp_(min=1e-30).div_(127)


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network as transformers has it, ready for inference on a device in a number type; of int8 its linear layers, the rest being float32.

    Raises:
        UsageError: int8 is asked for, and it has no linear layers.
    """
    if dtype != torch.int8:
        return network.to(device, dtype).eval()
    network = network.to(device, torch.float32).eval()
    found = [module for module in network.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    if not found:
        raise UsageError("--dtype int8: this model's products are no plain linear layers, which alone run in it; try --dtype float32")
    for module in found:
        module.forward = _Int8Forward(module)  # type: ignore[method-assign]
    return network


class _Int8Forward:
    """`forward` of a layer in int8."""

    def __init__(self, layer: nn.Linear) -> None:
        self.product = Int8Linear(layer.weight, layer.bias)

    def __call__(self, input: Tensor) -> Tensor:
        # Of no rows at all, as an expert without tokens has them, -1 would say nothing.
        return self.product(input.flatten(0, -2)).view(*input.shape[:-1], len(self.product.scales))


def expect_int8(device: torch.device) -> None:
    """Raises UsageError where int8 has no kernels, or none that are exact: without VNNI, sums of two products may overflow."""
    if device.type != "cpu":
        raise UsageError(f"--dtype int8: it runs on a CPU, not on {device.type}; try bfloat16, or --device cpu")
    if not has_int8():
        raise UsageError("--dtype int8: this processor has no products of bytes (VNNI or AMX), or this build of torch none for it; try float32")


def has_int8() -> bool:
    """Whether this processor and this build of torch have products of bytes."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and hasattr(torch, "_int_mm") and has_one_of("avx512_vnni", "avx_vnni", "amx_int8")


def has_one_of(*instructions: str) -> bool:
    """Whether this processor has one of these sets of instructions, by torch's names for them."""
    can: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(can.get(name) for name in instructions)
