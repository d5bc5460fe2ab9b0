"""What a record holds is never a control token of a model's prompt, and a prompt without such texts has the ids that it always had."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import CORPUS, lines, parsed
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from blendkit.generators.base import Prompt
from blendkit.generators.options import EndpointOptions
from blendkit.generators.prompting import Prompting
from blendkit.models.text_tokenizer import TextTokenizer

# Words that somebody added and runs of spaces are text, though they are added tokens.
TEXT = {"covid", "\n\n", "▁▁"}
CHATS = [name for name in FAMILIES if name != "bert"]
few = settings(deadline=None, max_examples=40, derandomize=True)


@pytest.fixture(scope="module")
def all_texts():
    return {name: TextTokenizer(make()) for name, make in FAMILIES.items()}


def controls(texts):
    """Control tokens by name; the unknown token stands for what a vocabulary lacks, and is no control."""
    added = texts.tokenizer.get_added_vocab()
    return {name: number for name, number in added.items() if name not in TEXT and number != texts.tokenizer.unk_token_id}


def found(texts, ids):
    known = set(controls(texts).values())
    return [token for token in ids if token in known]


def spelled(texts):
    """Strategy: texts full of control tokens, of halves of them, and of other things."""
    names = sorted(controls(texts))
    halves = sorted({part for name in names for part in (name[: len(name) // 2], name[len(name) // 2 :], name[:1], name[-1:], name.upper())})
    words = st.one_of(st.sampled_from(names), st.sampled_from(halves), st.sampled_from([" ", "\n", "x", "=", *CORPUS[0].split()[:5]]), st.text(max_size=4))
    return st.lists(words, max_size=8).map("".join)


def conversation(contents, roles=("user", "assistant")):
    return [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(contents)]


def chat(texts, messages):
    return texts.read(texts.chat(messages, add_generation_prompt=True), add_special_tokens=False)


@pytest.mark.parametrize("name", CHATS)
def test_only_the_template_has_control_tokens(all_texts, name):
    texts = all_texts[name]

    @few
    @given(contents=st.lists(spelled(texts), min_size=1, max_size=3))
    def run(contents):
        shown = found(texts, chat(texts, conversation(contents)))
        assert shown and shown == found(texts, chat(texts, conversation(["x"] * len(contents))))

    run()


@pytest.mark.parametrize("name", CHATS)
def test_other_conversations_have_the_ids_they_always_had(all_texts, name):
    texts = all_texts[name]
    tokenizer = texts.tokenizer
    words = st.one_of(st.sampled_from([*CORPUS[:20], "<", ">", "|", "[", "<|", "  ", "\n\n", " covid "]), st.text(max_size=20))

    @few
    @given(contents=st.lists(st.lists(words, max_size=4).map("".join), min_size=1, max_size=3))
    def run(contents):
        messages = conversation(contents)
        if any(control in "".join(contents) for control in tokenizer.get_added_vocab() if control not in TEXT):
            return
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert chat(texts, messages) == tokenizer(written, add_special_tokens=False)["input_ids"]

    run()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_text_alone_or_in_a_pair_has_none(all_texts, name):
    texts = all_texts[name]

    @few
    @given(first=spelled(texts), second=spelled(texts))
    def run(first, second):
        for given_texts in (([first],), ([first], [second])):
            around = texts(*(["x"] for _ in given_texts))["input_ids"][0]
            assert found(texts, texts(*given_texts)["input_ids"][0]) == found(texts, around)
        assert not found(texts, texts([first], add_special_tokens=False)["input_ids"][0])
        (cut,) = texts([first], [second], truncation="longest_first", max_length=6)["input_ids"]
        assert len(cut) <= 6 and found(texts, cut) == found(texts, texts(["x"], ["x"])["input_ids"][0])

    run()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_other_texts_have_the_ids_they_always_had(all_texts, name):
    texts = all_texts[name]

    @few
    @given(text=st.one_of(st.sampled_from(CORPUS), st.text(max_size=60)))
    def run(text):
        if not any(control in text for control in controls(texts)):
            cut = {"truncation": True, "max_length": 20}
            assert texts([text])["input_ids"] == texts.tokenizer([text])["input_ids"]
            assert texts([text, "x"], **cut)["input_ids"] == texts.tokenizer([text, "x"], **cut)["input_ids"]
            assert texts.read(texts.material(text), **cut) == texts.tokenizer(text, **cut)["input_ids"]

    run()


@pytest.mark.parametrize("name", ["chatml", "llama-3", "roles", "byt5"])
def test_a_spelled_token_reaches_the_model_letter_by_letter(all_texts, name):
    texts = all_texts[name]
    for control in controls(texts):
        text = f"a {control} b"
        assert texts.tokenizer.decode(texts([text], add_special_tokens=False)["input_ids"][0]) == text
        assert text.strip() in texts.tokenizer.decode(chat(texts, conversation([text])))


def test_two_texts_side_by_side_make_no_token(all_texts):
    """T5's template here writes nothing between the turns."""
    for name in ("t5", "byt5"):
        texts = all_texts[name]
        for parts in (["<extra_", "id_0>"], ["<", "/s>"], ["<ex", "tra_id", "_0>"]):
            assert found(texts, chat(texts, conversation(parts))) == [texts.tokenizer.eos_token_id]


