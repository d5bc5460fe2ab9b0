"""Drawing tokens: the exact distribution, what is left to draw from, and numbers by seed and step."""

from __future__ import annotations

import math

import pytest
import torch

from blendkit.generators.draws import Choice, Uniforms, drawn
from blendkit.generators.options import Sampling

CPU = torch.device("cpu")


def test_numbers_come_by_seed_and_step():
    from numpy.random import Philox

    uniforms = Uniforms([7, 8, 7], CPU)
    found = torch.stack([uniforms.at(step) for step in range(130)])
    assert found[:, 0].equal(found[:, 2]) and not found[:, 0].equal(found[:, 1])
    assert found[:, 1].tolist() == [(int(raw) >> 11) / (1 << 53) for raw in Philox(key=8).random_raw(130)]


@pytest.mark.parametrize("size", [5, 300])
def test_tokens_come_as_often_as_their_probabilities_say(size):
    """Chi-square, 20,000 draws of a fixed seed; the limit is beyond the 99.99th percentile."""
    scores = torch.randn(size, generator=torch.Generator().manual_seed(3))
    for temperature in (0.5, 1.0):
        expected = (scores.double() / temperature).softmax(-1) * 20_000
        uniform = Uniforms([5], CPU)
        draws = torch.stack([uniform.at(step) for step in range(20_000)])[:, 0]
        tokens = drawn(scores.expand(20_000, size), draws, Sampling(temperature=temperature))
        counts = tokens.bincount(minlength=size)
        common = expected >= 5
        statistic = float(((counts - expected) ** 2 / expected)[common].sum())
        assert statistic < size + 4 * math.sqrt(2 * size) + 10
        # Neighbours in number are neighbours in the distribution: each token has an interval of its own.
        order = draws.argsort()
        assert bool((tokens[order].diff() >= 0).all())


SETTINGS = [
    Sampling(temperature=0.8), Sampling(temperature=1.0, top_k=7), Sampling(temperature=1.0, top_p=0.7), Sampling(temperature=1.5, top_p=0.99),
    Sampling(temperature=0.7, top_k=12, top_p=0.8), Sampling(temperature=1.0, min_p=0.2), Sampling(temperature=1.0, typical_p=0.6),
    Sampling(temperature=1.2, top_k=50, top_p=0.9, min_p=0.05, typical_p=0.8), Sampling(temperature=1.0, top_p=0.0),
]  # fmt: skip


@pytest.mark.parametrize("sampling", SETTINGS, ids=lambda sampling: sampling.method)
def test_what_is_left_is_what_transformers_leaves(sampling):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

    scores = 3 * torch.randn(4, 700, generator=torch.Generator().manual_seed(1))
    kept = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    kept = TopKLogitsWarper(sampling.top_k)(None, kept) if sampling.top_k else kept
    kept = TopPLogitsWarper(sampling.top_p)(None, kept) if sampling.top_p < 1 else kept
    kept = MinPLogitsWarper(sampling.min_p)(None, kept) if sampling.min_p else kept
    kept = TypicalLogitsWarper(mass=sampling.typical_p)(None, kept) if sampling.typical_p < 1 else kept
    probabilities = kept.double().softmax(-1)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for row in range(4):
        tokens = drawn(scores[row : row + 1].expand(4000, -1), grid, sampling)
        shares = tokens.bincount(minlength=700) / 4000
        assert float((shares - probabilities[row]).abs().max()) <= 1 / 4000 + 1e-6


def test_a_token_without_probability_is_never_drawn():
    scores = torch.full((3, 300), -math.inf)
    scores[:, 130] = 0.0
    edges = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert drawn(scores, edges, Sampling(temperature=1.0)).tolist() == [130] * 3
    scores[:, 7] = 0.0
    assert drawn(scores, edges, Sampling(temperature=1.0)).tolist() == [7, 130, 130]


def test_no_temperature_takes_the_likeliest():
    scores = torch.randn(2, 9)
    assert Choice(Sampling(temperature=0), [1, 2], CPU)(scores, torch.arange(2), 0).equal(scores.argmax(-1))
