"""Local checkpoints as they are found: templates that refuse, missing tokens, absurd settings, prompts that are too long."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import examples, lines, parsed

from blendkit.generators.base import Prompt
from blendkit.generators.local import LocalModel
from blendkit.generators.options import Sampling

LOOP = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + LOOP
SILENT = "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: user, assistant') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}<assistant>"
)
PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}<assistant>"
)
STRICT_PARTS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'][0]['text'] + '' }}{% endfor %}<assistant>"
NO_BOS = "{{ bos_token + '' }}" + LOOP
SHORT = {"max_new_tokens": 4, "temperature": 0}


@pytest.fixture
def changed(tiny_chat, tmp_path):
    """`changed(template=…, config={…}, generation={…}, tokenizer={…})`: the tiny chat model with other settings; None takes one out."""

    def make(template=..., config=(), generation=(), tokenizer=(), source=tiny_chat):
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        for file, more in (("config.json", config), ("generation_config.json", generation), ("tokenizer_config.json", tokenizer)):
            content = json.loads((folder / file).read_text()) | dict(more)
            (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        if template is None:
            (folder / "chat_template.jinja").unlink()
        elif template is not ...:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def said(folder, *turns, effort=None):
    """The prompt's text of (role, content) turns."""
    return LocalModel(str(folder), "cpu").prompting.encoded(Prompt([{"role": role, "content": text} for role, text in turns]), 4, effort).text


SYSTEM, ASK, REPLY = ("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (LOOP, [SYSTEM, ASK], "<system>Be brief.<user>Why?<assistant>"),
        (LOOP, [ASK, ASK], "<user>Why?<user>Why?<assistant>"),
        (NO_SYSTEM, [SYSTEM, ASK, REPLY, ASK], "<user>Be brief.\n\nWhy?<assistant>So.<user>Why?<assistant>"),
        (NO_SYSTEM, [SYSTEM], "<user>Be brief.<assistant>"),
        (SILENT, [SYSTEM, ASK], "<user>Be brief.\n\nWhy?<assistant>"),
        (ALTERNATING, [SYSTEM, ASK, REPLY, ASK], "<user>Be brief.\n\nWhy?<assistant>So.<user>Why?<assistant>"),
        (ALTERNATING, [ASK, ASK, REPLY, REPLY, ASK], "<user>Why?\n\nWhy?<assistant>So.\n\nSo.<user>Why?<assistant>"),
        (ALTERNATING, [ASK, REPLY, SYSTEM, ASK], "<user>Why?<assistant>So.<user>Be brief.\n\nWhy?<assistant>"),
        (ALTERNATING, [("developer", "Be kind."), ASK], "<user>Be kind.\n\nWhy?<assistant>"),
        (PARTS, [SYSTEM, ASK], "<system>Be brief.<user>Why?<assistant>"),
        (STRICT_PARTS, [ASK], "<user>Why?<assistant>"),
        (NO_BOS, [ASK], "<user>Why?<assistant>"),
    ],
)
def test_a_conversation_is_said_as_the_template_takes_it(changed, template, turns, expected):
    assert said(changed(template), *turns) == expected


def test_a_system_message_in_the_midst_goes_to_the_turn_behind_it(changed):
    only_first = "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('only first') }}{% endif %}{% endfor %}" + LOOP
    folder = changed(only_first)
    assert said(folder, ASK, REPLY, SYSTEM, ASK) == "<user>Why?<assistant>So.<user>Be brief.\n\nWhy?<assistant>"
    assert said(folder, SYSTEM, ASK) == "<system>Be brief.<user>Why?<assistant>"


def test_what_was_folded_is_said_once_at_the_end(called, changed):
    prompts = lines([{"id": name, "instruction": "Why?"} for name in "abc"])
    command = ["generate", "-m", changed(NO_SYSTEM), "--system", "Be brief.", "--max-new-tokens", "2"]
    code, out, err = called(*command, stdin=prompts)
    assert code == 0 and len(parsed(out)) == 3, err
    assert err.count("has no system role") == 1
    code, _, err = called("generate", "-m", changed(LOOP), "--system", "Be brief.", "--max-new-tokens", "2", stdin=prompts)
    assert code == 0 and "system role" not in err


def test_what_a_template_refuses_in_every_form_is_the_records_fault(called, changed):
    bad = {"id": "bad", "messages": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]}
    records = lines([bad, {"id": "good", "instruction": "Why?"}])
    command = ["generate", "-m", changed(ALTERNATING), "--max-new-tokens", "2"]
    code, out, err = called(*command, stdin=records)
    assert (code, out) == (65, "") and "Roles must alternate" in err
    code, out, err = called(*command, "--on-error", "skip", stdin=records)
    assert code == 70 and [record["id"] for record in parsed(out)] == ["good"], err


BARE = {"config": {"pad_token_id": None, "eos_token_id": None, "bos_token_id": None}, "generation": {"pad_token_id": None, "eos_token_id": None}}


