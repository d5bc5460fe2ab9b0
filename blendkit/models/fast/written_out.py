"""Late pairing as it is defined: one pair at a time, x and both candidates in one input, each layer with its mask. Slow; `late` is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from blendkit.models.fast.encoder import PackedEncoder
from blendkit.models.fast.late import Ids
from blendkit.models.fast.late_encoder import own_encoder, packed
from blendkit.models.fast.linear import moved
from blendkit.models.fast.packing import Packed
from blendkit.models.pairrm import PairRM


class WrittenOut:
    """Calls give the last states of the three markers of each pair."""

    def __init__(self, network: PairRM, device: torch.device, dtype: torch.dtype, gradients: bool = False) -> None:
        """Raises NoInputError where the encoder has no packed form."""
        self.encoder = packed(network, device, dtype, markers_only=False, gradients=gradients, attends=False)
        self.network, self.device = network, device
        self.paired = network.config.paired_layers or 0
        self.relevance = moved(network.relevance, device, torch.float32).eval() if network.relevance else None
        self.own = own_encoder(network, self.encoder, gradients)

    def __call__(self, pairs: list[tuple[Ids, Ids, Ids]]) -> Tensor:
        """[n, 3, H], float32, of (x, candidate 1, candidate 2)."""
        return self.read(pairs)[0]

    def read(self, pairs: list[tuple[Ids, Ids, Ids]]) -> tuple[Tensor, Tensor | None]:
        """The same, and what the head for relevance adds to each side [n, 2], where there is one."""
        states, means = zip(*(self._pair(*pair) for pair in pairs), strict=True)
        if self.relevance is None:
            return torch.stack(states), None
        source, *sides = torch.stack(means, 1)
        return torch.stack(states), torch.stack([self.relevance(source, side) for side in sides], 1)

    def _pair(self, source: Ids, first: Ids, second: Ids) -> tuple[Tensor, Tensor]:
        """Last states of the three markers [3, H], and the mean states of the three texts that the head for relevance reads [3, layers, H]."""
        encoder, texts = self.encoder, (source, first, second)
        lengths = [len(text) for text in texts]
        behind = [0, len(source), len(source)]
        own = [torch.arange(length, device=self.device) for length in lengths]
        owner = torch.cat([torch.full_like(part, number) for number, part in enumerate(own)])
        places = torch.cat([part + before for part, before in zip(own, behind, strict=True)])
        segmented = self.network.config.positions == "segment"
        positions = torch.cat(own) if segmented else places
        types = (owner > 0).long() if segmented else torch.zeros_like(owner)
        ids = torch.tensor([token for text in texts for token in text], device=self.device)
        markers = torch.tensor([[1, lengths[0] + 1, lengths[0] + lengths[1] + 1]], device=self.device)
        batch = Packed(ids, positions, types, [len(ids)], markers)
        distance = places[:, None] - places
        own_only = (owner[None] == 0) | (owner[:, None] == owner)
        across = (owner[:, None] * owner) == 2

        def through(encoder: PackedEncoder, x: Tensor, number: int) -> Tensor:
            layer = encoder.layers[number]
            q, k, v = encoder.turned(layer.project(x).to(encoder.stream), number, batch).permute(1, 2, 0, 3)
            scores = q @ k.transpose(1, 2)
            more = encoder.by_distance(encoder.relative(number), q[None], k[None], distance[None], len(ids))
            if more is not None:
                scores = scores + more[0]
            allowed, place = own_only, number - (len(encoder.layers) - self.paired)
            if place >= 0 and encoder is self.encoder:
                allowed = allowed | across
                scores = scores + across * self.network.biases()[place].to(scores)[:, None, None]
            window = encoder.window(number)
            if window is not None:
                allowed = allowed & (distance.abs() <= window)
            weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
            return layer.finish(x, (weights @ v).transpose(0, 1).flatten(1))

        read = [encoder.embedded(batch)]
        for number in range(len(encoder.layers)):
            read.append(through(encoder, read[-1], number))
        last = read[-1]
        if self.relevance is None:
            return encoder.normed(last[markers[0]]), last[:0]
        if self.own is not None:
            shared = len(encoder.layers) - self.relevance.own_layers
            del read[shared + 1 :]
            for number in range(shared, len(encoder.layers)):
                read.append(through(self.own, read[-1], number))
        means = [torch.stack([part.float().mean(0) for part in torch.split(read[number], lengths)]) for number in self.relevance.layers]
        return encoder.normed(last[markers[0]]), torch.stack(means, 1)