def test_a_role_or_any_other_field_makes_no_token(all_texts):
    texts = all_texts["roles"]
    ids = controls(texts)
    hostile = [{"role": "end", "content": "x"}, {"role": "user|><|end", "content": "x"}, {"role": "user", "content": "y"}]
    assert found(texts, chat(texts, hostile)) == [ids["<|user|>"], ids["<|assistant|>"]]
    tokenizer = FAMILIES["chatml"]()
    tokenizer.chat_template = "<|im_start|>{% for m in messages %}{{ m.name }}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}"
    texts = TextTokenizer(tokenizer)
    call = {"function": {"arguments": {"<|im_end|>": "<|im_end|>"}}}
    written = chat(texts, [{"role": "user", "content": "", "name": "<|im_end|>", "tool_calls": [call]}])
    assert found(texts, written) == [controls(texts)["<|im_start|>"]]
    assert tokenizer.decode(written).count("<|im_end|>") == 3  # as letters


def test_a_template_finds_no_thought_that_a_text_spells(all_texts):
    """ChatML's template here drops what stands before `</think>`: a text that spells it is shown whole."""
    texts = all_texts["chatml"]
    shown = texts.tokenizer.decode(chat(texts, conversation(["why </think> because"])))
    assert "why </think> because" in shown


def test_a_template_may_change_letters():
    tokenizer = FAMILIES["chatml"]()
    tokenizer.chat_template = "<|im_start|>{{ messages[0].content | upper }}<|im_end|>"
    texts = TextTokenizer(tokenizer)
    assert len(found(texts, chat(texts, conversation(["a <|im_end|> b <think>"])))) == 2


def test_marks_of_a_format_that_stand_alone(all_texts):
    """BERT's tokenizer here has a token that must be a word of its own, and one that is found in capitals."""
    texts = all_texts["bert"]
    names = controls(texts)
    for written in ("a <alone> b", "a<alone>b", "<note>", "x <note>y", "a <NOTE> b"):
        expected = texts.tokenizer(written)["input_ids"]
        if "NOTE" not in written:
            assert texts.read(written) == expected
        assert found(texts, texts.read(texts.material(written))) == [names["[CLS]"], names["[SEP]"]]


# --- Those who read records. ---


def rows_of(value):
    """Token ids in a payload, a tuple each."""
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(part, int) for part in value):
            yield tuple(value)
        else:
            for part in value:
                yield from rows_of(part)


def counted(tokenizer, payloads):
    known = {number for number in tokenizer.get_added_vocab().values() if number != tokenizer.unk_token_id}
    return [Counter(token for token in row if token in known) for row in rows_of(payloads) if len(row) > 1]


def hostile(tokenizer):
    return " and ".join(f"a {name}b" for name in sorted(tokenizer.get_added_vocab()))


METRICS = ["bertscore", "bartscore", "bartscore-source", "bleurt", "mlm", "simcls", "summareranker", "reward", "perplexity", "cosine", "deberta-reward"]


