"""Whether a candidate answers what was asked: a small head that a late-paired ranker has beside its own.

A ranker that learnt from answers which all answer their instruction does not know that one could answer another: it takes the longer or smoother
one. The ranker's shared layers read x and each candidate anyway; this head takes the mean of their states over x's tokens and over the candidate's,
and gives r, the log-odds that the candidate answers x, plus a constant. It adds w·log σ(r_i) - w·log σ(r_j) to a logit, which is almost nothing where
both answer x.

It may have layers of its own, which read further from where the shared ones are: the encoder's last ones once more, with a product of two narrow
matrices added to each of their matrices (LoRA, Hu et al. 2021). The mean of their states counts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.models.fast.transfer import sent
from blendkit.models.layer_list import layers_of

WIDTH = 128
# In a file of its own, so that a head can be put to a ranker whose weights stay as they are.
FILE = "relevance.safetensors"


class LowRank(nn.Module):
    """Calls give what is added to a linear layer's matrix, [out, in]; at first nothing."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        # Uniform, of variance 1 / in: for a normal one torch would import its compiler on `meta`, where a head is made for its shapes alone.
        bound = (3 / linear.in_features) ** 0.5
        self.narrow = nn.Parameter(nn.init.uniform_(torch.empty(rank, linear.in_features), -bound, bound))
        self.widen = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self) -> Tensor:
        return self.widen @ self.narrow


class Relevance(nn.Module):
    """Calls give w·log σ(r), [n], of mean states [n, layers, H] of x and of the candidate."""

    def __init__(self, encoder: Any, layers: Sequence[int], own_layers: int = 0, rank: int = 0) -> None:
        """`layers`: which states it reads; 0 is the embeddings, n the output of the n-th layer.

        `own_layers`: of how many of the encoder's last layers it has copies, with products of rank `rank` added to their matrices.
        """
        super().__init__()
        # In the order in which they are read.
        self.layers = tuple(sorted(layers))
        self.own_layers, self.rank = own_layers, rank
        # By name, so that another order of the modules in the encoder changes nothing.
        by_layer = (linears_of(layer).items() for layer in _last(encoder, own_layers))
        self.added = nn.ModuleList(nn.ModuleDict({module_key(name): LowRank(linear, rank) for name, linear in linears}) for linears in by_layer)
        self.enter = nn.Linear(4 * len(self.layers) * int(encoder.config.hidden_size), WIDTH)
        self.leave = nn.Linear(WIDTH, 1)
        self.weight = nn.Parameter(torch.ones(1))

    def own(self, encoder: Any) -> list[nn.Module]:
        """Its layers, made of the encoder's last ones; gradients reach what is added to them."""
        layers = [deepcopy(layer) for layer in _last(encoder, self.own_layers)]
        for layer, added in zip(layers, self.added, strict=True):
            for name, linear in linears_of(layer).items():
                weight = linear.weight + added[module_key(name)]()  # type: ignore[index]
                del linear.weight
                # No parameter, but made of some.
                linear.weight = weight
        return layers

    def forward(self, sources: Tensor, candidates: Tensor) -> Tensor:
        return self.weight * functional.logsigmoid(self.log_odds(sources, candidates))

    def log_odds(self, sources: Tensor, candidates: Tensor) -> Tensor:
        """r, [n]: log-odds, plus a constant."""
        return self.leave(functional.gelu(self.enter(features(sources, candidates))))[:, 0]  # type: ignore[no-any-return]


def _last(encoder: Any, number: int) -> list[Any]:
    return list(layers_of(encoder)[-number:]) if number else []


def linears_of(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def module_key(name: str) -> str:
    # A dot is not allowed in a module's name.
    return name.replace(".", "-")


def features(sources: Tensor, candidates: Tensor) -> Tensor:
    """[n, 4·layers·H]: both states, normed, their product and their distance, number by number."""
    x, y = (functional.layer_norm(part, part.shape[-1:]) for part in (sources, candidates))
    return torch.cat([part.flatten(1) for part in (y, x, x * y, (x - y).abs())], 1)


def means(states: Tensor, lengths: Sequence[int], there: Tensor) -> Tensor:
    """The mean state of each text, [texts, H], float32, of texts that lie end to end [T, H]; what lies behind the last is left out.

    `there`: the lengths on the device.
    """
    if states.device.type == "cuda":
        # Not index_add, which adds in another order each time.
        return torch.segment_reduce(states.float(), "mean", lengths=there, axis=0, unsafe=True)
    return torch.stack([part.float().mean(0) for part in torch.split(states[: sum(lengths)], list(lengths))])


class MeanStates:
    """What the head sees of a batch of texts, each x with its candidates behind it, while they are read."""

    def __init__(self, head: Relevance, layers: int, sizes: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        """`layers`: of the encoder; `sizes`: how many texts each x and its candidates are; `lengths`: tokens of all texts."""
        firsts = [0, *accumulate(sizes)][:-1]
        sources = [first for first, size in zip(firsts, sizes, strict=True) for _ in range(size)]
        self.head, self.shared, self.sizes, self.lengths = head, layers - head.own_layers, sizes, lengths
        self.there, self.sources = sent((torch.tensor(lengths), torch.tensor(sources)), device)
        self.means: list[Tensor] = []
        self.parted: Tensor | None = None

    def take(self, layer: int, states: Tensor) -> None:
        """Keeps what the head asks for of the states [T, H] behind so many shared layers."""
        if layer <= self.shared:
            self._keep(layer, states)
        if layer == self.shared:
            self.parted = states

    def go_on(self, through: Callable[[Tensor, int], Tensor]) -> None:
        """Reads on through the head's own layers; `through(states, number)` is one layer."""
        assert self.parted is not None
        for layer in range(self.shared, self.shared + self.head.own_layers):
            self.parted = through(self.parted, layer)
            self._keep(layer + 1, self.parted)

    def _keep(self, layer: int, states: Tensor) -> None:
        if layer in self.head.layers:
            self.means.append(means(states, self.lengths, self.there))

    def values(self) -> Iterator[tuple[Tensor, ...]]:
        """w·log σ(r), a scalar each, of each x's candidates."""
        states = torch.stack(self.means, 1)
        for own in torch.split(self.head(states[self.sources], states), list(self.sizes)):
            yield own.unbind()[1:]
