"""Whether a candidate answers what was asked: a small head that a late-paired ranker has beside its own.

A ranker that learnt from answers which all answer their instruction does not know that one could answer another: it takes the longer or smoother
one. The ranker's shared layers read x and each candidate anyway; this head takes the mean of their states over x's tokens and over the candidate's,
and gives r, the log-odds that the candidate answers x, plus a constant. It adds w·log σ(r_i) - w·log σ(r_j) to a logit, which is almost nothing where
both answer x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.models.fast.transfer import sent

WIDTH = 128
# In a file of its own, so that a head can be put to a ranker whose weights stay as they are.
FILE = "relevance.safetensors"


class Relevance(nn.Module):
    """Calls give w·log σ(r), [n], of mean states [n, layers, H] of x and of the candidate."""

    def __init__(self, hidden: int, layers: Sequence[int]) -> None:
        """`layers`: which states it reads; 0 is the embeddings, n the output of the n-th layer."""
        super().__init__()
        # In the order in which they are read.
        self.layers = tuple(sorted(layers))
        self.enter = nn.Linear(4 * len(self.layers) * hidden, WIDTH)
        self.leave = nn.Linear(WIDTH, 1)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, sources: Tensor, candidates: Tensor) -> Tensor:
        return self.weight * functional.logsigmoid(self.log_odds(sources, candidates))

    def log_odds(self, sources: Tensor, candidates: Tensor) -> Tensor:
        """r, [n]: log-odds, plus a constant."""
        return self.leave(functional.gelu(self.enter(features(sources, candidates))))[:, 0]  # type: ignore[no-any-return]


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

    def __init__(self, head: Relevance, sizes: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        """`sizes`: how many texts each x and its candidates are; `lengths`: tokens of all texts."""
        firsts = [0, *accumulate(sizes)][:-1]
        sources = [first for first, size in zip(firsts, sizes, strict=True) for _ in range(size)]
        self.head, self.sizes, self.lengths = head, sizes, lengths
        self.there, self.sources = sent((torch.tensor(lengths), torch.tensor(sources)), device)
        self.means: list[Tensor] = []

    def take(self, layer: int, states: Tensor) -> None:
        """Keeps what the head asks for of the states [T, H] behind so many layers."""
        if layer in self.head.layers:
            self.means.append(means(states, self.lengths, self.there))

    def values(self) -> Iterator[tuple[Tensor, ...]]:
        """w·log σ(r), a scalar each, of each x's candidates."""
        states = torch.stack(self.means, 1)
        for own in torch.split(self.head(states[self.sources], states), list(self.sizes)):
            yield own.unbind()[1:]
