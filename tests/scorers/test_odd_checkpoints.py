"""Checkpoints that lack what others have, no padding token, no end of text, few positions, no system role: still a number, or one clear line."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import reward_models as made
import torch
from conftest import lines, parsed
from families import chatml, llama_3
from tiny_models import saved

LONG = {
    "id": "l", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why " * 300}],
    "output": "So.", "candidates": [{"model": "m", "text": "Yeast eats " * 100}, {"model": "n", "text": "No"}, {"model": "o", "text": ""}],
}  # fmt: skip
EMPTY = {"id": "e", "instruction": "", "output": "So.", "candidates": [{"model": "m", "text": ""}, {"model": "n", "text": "No"}]}


def causal(folder, kind, tokenizer, **config):
    import transformers

    torch.manual_seed(0)
    return saved(getattr(transformers, f"{kind}")(getattr(transformers, config.pop("described"))(vocab_size=len(tokenizer), **config)), tokenizer, folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """GPT-2's shape, with learned positions and a tokenizer that has neither template nor padding, start or end of text."""
    tokenizer = chatml()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.chat_template = None
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
    return causal(tmp_path_factory.mktemp("bare") / "model", "GPT2LMHeadModel", tokenizer, described="GPT2Config", **sizes)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Llama's shape, with a template that has no system role, and no padding token."""
    tokenizer = llama_3()
    tokenizer.chat_template = made.GEMMA.replace("<|im_start|>", "").replace("<|im_end|>", "<|eot_id|>")
    shape = {**made.SHAPE, "max_position_embeddings": 128, "pad_token_id": None}
    return causal(tmp_path_factory.mktemp("gemma") / "model", "LlamaForCausalLM", tokenizer, described="LlamaConfig", **shape)


def values(called, spec, records, *flags):
    code, out, err = called("score", "--metric", spec, "--device", "cpu", *flags, stdin=lines(records))
    assert code == 0, err
    found = [score for row in parsed(out) for candidate in row["candidates"] for score in candidate["scores"].values()]
    assert all(math.isfinite(value) for value in found)
    return found, err


@pytest.mark.parametrize("kind", ["bare", "gemma"])
def test_perplexity_of_what_does_not_fit_is_told(called, tmp_path, request, kind):
    folder, manifest = request.getfixturevalue(kind), tmp_path / "manifest.json"
    found, err = values(called, f"perplexity:{folder}", [LONG, EMPTY], "--manifest", manifest)
    assert found[2] == found[3] == 1e6 > max(found[0], found[1], found[4])
    told = json.loads(manifest.read_text())["truncation"]["perplexity"]
    assert (told["inputs"], told["inputs_cut"]) == (3, 2)
    assert err.splitlines()[0] == f"blendkit score: perplexity: cut to the model's length: 2 of 3 inputs ({told['tokens_cut']:,} tokens)"
    assert err.count("\n") == (2 if kind == "gemma" else 1)
    # No row depends on what it is padded with.
    assert values(called, f"perplexity:{folder}", [LONG, EMPTY], "--batch-tokens", 8)[0] == pytest.approx(found, rel=1e-4)


def test_perplexity_folds_a_system_message_into_the_users_turn(called, gemma):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (found,), err = values(called, f"perplexity:{gemma}", [{"id": "s", "messages": turns, "candidates": [{"model": "m", "text": "So"}]}])
    assert "has no system role: the system message stands at the head of the user's turn" in err
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gemma).eval(), AutoTokenizer.from_pretrained(gemma)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Be brief.\n\nWhy?"}], add_generation_prompt=True)["input_ids"]
    answer = tokenizer("So", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    mean = sum(float(logs[len(prompt) + place - 1, token]) for place, token in enumerate(answer)) / len(answer)
    assert found == pytest.approx(math.exp(-mean), rel=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "bertscore", "mbr:bertscore"])
def test_a_causal_model_is_an_encoder_without_a_padding_token(called, gemma, metric):
    found, _ = values(called, f"{metric}:{gemma}", [LONG, EMPTY])
    again, _ = values(called, f"{metric}:{gemma}", [LONG, EMPTY], "--batch-tokens", 8)
    assert found == pytest.approx(again, abs=1e-5)


@pytest.mark.parametrize("kind", ["simcls", "summareranker", "mlm", "bartscore", "bleurt", "reward"])
def test_a_causal_model_in_the_place_of_another_kind_is_one_line(called, gemma, bare, kind):
    for folder in (gemma, bare):
        code, out, err = called("score", "--metric", f"{kind}:{folder}", stdin=lines([EMPTY]))
        assert (code, out, len(err.splitlines())) == (66, "", 1), err


def test_an_empty_pair_has_a_start_of_text(called, tmp_path):
    """A reward model without a template, and a tokenizer that adds nothing to a text."""
    tokenizer = chatml()
    tokenizer.chat_template = None
    folder = made.classifier(tmp_path / "model", template=None, tokenizer=tokenizer)
    found, _ = values(called, f"reward:{folder}", [EMPTY])
    assert found[0] != found[1]


def test_tokens_without_embeddings_are_one_line(called, tmp_path, gemma):
    folder = shutil.copytree(gemma, tmp_path / "model")
    grown = llama_3()
    grown.add_tokens(["yeasty"])
    grown.save_pretrained(tmp_path / "tokenizer")
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.json", folder)
    record = EMPTY | {"instruction": "x", "candidates": [{"model": "m", "text": "so yeasty"}]}
    for metric in ("perplexity", "cosine", "bertscore"):
        code, out, err = called("score", "--metric", f"{metric}:{folder}", stdin=lines([record]))
        assert (code, out, len(err.splitlines())) == (66, "", 1), err
        assert "the two do not belong together" in err


def test_a_prefilter_tells_what_it_cut(called, tmp_path):
    folder = made.classifier(tmp_path / "model", labels=2)
    done = called("pair", "--prefilter", f"reward:{folder}#LABEL_1:2", "--device", "cpu", stdin=lines([LONG | {"messages": LONG["messages"][1:]}]))
    assert done[0] == 0, done[2]
    assert f"--prefilter reward:{folder}#LABEL_1:2: reward: cut to the model's length: " in done[2]
