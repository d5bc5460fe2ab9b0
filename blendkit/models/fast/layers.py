"""Transformer layers over packed tokens, read out of a transformers model.

A layer here is the model's own weights in another arrangement: queries, keys and values in one product, the
attention's scale folded into the queries, and the last layer cut down to what its three readers need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.models.fast.int8 import ROWS, Int8Linear, has_one_of
from blendkit.models.fast.linear import Linear, has_onednn, keeps_gradients, taken


class Norm:
    """LayerNorm over [T, H], computed in the number type of its input."""

    def __init__(self, norm: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = norm.normalized_shape
        self.weight = taken(norm.weight).to(device, dtype)
        self.bias = None if norm.bias is None else taken(norm.bias).to(device, dtype)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class Layer(ABC):
    """One layer: `project` before attention, `finish` behind it. The stream of states keeps one number type."""

    dropout = 0.0

    def __init__(self, weight: Tensor, bias: Tensor | None, heads: int, scale: float, where: tuple[torch.device, torch.dtype], last: bool) -> None:
        """`weight` [3·H', H] and `bias` [3·H'] are those of queries, keys and values, in this order."""
        size = len(weight) // 3
        self.heads, self.head_dim = heads, size // heads
        self.by_rows = where[1] == torch.int8
        factor = torch.ones(3 * size, 1, device=weight.device)
        factor[:size] /= scale
        weight = taken(weight).float() * factor
        bias = torch.zeros(3 * size, device=weight.device) if bias is None else taken(bias).float() * factor[:, 0]
        if last:
            # Only three positions read the last layer's values, so the values are computed after attention's weights, for these positions.
            self.query = _product(weight[:size], bias[:size], where)
            self.key = _product(weight[size : 2 * size], bias[size : 2 * size], where)
            # In int8 they stay in float32, as attention does.
            values = where[0], torch.float32 if where[1] == torch.int8 else where[1]
            self.value = weight[2 * size :].view(heads, self.head_dim, -1).to(*values)
            self.value_bias = bias[2 * size :].to(*values)
        else:
            self.qkv = _product(weight, bias, where)

    def project(self, x: Tensor) -> Tensor:
        """Queries (scaled), keys and values, [T, 3, h, d]."""
        return self.qkv(self.normed(x)).view(len(x), 3, self.heads, self.head_dim)

    def project_last(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some rows [r, h, d], keys of all [T, h, d], and the states that values are made of [T, H]."""
        normed = self.normed(x)
        return self.query(normed[rows]).view(-1, self.heads, self.head_dim), self.key(normed).view(-1, self.heads, self.head_dim), normed

    def values_of(self, states: Tensor) -> Tensor:
        """Values [r, h·d] of states [r, h, H] that were mixed a head each."""
        mixed = torch.einsum("rhi,hdi->rhd", states.to(self.value.dtype), self.value)
        return mixed.flatten(1) + self.value_bias

    def dropped(self, x: Tensor) -> Tensor:
        """What is left of a part's output by the dropout of training."""
        return functional.dropout(x, self.dropout) if self.dropout else x

    def normed(self, x: Tensor) -> Tensor:
        """What attention reads."""
        return x

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """The layer's output [T, H] from its input [T, H] and the attention's [T, h·d]."""
        if not self.by_rows or len(x) <= ROWS:
            return self.finished(x, context)
        # An int8 layer is many small steps, and quicker where what lies between them stays in cache.
        return torch.cat([self.finished(*rows) for rows in zip(torch.split(x, ROWS), torch.split(context, ROWS), strict=True)])

    @abstractmethod
    def finished(self, x: Tensor, context: Tensor) -> Tensor:
        """`finish` of all rows at once."""


class PostNormLayer(Layer):
    """The layer of BERT, RoBERTa, DeBERTa and MPNet: norms behind attention and behind the feed-forward."""

    def __init__(self, layer: Any, names: tuple[str, str, str], heads: int, scale: float, where: tuple[torch.device, torch.dtype], last: bool) -> None:
        own, out, norm = _parts(layer.attention)
        projections = [getattr(own, name) for name in names]
        weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
        super().__init__(weight, bias, heads, scale, where, last)
        up, down = layer.intermediate, layer.output
        stream = stream_dtype(*where)
        self.out = _linear(out, where)
        self.norm = Norm(norm, where[0], stream)
        self.up = _linear(up.dense, where, up.intermediate_act_fn)
        self.down = _linear(down.dense, where)
        self.down_norm = Norm(down.LayerNorm, where[0], stream)

    def finished(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.norm(x + self.dropped(self.out(context)))
        return self.down_norm(x + self.dropped(self.down(self.up(x))))


class PreNormLayer(Layer):
    """The layer of ModernBERT: norms before attention and feed-forward, a gated feed-forward."""

    def __init__(self, layer: Any, heads: int, scale: float, where: tuple[torch.device, torch.dtype], last: bool) -> None:
        super().__init__(layer.attn.Wqkv.weight, layer.attn.Wqkv.bias, heads, scale, where, last)
        stream = stream_dtype(*where)
        self.norm = None if isinstance(layer.attn_norm, nn.Identity) else Norm(layer.attn_norm, where[0], stream)
        self.out = _linear(layer.attn.Wo, where)
        self.mlp_norm = Norm(layer.mlp_norm, where[0], stream)
        self.up, self.down, self.act = _linear(layer.mlp.Wi, where), _linear(layer.mlp.Wo, where), layer.mlp.act

    def normed(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def finished(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.out(context)
        value, gate = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(self.act(value) * gate)


def stream_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The number type of attention and of the states between layers: the products' type, but float32 on a CPU without AMX.

    In training it is always the products' type: what is kept for gradients is half as large so, and nothing is copied from one type to the other.
    """
    if device.type != "cpu" or keeps_gradients():
        return dtype
    return torch.bfloat16 if dtype == torch.bfloat16 and has_amx() else torch.float32


@cache
def has_amx() -> bool:
    """Whether this processor has products of bfloat16 tiles, which are as quick in attention as in large products."""
    return has_one_of("amx_bf16") and has_onednn(torch.bfloat16)


def _parts(attention: Any) -> tuple[Any, Any, Any]:
    """What holds the projections, the output's projection, and the norm behind it, in BERT's arrangement or in MPNet's."""
    if hasattr(attention, "attn"):
        return attention.attn, attention.attn.o, attention.LayerNorm
    return attention.self, attention.output.dense, attention.output.LayerNorm


def _linear(linear: Any, where: tuple[torch.device, torch.dtype], activation: Any = None) -> Linear | Int8Linear:
    return _product(linear.weight, linear.bias, where, activation)


def _product(weight: Tensor, bias: Tensor | None, where: tuple[torch.device, torch.dtype], activation: Any = None) -> Linear | Int8Linear:
    return Int8Linear(weight, bias, activation) if where[1] == torch.int8 else Linear(weight, bias, *where, activation)
