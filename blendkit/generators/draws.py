"""Which token comes next: the likeliest, or one that a generator of each prompt's own draws, whatever else is in the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.generators.options import Sampling

# Numbers that are drawn ahead for each row.
AHEAD = 64
# Of the likeliest tokens, so many are sorted first where top-p asks for the order; all are, where these have too little mass.
LIKELY = 256
# Weights are summed in blocks of so many.
BLOCK = 128


class Uniforms:
    """Numbers in [0, 1) by (seed, step), of a counter-based generator: Philox 4x64 (Salmon et al. 2011), the seed its key.

    They are drawn on the CPU, so that a seed's are the same on every device: one a row and step, for so many steps at once.
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        from numpy.random import Philox

        self._streams = [Philox(key=seed % (1 << 64)) for seed in seeds]
        self._device, self._block = device, torch.empty(0)
        self._begin = self._end = 0

    def at(self, step: int) -> Tensor:
        """One number a seed, [seeds]; steps go up by one from 0."""
        if step >= self._end:
            raw = [(stream.random_raw(AHEAD) >> 11) * 2.0**-53 for stream in self._streams]
            self._begin, self._end = self._end, self._end + AHEAD
            exact = torch.stack([torch.from_numpy(row) for row in raw], dim=1)
            self._block = exact.to(self._device, torch.float32 if self._device.type == "mps" else torch.float64)
        return self._block[step - self._begin]


class Choice:
    """The next token of each row, by one way of decoding; `seeds` are the rows'."""

    def __init__(self, sampling: Sampling, seeds: list[int], device: torch.device) -> None:
        self.sampling = sampling
        self._uniforms = Uniforms(seeds, device) if sampling.temperature > 0 else None

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        """Token ids, [n], by float32 scores [n, vocabulary] of the rows with these numbers."""
        if self._uniforms is None:
            return scores.argmax(-1)
        return drawn(scores, self._uniforms.at(step)[rows], self.sampling)


def drawn(scores: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """A token of each row of scores, [n, vocabulary], where `uniform`, [n], falls into what temperature, top-k, top-p, min-p and typical-p leave."""
    scores = scores / sampling.temperature if sampling.temperature != 1 else scores
    ids = None
    if sampling.top_k or sampling.top_p < 1:
        scores, ids = _likeliest(scores, sampling)
    if sampling.min_p:
        scores = scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(sampling.min_p), -math.inf)
    if sampling.typical_p < 1:
        scores = _typical(scores, sampling.typical_p)
    place = _inverse(_weights(scores), uniform)
    return (place if ids is None else ids.gather(-1, place))[:, 0]


def _likeliest(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Scores and ids of the tokens that top-k and top-p leave, likeliest first."""
    size = scores.shape[-1]
    if sampling.top_k:
        found, ids = scores.topk(min(sampling.top_k, size))
        return (_nucleus(found, _mass(found), sampling.top_p) if sampling.top_p < 1 else found), ids
    whole = _mass(scores)
    for count in (LIKELY, 16 * LIKELY, size):
        found, ids = scores.topk(min(count, size)) if count < size else scores.sort(-1, descending=True)
        if count >= size or bool(((found - whole).exp().sum(-1) >= sampling.top_p).all()):
            break
    return _nucleus(found, whole, sampling.top_p), ids


def _mass(scores: Tensor) -> Tensor:
    return scores.logsumexp(-1, keepdim=True)


def _nucleus(scores: Tensor, whole: Tensor, top_p: float) -> Tensor:
    """Sorted scores without those before which there is a mass of `top_p`; the first stays."""
    mass = (scores - whole).exp()
    before = mass.cumsum(-1) - mass
    outside = before >= top_p
    outside[:, 0] = False
    return scores.masked_fill(outside, -math.inf)


def _typical(scores: Tensor, mass: float) -> Tensor:
    from transformers import TypicalLogitsWarper

    warped: Tensor = TypicalLogitsWarper(mass=mass)(torch.empty(0), scores)
    return warped


def _weights(scores: Tensor) -> Tensor:
    return (scores - scores.amax(-1, keepdim=True)).exp()


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """The inverse of the cumulative distribution of weights [n, places] at numbers in [0, 1), [n, 1]. A weight of 0 is never met.

    First the block is found, then the place in it: only the blocks' sums need more than float32, and these are few.
    """
    parts = functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = parts.sum(-1).to(uniform.dtype).cumsum(-1)
    target = _below(uniform[:, None] * sums[:, -1:], sums[:, -1:])
    block = torch.searchsorted(sums, target, right=True)
    inside = parts.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].to(uniform.dtype).cumsum(-1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_min(0)), 0)
    return block * BLOCK + torch.searchsorted(inside, _below((target - before).clamp_min(0), inside[:, -1:]), right=True)


def _below(value: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))


class SeededSampling:
    """The same draws as a processor of transformers' `generate`, which then takes the one token that has a score."""

    def __init__(self, sampling: Sampling, seeds: list[int], device: torch.device) -> None:
        self._choice, self._step = Choice(sampling, seeds, device), 0
        self._rows = torch.arange(len(seeds), device=device)

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        tokens = self._choice(scores.float(), self._rows, self._step)
        self._step += 1
        return torch.full_like(scores, -math.inf).scatter(-1, tokens[:, None], 0.0)