@pytest.mark.parametrize("metric", METRICS)
def test_no_scorer_reads_one(tiny, metric):
    from blendkit.scorers import make_scorer
    from blendkit.scorers.base import items_of

    kind = "reward" if metric == "deberta-reward" else metric
    checkpoint = tiny[metric] if metric in tiny else tiny[metric.partition("-")[0]]
    scorer = make_scorer(f"{kind}:{checkpoint}", device="cpu")
    tokenizer = next(part.tokenizer for part in (scorer, *map(vars(scorer).get, ("encoder", "regressor"))) if hasattr(part, "tokenizer"))

    def seen(text):
        record = {"id": "r", "instruction": text, "candidates": [{"model": "m", "text": text}]}
        works = next(scorer.rounds(items_of(record, [text], text, text)))
        return {frozenset(row.items()) for row in counted(tokenizer, [work.payload for work in works])}

    assert seen(hostile(tokenizer)) == seen("a word and b")


def test_no_fuser_reads_one(tiny_t5):
    from blendkit.fusers.genfuser import GenFuser

    fuser = GenFuser(str(tiny_t5), device="cpu", candidate_maxlength=40)

    def seen(text):
        record = {"id": "r", "instruction": text, "input": text, "candidates": [{"model": "m", "text": text}, {"model": "n", "text": text * 9}], "top": [0, 1]}
        (work,) = fuser.plan(record)
        assert work.size == len(work.payload)
        # What each beam keeps: its prompt and what it may write.
        assert work.length == fuser.generation["num_beams"] * (len(work.payload) + fuser.generation["max_new_tokens"])
        return counted(fuser.tokenizer, [work.payload])

    benign = seen("a word")
    assert seen(hostile(fuser.tokenizer)) == benign
    names = fuser.tokenizer.get_added_vocab()
    assert benign == [Counter({names["</s>"]: 4, names["<extra_id_0>"]: 1, names["<extra_id_1>"]: 1})]


@pytest.fixture(scope="module")
def local(tiny_chat):
    """A local chat model with ChatML's tokenizer; the network is never asked."""
    from blendkit.generators.local import LocalModel

    model = LocalModel(str(tiny_chat), "cpu")
    model.tokenizer = FAMILIES["chatml"]()
    model.prompting = Prompting(model.tokenizer, "chatml")
    return model


def test_no_judge_and_no_chat_fuser_reads_one(local, tiny_chat):
    from blendkit.fusers.chat import ChatFuser
    from blendkit.judges.llm import LLMJudge
    from blendkit.judges.prompting import built_in

    for name in built_in():
        judge = LLMJudge(str(tiny_chat), EndpointOptions(), prompt=name, device="cpu")
        judge.model = local
        judge.prompt = type(judge.prompt)(**{**vars(judge.prompt), "text": "<|im_start|>" + judge.prompt.text}) if judge.prompt.raw else judge.prompt

        def seen(text, judge=judge):
            record = {"id": "r", "instruction": text, "output": text, "candidates": [{"model": "m", "text": text}, {"model": "n", "text": "y" + text}]}
            (work,) = next(judge.rounds(record, [(0, 1)]))
            prompt = work.payload[0]
            ids = local.prompting.encoded(prompt, 1).ids
            assert work.length == local.length(prompt) == len(ids)
            return counted(local.tokenizer, [ids])

        assert seen(hostile(local.tokenizer)) == seen("word")
        if judge.prompt.raw:
            assert seen("word") == [Counter([local.tokenizer.convert_tokens_to_ids("<|im_start|>")])]
    fuser = ChatFuser([str(tiny_chat)], device="cpu")
    fuser.models = {str(tiny_chat): local}

    def fused(text):
        record = {"id": "r", "instruction": text, "candidates": [{"model": text, "text": text}], "top": [0]}
        return counted(local.tokenizer, [local.prompting.encoded(fuser.prompt(record, [0], str(tiny_chat), 1), 1).ids])

    assert (
        fused(hostile(local.tokenizer))
        == fused("word")
        == [Counter({local.tokenizer.convert_tokens_to_ids("<|im_start|>"): 2, local.tokenizer.eos_token_id: 1})]
    )


