"""The embedded ranker is read without transformers, and gives what transformers gives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blendkit.models.encoder import Encoder, load_encoder
from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.pairrm import load_pairrm
from blendkit.models.text_tokenizer import TextTokenizer

TEXTS = ["", "A plain sentence.", "two\n\n lines", "[SEP] spelled [CLS] out <|source|>", "ไทย 中文 Ünï", "long " * 600]


@pytest.fixture(scope="module")
def both():
    return [load_pairrm("embedded", packed_only=light) for light in (True, False)]


@pytest.fixture(scope="module")
def tokenizers(both):
    # Two of each, because a tokenizer of transformers that has cut goes on cutting.
    return [[TextTokenizer(tokenizer) for _, tokenizer in both] for _ in range(2)]


@given(st.lists(st.text() | st.sampled_from(TEXTS), max_size=4), st.integers(3, 600), st.booleans())
def test_the_tokenizers_agree(tokenizers, texts, longest, special):
    (light, whole), (light_alone, whole_alone) = tokenizers
    how = {"add_special_tokens": special, "truncation": True, "max_length": longest}
    if texts:
        assert light(texts, **how)["input_ids"] == [list(row) for row in whole(texts, **how)["input_ids"]]
    assert light_alone.ids("<|source|>", texts) == whole_alone.ids("<|source|>", texts)


def test_what_is_asked_of_both_tokenizers_is_the_same(both):
    light, whole = (tokenizer for _, tokenizer in both)
    for name in ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "sep_token", "model_max_length"):
        assert getattr(light, name) == getattr(whole, name), name
    assert light.num_special_tokens_to_add() == whole.num_special_tokens_to_add()
    assert [light.convert_tokens_to_ids(token) for token in ("the", "<|candidate2|>", "no such")] == whole.convert_tokens_to_ids(
        ["the", "<|candidate2|>", "no such"]
    )
    assert {key: str(token) for key, token in light.added_tokens_decoder.items()} == {key: str(token) for key, token in whole.added_tokens_decoder.items()}


def test_the_networks_agree(both):
    light, whole = (network for network, _ in both)
    weights = light.state_dict()
    for name, value in whole.state_dict().items():
        assert ".pooler." in name or torch.equal(value, weights[name]), name
    rows = Encoder("embedded").ids(TEXTS)
    states = [EncoderReader(network.pretrained_model, 0, torch.device("cpu"), torch.float32, places_only=False).states(rows) for network in (light, whole)]
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_training_gets_the_network_of_transformers():
    network, _ = load_encoder("embedded")
    assert type(network).__name__ == "BertModel"


def test_stages_with_the_embedded_model_import_nothing_but_torch():
    code = """
import sys, blendkit
texts = ["It is four.", "Five, perhaps. It may be six.", ""]
records = [{"id": "a", "instruction": "2 + 2?", "output": "Four.", "candidates": [{"model": str(n), "text": text} for n, text in enumerate(texts)]}]
records = blendkit.score(blendkit.pair(records), ["bertscore", "cosine", "mbr"])
records = list(blendkit.judge(blendkit.fuse(blendkit.rank(records, top=2), "consensus"), ["embedded"]))
assert records[0]["verdicts"]["embedded"] and len(records[0]["candidates"]) == 4
heavy = ("transformers", "scipy", "sklearn", "pandas", "datasets", "bert_score", "huggingface_hub", "sympy", "torch._dynamo", "torch._inductor")
print(sorted(set(heavy) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
