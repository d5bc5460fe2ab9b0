"""Local models that reason: what they think stays apart, has room of its own, and no verdict is read inside it."""

from __future__ import annotations

import shutil

import pytest
from conftest import examples

import blendkit as library
from blendkit.generators.base import Prompt
from blendkit.generators.local import LocalModel
from blendkit.generators.options import Sampling
from blendkit.generators.reasoning import ROOM

LOOP = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
OPENS = LOOP + "<think>\n"
# As Qwen3's: thinking is switched off by a variable.
SWITCH = LOOP + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
EFFORT = "{% if reasoning_effort is defined %}effort={{ reasoning_effort }} {% endif %}" + OPENS
GREEDY = Sampling(max_new_tokens=64, temperature=0)


class Scripted:
    """A network that writes given ids, token by token as transformers' `generate` does, whatever it reads."""

    def __init__(self, network, rows):
        self.generation_config, self.rows, self.asked = network.generation_config, rows, []

    def generate(self, input_ids, max_new_tokens, stopping_criteria, **settings):
        import torch

        self.asked.append(max_new_tokens)
        pad, ends = self.generation_config.pad_token_id, self.generation_config.eos_token_id or []
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        for place in range(max_new_tokens):
            column = [pad if over else row[place] if place < len(row) else ends[0] for row, over in zip(self.rows, done.tolist(), strict=False)]
            input_ids = torch.cat([input_ids, torch.tensor(column)[:, None]], dim=1)
            done = done | torch.tensor([token in ends for token in column]) | stopping_criteria(input_ids, None)
            if done.all():
                break
        return input_ids