@pytest.mark.parametrize("template", [LOOP, None])
def test_without_pad_eos_and_template_all_tokens_are_written(called, changed, template):
    folder = changed(template, **BARE, tokenizer={"pad_token": None, "eos_token": None})
    records = [{"id": "a", "instruction": "Why?"}, {"id": "b", "instruction": "A much longer question, so that the batch is padded: why?"}]
    command = ["generate", "-m", folder, "--max-new-tokens", "6", "--temperature", "0", "--logprobs"]
    code, out, err = called(*command, stdin=lines(records))
    assert code == 0, err
    together = parsed(out)
    for record, alone in zip(together, records, strict=True):
        (candidate,) = record["candidates"]
        assert candidate["finish_reason"] == "length" and candidate["usage"]["completion_tokens"] == 6
        code, out, _ = called(*command, stdin=lines([alone]))
        assert parsed(out)[0]["candidates"][0]["text"] == candidate["text"]


ABSURD = [
    {"max_length": 1, "min_length": 1_000_000},
    {"max_new_tokens": -5, "min_new_tokens": 1_000_000},
    {"max_length": "many", "num_beams": 7, "num_beam_groups": 3, "do_sample": True, "temperature": -1.0},
    {"forced_eos_token_id": 5, "forced_bos_token_id": 10_000_000, "suppress_tokens": [3, 4, 5], "begin_suppress_tokens": [6], "bad_words_ids": [[7]]},
    {"stop_strings": ["e", "a"], "watermarking_config": {"bias": 9.0}, "guidance_scale": 7.5, "penalty_alpha": 0.6, "top_k": 4},
    {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "cache_implementation": "static", "use_cache": False, "max_time": 0.0},
    {"eos_token_id": [1, -3, 10_000_000], "pad_token_id": 10_000_000, "bos_token_id": -1, "constraints": [1], "sequence_bias": [[[3], 9.0]]},
    {"assistant_early_exit": 1, "prompt_lookup_num_tokens": 10**9, "return_dict_in_generate": True, "num_return_sequences": 5},
]


@pytest.mark.parametrize("settings", ABSURD, ids=lambda settings: next(iter(settings)))
def test_flags_decide_how_to_decode_and_never_the_checkpoint(called, changed, tiny_chat, settings):
    records = lines([{"id": "a", "instruction": "Why?"}, {"id": "b", "instruction": "And how, if one may ask?"}])
    command = ["generate", "--max-new-tokens", "6", "--temperature", "0", "-m"]
    _, plain, _ = called(*command, f"m={tiny_chat}", stdin=records)
    code, out, err = called(*command, f"m={changed(generation=settings)}", stdin=records)
    assert code == 0, err
    assert parsed(out) == parsed(plain)


def test_an_unreadable_generation_config_is_not_needed(called, tiny_chat, changed):
    folder = changed()
    (folder / "generation_config.json").write_text("[1, 2")
    code, out, err = called("generate", "-m", folder, "--max-new-tokens", "2", stdin='{"id":"a","instruction":"x"}\n')
    assert code == 0 and parsed(out), err


def test_the_token_behind_an_answer_in_the_template_ends_an_answer(changed):
    """Whatever the configuration calls the end of text."""
    chatml = "{% for m in messages %}{{ m['content'] }}<extra_id_1>\n{% endfor %}"
    model = LocalModel(str(changed(chatml, **BARE)), "cpu")
    assert model.tokenizer.convert_tokens_to_ids("<extra_id_1>") in model.answers.ends
    assert LocalModel(str(changed(LOOP)), "cpu").answers.ends == {1}


def test_weights_that_are_missing_are_not_drawn_at_random(called, changed):
    from safetensors.torch import load_file, save_file

    folder = changed()
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code, out, err = called("generate", "-m", folder, "--max-new-tokens", "2", stdin='{"id":"a","instruction":"x"}\n')
    assert (code, out) == (66, "") and "lacks 1 weight of LlamaForCausalLM, lm_head.weight first" in err, err


def test_a_panel_of_bare_checkpoints_judges_and_fuses(called, changed):
    folder = changed(ALTERNATING, **BARE, tokenizer={"pad_token": None, "eos_token": None})
    records = examples(1)
    records[0] |= {"candidates": records[0]["candidates"][:2], "top": [0, 1]}
    code, out, err = called("judge", "-m", f"j={folder}", stdin=lines(records))
    assert code == 0 and parsed(out)[0]["verdicts"]["j"], err
    code, out, err = called("fuse", "-m", folder, "--max-new-tokens", "3", stdin=lines(records))
    assert code == 0 and parsed(out)[0]["candidates"][-1]["sources"] == [0, 1], err


def test_a_tokenizer_that_fails_at_a_text_is_the_records_fault(tiny_chat, monkeypatch):
    model = LocalModel(str(tiny_chat), "cpu")
    read = type(model.prompting.texts).read

    def failing(self, text, **settings):
        if "poison" in text:
            raise IndexError("index out of range in self")
        return read(self, text, **settings)

    monkeypatch.setattr(type(model.prompting.texts), "read", failing)
    found = model.complete([Prompt([{"role": "user", "content": text}]) for text in ("x", "poison", "y")], Sampling(**SHORT))
    assert [type(one).__name__ for one in found] == ["Completion", "RecordError", "Completion"]
    assert "index out of range" in str(found[1])