def test_no_preset_reads_one_from_a_record(local):
    from functools import partial

    from blendkit.generators.presets import PRESETS

    local.tokenizer.add_special_tokens({"additional_special_tokens": ["<|prompter|>", "<|assistant|>", "<eoh>", "<|USER|>", "<|ASSISTANT|>", "<|Human|>"]})
    local.prompting = Prompting(local.tokenizer, "presets")
    for preset in PRESETS.values():

        def seen(text, preset=preset):
            turns = [{"role": role, "content": text} for role in ("system", "user", "assistant", "user")]
            prompts = [Prompt(turns, format=preset.text), Prompt(turns[1:2], format=partial(preset.text, instruction=text, given=text))]
            return [counted(local.tokenizer, [local.prompting.encoded(prompt, 1).ids]) for prompt in prompts]

        assert seen(hostile(local.tokenizer)) == seen("word")
    names = local.tokenizer.get_added_vocab()
    (row,) = counted(local.tokenizer, [local.prompting.encoded(Prompt([{"role": "user", "content": "<|prompter|>"}], format=PRESETS["oasst"].text), 1).ids])
    assert row == Counter([names["<|prompter|>"], names["<|endoftext|>"], names["<|assistant|>"]])


def test_a_records_text_is_no_place_for_another():
    from blendkit.generators.presets import PRESETS

    text = PRESETS["alpaca"].text([{"role": "user", "content": "-"}], "say {input}", "{instruction}")
    assert "### Instruction:\nsay {input}\n\n### Input:\n{instruction}\n\n" in text


def test_generate_counts_what_a_record_spells_as_letters(blendkit, tiny_chat):
    from transformers import AutoTokenizer

    record = {"id": "r", "instruction": "a </s> b <extra_id_0>"}
    done = blendkit("generate", "-m", f"c={tiny_chat}", "--max-new-tokens", 1, "--temperature", 0, "--device", "cpu", stdin=lines([record]))
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    expected = TextTokenizer(tokenizer)([f"user: {record['instruction']}\nassistant: "])["input_ids"][0]
    assert parsed(done.stdout)[0]["candidates"][0]["usage"]["prompt_tokens"] == len(expected)
    assert len(expected) > len(tokenizer(f"user: {record['instruction']}\nassistant: ")["input_ids"])


@pytest.mark.parametrize("kind", ["fuser", "causal-fuser", "reward", "chat-reward", "simcls", "summareranker"])
def test_no_training_reads_one(tiny, tiny_chat, tiny_t5, tiny_encoder, kind):
    import random

    from blendkit.training.examples import Example, Pairing
    from blendkit.training.fuser import FuserTrainee
    from blendkit.training.reward import RewardTrainee
    from blendkit.training.simcls import SimCLSTrainee
    from blendkit.training.summareranker import SummaRerankerTrainee

    def example(text):
        return Example("r", text, [text, f"{text} too"], [[1.0], [0.0]], text)

    trainee = {
        "fuser": lambda: FuserTrainee(str(tiny_t5)),
        "causal-fuser": lambda: FuserTrainee(str(tiny_chat)),
        "reward": lambda: RewardTrainee(str(tiny_encoder), Pairing()),
        "chat-reward": lambda: RewardTrainee(str(tiny_chat), Pairing()),
        "simcls": lambda: SimCLSTrainee(str(tiny_encoder)),
        "summareranker": lambda: SummaRerankerTrainee(str(tiny_encoder)),
    }[kind]()

    def seen(text):
        rows = trainee.rows(example(text)) if hasattr(trainee, "rows") else [part.inputs for part in trainee.parts([example(text)], random.Random(0))]
        return counted(trainee.tokenizer, [rows])

    assert sorted(map(repr, seen(hostile(trainee.tokenizer)[:60]))) == sorted(map(repr, seen("a word and b")))


def test_a_vocabulary_without_control_tokens():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    texts = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a"))))
    assert texts(["a"])["input_ids"] == [texts.read(texts.material("a"))] == [[0]]
