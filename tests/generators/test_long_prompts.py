"""Prompts that a local model has no positions for: cut where texts are longest, reported, or refused; the rest of the prompt stays whole."""

from __future__ import annotations

import json

import pytest
import tiny_models
from conftest import examples, lines, parsed

from blendkit.generators.base import Prompt
from blendkit.generators.local import LocalModel
from blendkit.generators.options import Sampling

LONG = " ".join(f"word{number}" for number in range(400))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """GPT-2-shaped: 128 learnt positions, and not one more."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_models.bpe_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    return tiny_models.saved(GPT2LMHeadModel(config), tokenizer, tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """Llama-shaped, with 640 positions: enough for a judge's own words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_models.bpe_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=1, max_position_embeddings=640)
    return tiny_models.saved(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("models") / "medium")


def test_a_long_prompt_is_cut_and_told(called, small, tmp_path):
    records = lines([{"id": "a", "instruction": LONG}, {"id": "b", "instruction": "Why?"}])
    command = ["generate", "-m", small, "--max-new-tokens", "20", "--temperature", "0", "--manifest", tmp_path / "manifest.json"]
    code, out, err = called(*command, stdin=records)
    assert code == 0, err
    first, second = (record["candidates"][0] for record in parsed(out))
    assert first["usage"]["prompt_tokens"] == 128 - 20 > second["usage"]["prompt_tokens"]
    assert err.count("1 of 2 prompts") == 1 and "--on-truncate fail" in err
    (model,) = json.loads((tmp_path / "manifest.json").read_text())["models"].values()
    assert model["truncation"]["prompts"] == 2 and model["truncation"]["prompts_cut"] == 1 and model["truncation"]["prompt_tokens_cut"] > 1000


def test_a_long_prompt_is_bad_where_cutting_is_refused(called, small):
    records = lines([{"id": "a", "instruction": "Why?"}, {"id": "b", "instruction": LONG}])
    command = ["generate", "-m", small, "--max-new-tokens", "20", "--on-truncate", "fail"]
    code, out, err = called(*command, stdin=records)
    assert code == 65 and [record["id"] for record in parsed(out)] == ["a"]
    assert "tokens, 108 fit with 20 for the answer" in err and "<stdin>:2" in err
    code, out, err = called(*command, "--on-error", "skip", stdin=records)
    assert code == 70 and [record["id"] for record in parsed(out)] == ["a"], err


def test_the_template_stays_whole_and_the_text_keeps_its_beginning(small):
    encoded = LocalModel(str(small), "cpu").prompting.encoded(
        Prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}, {"role": "user", "content": "Why?"}]), 20
    )
    head, _, tail = encoded.text.partition("user: ")
    assert head == "system: Be brief.\n" and tail.endswith("\nuser: Why?\nassistant: ")
    kept = tail.removesuffix("\nuser: Why?\nassistant: ")
    assert LONG.startswith(kept) and len(encoded.ids) in (107, 108)


@pytest.mark.parametrize(("asked", "most"), [(20, 108), (64, 64), (1000, 64)])
def test_no_more_than_half_of_the_positions_is_kept_for_the_answer(small, asked, most):
    model = LocalModel(str(small), "cpu", "float32")
    (found,) = model.complete([Prompt([{"role": "user", "content": LONG}])], Sampling(max_new_tokens=asked, temperature=0))
    assert most - 1 <= found.usage["prompt_tokens"] <= most
    assert found.usage["completion_tokens"] <= 128 - found.usage["prompt_tokens"]


def test_an_answer_ends_with_the_positions_whatever_else_is_in_the_batch(small):
    model = LocalModel(str(small), "cpu", "float32")
    model.answers.ends = frozenset()
    model.model.generation_config.eos_token_id = None
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("Why?", LONG, "word " * 20)]
    sampling = Sampling(max_new_tokens=1000, temperature=0)
    together = model.complete(prompts, sampling)
    assert together == [model.complete([prompt], sampling)[0] for prompt in prompts]
    for found in together:
        assert found.usage["prompt_tokens"] + found.usage["completion_tokens"] == 128 and found.finish_reason == "length"