@pytest.fixture
def model(tiny_chat, tmp_path):
    """`model(template, *special)`: the tiny chat model with another template and special tokens; `.writes(…)` says what it will write."""

    def make(template, *special):
        folder = tmp_path / "model"
        shutil.copytree(tiny_chat, folder)
        (folder / "chat_template.jinja").write_text(template)
        if special:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
            tokenizer.save_pretrained(folder)
            (folder / "chat_template.jinja").write_text(template)
        found = LocalModel(str(folder), "cpu", "float32")

        def writes(*texts):
            rows = [found.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            found._network = Scripted(found.model, rows)
            return found

        found.writes = writes
        return found

    return make


def asked(*contents):
    return [Prompt([{"role": "user", "content": content}]) for content in contents]


@pytest.mark.parametrize(
    ("template", "special", "written"),
    [
        (OPENS, (), "Let me see.\n</think>\n\nIt is 4."),
        (OPENS, ("<think>", "</think>"), "Let me see.\n</think>\n\nIt is 4."),
        (LOOP, (), "<think>\nLet me see.\n</think>\n\nIt is 4."),
        (LOOP, ("<think>", "</think>"), "<think>\nLet me see.\n</think>\n\nIt is 4."),
        (LOOP, ("[THINK]", "[/THINK]"), "[THINK]Let me see.[/THINK]It is 4."),
        (
            LOOP, ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"),
            "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
        ),
    ],
)  # fmt: skip
def test_reasoning_is_kept_apart_however_it_is_marked(model, template, special, written):
    (found,) = model(template, *special).writes(written).complete(asked("2 + 2?"), GREEDY)
    assert (found.text, found.reasoning, found.finish_reason) == ("It is 4.", "Let me see.", "stop")


def test_an_answer_without_reasoning_is_left_as_it_is(model):
    (found,) = model(LOOP, "<think>", "</think>").writes("It is 4.").complete(asked("2 + 2?"), GREEDY)
    assert (found.text, found.reasoning) == ("It is 4.", None)


def test_a_question_that_ends_in_a_tag_opens_nothing(model):
    (found,) = model("{% for m in messages %}{{ m['content'] }}{% endfor %}").writes("It opens reasoning.").complete(asked("What is <think>"), GREEDY)
    assert (found.text, found.reasoning) == ("It opens reasoning.", None)


def test_a_stop_inside_the_reasoning_does_not_end_the_answer(model):
    sampling = Sampling(max_new_tokens=64, temperature=0, stop=("\n\n", "END"))
    reasons = model(OPENS).writes("First.\n\nThen END again.\n</think>It is 4. END and more", "Short.</think>Yes.")
    first, second = reasons.complete(asked("2 + 2?", "Is it?"), sampling)
    assert first.text == "It is 4." and first.reasoning == "First.\n\nThen END again." and first.finish_reason == "stop"
    assert second.text == "Yes." and second.reasoning == "Short."


def test_reasoning_that_takes_all_tokens_is_given_room(model):
    reasons = model(OPENS).writes("Hm, " * 100 + "</think>It is 4.")
    (found,) = reasons.complete(asked("2 + 2?"), Sampling(max_new_tokens=16, temperature=0))
    assert found.text == "It is 4." and found.reasoning.startswith("Hm, Hm")
    assert reasons._network.asked[0] == 16 and reasons._network.asked[1] > 1000
    assert any("reasons before it answers" in warning for warning in reasons.warnings())
    assert reasons.describe()["reasoning_room"] and reasons.truncation.prompts == 1


def test_an_effort_is_room_from_the_start_and_the_template_is_told(model):
    reasons = model(EFFORT)
    assert reasons.prompting.encoded(asked("2 + 2?")[0], 8, "low").text.startswith("effort=low ")
    reasons.writes("Hm.</think>4")
    sampling = Sampling(max_new_tokens=16, temperature=0, effort="low")
    (found,) = reasons.complete(asked("2 + 2?"), sampling)
    assert (found.text, found.reasoning) == ("4", "Hm.") and reasons._network.asked == [16 + ROOM["low"]]


def test_no_effort_closes_the_reasoning(model):
    thinks = model(SWITCH)
    assert thinks.prompting.encoded(asked("x")[0], 8, "none").text.endswith("<assistant><think>\n\n</think>\n\n")
    assert thinks.prompting.encoded(asked("x")[0], 8).text.endswith("<assistant>")


def test_no_effort_closes_what_the_template_opens_anyway(model):
    encoded = model(OPENS).prompting.encoded(asked("x")[0], 8, "none")
    assert encoded.text.endswith("<think>\n</think>\n\n") and not encoded.opened


@pytest.mark.parametrize(
    ("template", "special", "end"),
    [
        (OPENS, (), "<think>\n</think>\n\nWell: "),
        (SWITCH, (), "<think>\n\n</think>\n\nWell: "),
        (LOOP, (), "<assistant>Well: "),
        (LOOP[: -len("<assistant>")] + "<|start|>assistant", ("<|channel|>", "<|message|>", "<|start|>"), "assistant<|channel|>final<|message|>Well: "),
    ],
)
def test_a_verdict_is_read_behind_the_reasoning(model, template, special, end):
    assert model(template, *special).prompting.settled(asked("A or B?")[0], "Well: ", ["A", "B"]).text.endswith(end)


def test_likelihoods_are_those_behind_a_closed_block(model):
    """The same numbers as a template gives that has closed it."""
    reasons = model(OPENS)
    found = reasons.likelihoods(asked("A or B?", "A longer question: A or B?"), ["A", "B is better"])
    reasons.prompting.texts.tokenizer.chat_template = OPENS.replace("<think>\n", "<think>\n</think>\n\n{{ '' }}")
    again = reasons.likelihoods(asked("A or B?", "A longer question: A or B?"), ["A", "B is better"])
    assert found == again


def test_a_candidate_has_its_reasoning_in_a_field_of_its_own(model, monkeypatch):
    reasons = model(OPENS).writes("Let me see.\n</think>\n\nIt is 4.")
    monkeypatch.setattr("blendkit.generators.generating.text_model", lambda *more: reasons)
    (record,) = library.generate([{"id": "a", "instruction": "2 + 2?"}], ["small=any"], temperature=0)
    (candidate,) = record["candidates"]
    assert candidate["text"] == "It is 4." and candidate["reasoning"] == "Let me see."


def test_a_judge_that_writes_reads_its_verdict_behind_the_reasoning(model, monkeypatch):
    from blendkit.judges.llm import LLMJudge

    reasons = model(OPENS).writes("A seems good, but B is better.\n</think>\n\nB", "Rather A.\n</think>\n\nA")
    monkeypatch.setattr("blendkit.judges.llm.text_model", lambda *more, **options: reasons)
    judge = LLMJudge("any", verdict_by="text")
    (record,) = examples(1)
    works = next(judge.rounds(record, [(0, 1), (1, 0)]))
    assert [opinion.verdict for opinion in judge._opinions([work.payload for work in works])] == ["B", "A"]
