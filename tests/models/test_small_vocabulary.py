"""A ranker's vocabulary may be kept in int8, as the package's is."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from blendkit.errors import NoInputError
from blendkit.models.pairrm import SCALES, VOCABULARY, load_pairrm, save_pairrm


def test_a_vocabulary_in_int8_is_read_back_to_half_a_step(tiny_ranker, tmp_path):
    model, tokenizer = load_pairrm(str(tiny_ranker))
    with torch.no_grad():
        model.pretrained_model.get_input_embeddings().weight[3] = 0.0
    for name, small in (("large", False), ("small", True)):
        save_pairrm(tmp_path / name, model, tokenizer, small=small)
    found, _ = load_pairrm(str(tmp_path / "small"))
    before, after = model.state_dict(), found.state_dict()
    vocabulary = before[VOCABULARY]
    steps = vocabulary.abs().amax(1, keepdim=True) / 127
    assert ((after[VOCABULARY] - vocabulary).abs() <= steps * 0.51).all()
    assert not torch.equal(after[VOCABULARY], vocabulary)
    others = [name for name in before if name != VOCABULARY and ".pooler." not in name]
    assert all(torch.equal(after[name], before[name].half().float()) for name in others)
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert stored[VOCABULARY].dtype == torch.int8
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("large", "small")]
    # One byte a number in place of two; four a row are for its scale.
    assert sizes[0] - sizes[1] > vocabulary.numel() - 4 * len(vocabulary) - 1000
    scales = stored.pop(VOCABULARY + SCALES)
    for others, said in (({}, "is missing"), ({VOCABULARY + SCALES: scales[1:].clone()}, r"expected \[\d+, 1\], got")):
        save_file(stored | others, tmp_path / "small" / "model.safetensors")
        with pytest.raises(NoInputError, match=said):
            load_pairrm(str(tmp_path / "small"))
    del stored[VOCABULARY]
    save_file(stored, tmp_path / "small" / "model.safetensors")
    with pytest.raises(NoInputError, match=r"lacks 1 weight of a PairRanker, .*word_embeddings"):
        load_pairrm(str(tmp_path / "small"))
