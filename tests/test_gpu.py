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
    same_on_both("embedded")


@pytest.mark.gpu
@pytest.mark.parametrize("paired", [1, 2])
def test_a_late_paired_rankers_logits_on_the_gpu_are_those_of_the_cpu(tmp_path, paired):
    import torch

    from blendkit.models.pairrm import load_pairrm, save_pairrm
    from blendkit.training.new_pairranker import late_paired

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    model, tokenizer = load_pairrm("embedded")
    save_pairrm(tmp_path, late_paired(model, paired), tokenizer, torch.float32)
    same_on_both(str(tmp_path))


def same_on_both(model: str) -> None:
    cpu, gpu = (list(library.pair(examples(3), model, device=device, dtype="float32")) for device in ("cpu", "cuda"))
    for mine, theirs in zip(cpu, gpu, strict=True):
        for (*_, logit), (*_, other) in zip(mine["comparisons"]["pairrm"]["pairs"], theirs["comparisons"]["pairrm"]["pairs"], strict=True):
            assert other == pytest.approx(logit, abs=1e-3)
