"""The loop of our own writes what `generate` of transformers does, for every family that it takes, and others are left to that."""

from __future__ import annotations

import pytest

from blendkit.generators.base import Prompt
from blendkit.generators.local import LocalModel
from blendkit.generators.options import Sampling

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
WINDOWS = GROUPED | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8}
TAKEN = {
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 6}),
    "gemma2": ("Gemma2", WINDOWS | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", WINDOWS),
    "phi": ("Phi", SIZES),
    "gpt_neox": ("GPTNeoX", SIZES),
    "gpt2": ("GPT2", GPT),
    "opt": ("OPT", {"vocab_size": 97, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": True}),
}
LEFT = {
    "bloom": ("Bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "mamba": ("Mamba", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
BEGIN = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
# Of one length, of several, with a beginning in common, and with equal ones.
BATCHES = {
    "one": [[3, 4, 5]],
    "equal": [[3, 4, 5], [3, 9, 5]],
    "mixed": [[3, 4, 5], [20, 30, 40, 50, 60, 70, 80, 90, 11, 12, 13], [7], [3, 4, 5]],
    "shared": [[*BEGIN, 20], [*BEGIN, 30, 31, 32, 33, 34], [*BEGIN, 40, 41], [*BEGIN, 20]],
}


def network(name, sizes):
    import torch
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    found = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in found.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return found


def written(model, rows, rooms, ends, sampling=None, seeds=None, **more):
    import torch

    from blendkit.generators.decoding import Decoding
    from blendkit.generators.draws import Choice

    choose = Choice(sampling or Sampling(temperature=0), seeds or [*range(len(rows))], torch.device("cpu"))
    return Decoding(model, rows, rooms, choose, frozenset(ends), **more)()


def generated(model, row, new, ends, **more):
    """What transformers writes behind one prompt, and the tokens' log-probabilities."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=0)
    ids = torch.tensor([row])
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = model.generate(input_ids=ids, max_new_tokens=new, **given, **more)
    tokens = out.sequences[0, len(row) :].tolist()
    return tokens, [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, tokens, strict=True)]


@pytest.mark.parametrize("family", TAKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_writes_what_transformers_writes_for_each_prompt(family, packed):
    from blendkit.generators.decoding import decodes
    from blendkit.models.fast.linear import pack_linears

    model = network(*TAKEN[family])
    assert decodes(model)
    expected = {name: [generated(model, row, 12, [2, 17]) for row in rows] for name, rows in BATCHES.items()}
    if packed:
        pack_linears(model)
    for name, rows in BATCHES.items():
        found = written(model, rows, [12] * len(rows), [2, 17], logprobs=True)
        for one, (tokens, values) in zip(found, expected[name], strict=True):
            assert one.tokens == tokens, name
            assert one.logprobs == pytest.approx(values, abs=1e-4)


def test_rows_leave_at_ends_and_rooms_of_their_own():
    model = network(*TAKEN["llama"])
    rows, rooms = BATCHES["mixed"], [3, 9, 1, 6]
    whole = [one.tokens for one in written(model, rows, [12] * 4, [])]
    assert [len(tokens) for tokens in whole] == [12] * 4
    assert [one.tokens for one in written(model, rows, rooms, [])] == [tokens[:room] for tokens, room in zip(whole, rooms, strict=True)]
    end = whole[1][4]
    cut = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in whole]
    assert [one.tokens for one in written(model, rows, [12] * 4, [end])] == cut
    assert [one.tokens for one in written(model, rows, [12] * 4, [], stopped=lambda row, tokens: row == 1 and len(tokens) == 2)] == [
        tokens[:2] if row == 1 else tokens for row, tokens in enumerate(whole)
    ]


def test_a_long_answer_outgrows_the_memory_asked_for_at_first(monkeypatch):
    monkeypatch.setattr("blendkit.models.fast.kv_cache.FIRST", 2)
    model = network(*TAKEN["llama"])
    assert written(model, [[3, 4, 5]], [40], [])[0].tokens == generated(model, [3, 4, 5], 40, [])[0]


def test_looking_at_answers_now_and_then_changes_none():
    from blendkit.generators import decoding

    model = network(*TAKEN["gpt2"])
    rows, rooms = BATCHES["mixed"], [3, 51, 1, 6]
    expected = [one.tokens for one in written(model, rows, rooms, [2, 17], positions=64)]
    for look in (2, 8):
        some = decoding.Decoding(model, rows, rooms, lambda scores, rows, step: scores.argmax(-1), frozenset([2, 17]), positions=64)
        some.look = look
        assert [one.tokens for one in some()] == expected


def test_a_penalty_counts_the_prompt_and_no_padding():
    model = network(*TAKEN["llama"])
    expected = [generated(model, row, 12, [], repetition_penalty=1.5)[0] for row in BATCHES["mixed"]]
    assert [one.tokens for one in written(model, BATCHES["mixed"], [12] * 4, [], penalty=1.5)] == expected


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.3), Sampling(temperature=0.9, top_p=0.8), Sampling(temperature=1.0, top_k=20, min_p=0.02)])
def test_draws_depend_on_the_seed_alone(sampling):
    model = network(*TAKEN["qwen2"])
    rows, seeds = BATCHES["mixed"], [11, 12, 13, 14]
    together = [one.tokens for one in written(model, rows, [70, 20, 5, 70], [], sampling, seeds)]
    assert together[0] != together[3]  # the same prompt, another seed
    order = [2, 0, 3, 1]
    again = written(model, [rows[row] for row in order], [(70, 20, 5, 70)[row] for row in order], [], sampling, [seeds[row] for row in order])
    assert [one.tokens for one in again] == [together[row] for row in order]
    for row in range(4):
        assert written(model, [rows[row]], [(70, 20, 5, 70)[row]], [], sampling, [seeds[row]])[0].tokens == together[row]


@pytest.mark.parametrize("family", LEFT)
def test_other_networks_are_left_to_transformers(family):
    from blendkit.generators.decoding import decodes

    assert not decodes(network(*LEFT[family]))


def test_what_transformers_decodes_draws_the_same(tiny_chat, monkeypatch):
    """A network that the loop does not take has the same answers for the same seeds."""
    model = LocalModel(str(tiny_chat), "cpu", "float32")
    asked = [Prompt([{"role": "user", "content": text}], seed) for seed, text in enumerate(("Why?", "And how, if one may ask?", "So?"))]
    for sampling in (
        Sampling(12, 0.9, 0.9, logprobs=True), Sampling(12, 0.9, repetition_penalty=1.3, stop=("e",)), Sampling(12, 0.9, typical_p=0.7, top_k=9)
    ):  # fmt: skip
        ours = model.complete(asked, sampling)
        with monkeypatch.context() as patch:
            patch.setattr("blendkit.generators.local.decodes", lambda network: False)
            # Padding counts for transformers' penalty, so that each is asked alone.
            theirs = [model.complete([one], sampling)[0] for one in asked]
        assert [(one.text, one.finish_reason, one.usage) for one in ours] == [(one.text, one.finish_reason, one.usage) for one in theirs]
        if sampling.logprobs:
            assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=1e-4)
