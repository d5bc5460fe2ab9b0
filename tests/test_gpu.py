"""What only a GPU can show."""

from __future__ import annotations

import pytest
from conftest import examples

import blendkit as library


@pytest.mark.gpu
def test_logits_on_the_gpu_are_those_of_the_cpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    cpu, gpu = (list(library.pair(examples(3), device=device, dtype="float32")) for device in ("cpu", "cuda"))
    for mine, theirs in zip(cpu, gpu, strict=True):
        for (*_, logit), (*_, other) in zip(mine["comparisons"]["pairrm"]["pairs"], theirs["comparisons"]["pairrm"]["pairs"], strict=True):
            assert other == pytest.approx(logit, abs=1e-3)
