"""What makes decoders fast changes no numbers: weights in another layout, and batches by memory."""

from __future__ import annotations

import pytest
import torch

from blendkit.models import loading
from blendkit.models.fast.linear import FEW, pack_linears


@pytest.fixture
def network():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=97, **sizes)).eval()


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 40])
def test_packed_layers_give_what_plain_ones_give(network, rows):
    ids = torch.randint(0, 97, (rows, 1), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = network(ids).logits
        pack_linears(network)
        pack_linears(network)
        assert torch.allclose(network(ids).logits, plain, atol=1e-5)
        # Whoever asks for one of the layers alone, or in another order, gets its own product.
        layer, states = network.model.layers[0].self_attn, torch.randn(rows, 32)
        for projection in (layer.v_proj, layer.v_proj, layer.q_proj, layer.k_proj):
            expected = torch.nn.functional.linear(states, projection.weight, projection.bias)
            assert torch.allclose(projection(states), expected, atol=1e-5)


def test_nothing_is_packed_where_memory_is_short(network, monkeypatch):
    monkeypatch.setattr("blendkit.models.fast.linear.memory_left", lambda device: 1000)
    pack_linears(network)
    assert all("forward" not in vars(module) for module in network.modules())


def test_a_batch_is_as_large_as_free_memory_and_device_let_it_be(network, monkeypatch):
    each = loading.key_value_numbers(network.config)
    assert each == 2 * 2 * 2 * 8  # keys and values, layers, heads of keys, width of a head
    cuda, cpu, left = torch.device("cuda"), torch.device("cpu"), {}
    monkeypatch.setattr(loading, "memory_left", lambda device: left["bytes"])
    left["bytes"] = 1000 + 2 * 100_000 * each * 2
    assert loading.decoding_budget(cuda, network.config, 2, weights=1000) == 100_000
    assert loading.decoding_budget(cpu, network.config, 2, weights=1000) == 50_000
    left["bytes"] = 1 << 50
    assert loading.decoding_budget(cuda, network.config, 2, 0) > loading.decoding_budget(cpu, network.config, 2, 0) == 65_536
    left["bytes"] = 0
    assert loading.decoding_budget(cuda, network.config, 2, 10**9) == loading.DECODED
    assert loading.decoding_budget(cpu, object(), 4, 0) == loading.DECODED


def test_a_seq2seq_models_budget_is_by_its_decoders_keys_and_values(monkeypatch):
    from transformers import BartConfig, T5Config

    t5 = T5Config(num_layers=24, num_decoder_layers=12, num_heads=32, d_kv=64, d_model=2048)
    bart = BartConfig(encoder_layers=2, decoder_layers=6, encoder_attention_heads=4, decoder_attention_heads=8, d_model=512)
    assert loading.key_value_numbers(t5.get_text_config(decoder=True)) == 2 * 12 * 32 * 64
    assert loading.key_value_numbers(bart.get_text_config(decoder=True)) == 2 * 6 * 512
    # T5's heads have a width of their own: of t5-3b four times what its hidden size says.
    wide = type(t5)(d_model=1024, d_kv=128, num_heads=32, num_layers=24)
    assert loading.key_value_numbers(wide.get_text_config(decoder=True)) == 2 * 24 * 32 * 128
    monkeypatch.setattr(loading, "memory_left", lambda device: 40 << 30)
    # Half of 40 GiB by 96 KiB a token in bfloat16.
    assert loading.decoding_budget(torch.device("cuda"), t5.get_text_config(decoder=True), 2, 0) == (20 << 30) // (96 << 10)