@pytest.mark.parametrize("decoding", ["beam:3", "diverse-beam:2", "top-p:0.9"])
def test_every_decoding_keeps_to_the_positions(called, small, decoding):
    records = lines([{"id": "a", "instruction": LONG}, {"id": "b", "instruction": "Why?"}])
    code, out, err = called("generate", "-m", small, "--decoding", decoding, "--max-new-tokens", "80", "--logprobs", stdin=records)
    assert code == 0, err
    for record in parsed(out):
        usage = record["candidates"][0]["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] <= 128


def test_relative_positions_read_any_length(tiny_t5):
    model = LocalModel(str(tiny_t5), "cpu")
    prompt = Prompt([{"role": "user", "content": LONG * 3}])
    assert model.prompting.positions is None and model.prompting.encoded(prompt, 20).cut == 0


def test_a_format_is_cut_as_a_template_is(called, small):
    """A preset's own words stay, its instruction is cut."""
    from blendkit.generators.presets import PRESETS

    prompting = LocalModel(str(small), "cpu").prompting
    encoded = prompting.encoded(Prompt([{"role": "user", "content": LONG}], format=PRESETS["alpaca"].text), 4)
    assert encoded.cut and encoded.text.startswith("Below is") and encoded.text.rstrip().endswith("### Response:")


def test_a_format_that_does_not_fit_is_the_records_fault(small):
    prompting = LocalModel(str(small), "cpu").prompting
    from blendkit.errors import RecordError

    with pytest.raises(RecordError, match="own format"):
        prompting.encoded(Prompt([], format=lambda messages, material: LONG), 4)


@pytest.mark.parametrize("verdict_by", ["likelihood", "text"])
def test_a_judge_loses_the_ends_of_long_answers_and_nothing_else(called, medium, verdict_by):
    (record,) = examples(1)
    record["candidates"] = [{"model": "m", "text": LONG}, {"model": "n", "text": "Short."}]
    command = ["judge", "-m", f"j={medium}", "--verdict-by", verdict_by, "--max-new-tokens", "8", "--max-unparsed", "1"]
    code, out, err = called(*command, stdin=lines([record]))
    assert code == 0 and "prompts (" in err, err
    assert len(parsed(out)[0]["verdicts"]["j"]) == 2
    code, _, err = called(*command, "--on-truncate", "fail", stdin=lines([record]))
    assert code == 65 and "too long for" in err


def test_what_is_quoted_is_cut_and_not_the_question_behind_it(medium):
    from blendkit.judges.llm import LLMJudge

    judge = LLMJudge(str(medium), device="cpu")
    record = {"id": "r", "instruction": "Why?", "output": "So.", "candidates": [{"model": "m", "text": LONG}, {"model": "n", "text": LONG[:900]}]}
    (work,) = next(judge.rounds(record, [(0, 1)]))
    whole = work.payload[0].messages[0]["content"]
    encoded = judge.model.prompting.settled(work.payload[0], "", ["A"])
    shown = encoded.text.removeprefix("user: ").removesuffix("\nassistant: ")
    assert encoded.cut and shown[-150:] == whole[-150:] and shown[:300] == whole[:300]
    # Both long texts have lost their ends, as far as they are equal.
    assert shown.count("word0 word1 word2 ") == 2


def test_a_fuser_says_its_task_whole(called, medium):
    (record,) = examples(1)
    record |= {"candidates": [{"model": "m", "text": LONG}, {"model": "n", "text": "Short."}], "top": [0, 1]}
    code, _, err = called("fuse", "-m", medium, "--max-new-tokens", "8", stdin=lines([record]))
    assert code == 0 and "1 of 1 prompt " in err, err
    code, _, err = called("fuse", "-m", medium, "--max-new-tokens", "8", "--on-truncate", "fail", stdin=lines([record]))
    assert code == 65, err


def test_genfuser_counts_candidates_and_prompts_that_are_cut(called, tiny_t5, tmp_path):
    (record,) = examples(1)
    record |= {"instruction": "Why?", "input": "", "candidates": [{"model": "m", "text": LONG}, {"model": "n", "text": "Short."}], "top": [0, 1]}
    fuse = ("fuse", "-m", tiny_t5, "--max-new-tokens", 4, "--device", "cpu", "--manifest", tmp_path / "manifest.json")
    code, _, err = called(*fuse, "--candidate-maxlength", 8, "--max-length", 16, stdin=lines([record]))
    assert code == 0, err
    told = json.loads((tmp_path / "manifest.json").read_text())["truncation"]
    assert told["candidates"]["inputs"] == 2 and told["candidates"]["inputs_cut"] == told["prompts"]["inputs_cut"] == 1
    for what, flag in (("candidates", "--candidate-maxlength"), ("prompts", "--max-length")):
        of, tokens = told[what]["inputs"], told[what]["tokens_cut"]
        assert tokens > 20
        cut = f"cut to the model's length: 1 of {of} input{'s' * (of > 1)} ({tokens:,} tokens)"
        line = f"blendkit fuse: {what}: {cut}; {flag} lets more in, --on-truncate fail stops instead"
        assert line in err.splitlines()
    code, _, err = called(*fuse, "--candidate-maxlength", 8, "--on-truncate", "fail", stdin=lines([record]))
    assert code == 65 and "candidates: too long for" in err and "1 of 2 texts: the longest has" in err and "that fit; --candidate-maxlength lets more in" in err
    code, _, err = called(*fuse, "--candidate-maxlength", 9999, "--on-truncate", "fail", stdin=lines([record]))
    assert code == 65 and "the prompt has" in err and "than the 1,024 that fit; --max-length lets more in" in err
    assert called(*fuse, "--candidate-maxlength", 9999, "--max-length", 9999, "--on-truncate", "fail", stdin=lines([record]))[::2] == (0, "")
    assert called(*fuse, "--on-truncate", "cut", stdin=lines([record]))[0] == 2


def test_the_flag_is_for_local_models(called, medium):
    code, _, err = called("generate", "-m", "openai:gpt", "--base-url", "http://127.0.0.1:9/v1", "--on-truncate", "fail", stdin="")
    assert code == 2 and "--on-truncate" in err
    code, _, err = called("generate", "-m", medium, "--on-truncate", "cut", stdin="")
    assert code == 2 and "expected warn or fail" in err
