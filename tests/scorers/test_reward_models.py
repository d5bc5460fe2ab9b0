"""`score --metric reward:MODEL` with reward models as they are published: equal to transformers, one conversation at a time."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import reward_models as made
import torch
from conftest import lines, parsed
from families import chatml

END = chatml().convert_tokens_to_ids("<|im_end|>")
RECORDS = [
    {"id": "a", "instruction": "How does bread rise?", "candidates": [{"text": "Yeast."}, {"text": "Yeast eats sugar and gives off gas, " * 6}, {"text": ""}]},
    {"id": "b", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "a joke"}],
     "candidates": [{"text": "Knock knock."}, {"text": "No"}]},
]  # fmt: skip
SYSTEM = {"id": "s", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], "candidates": [{"text": "So."}]}
FOLDED = [{"role": "user", "content": "Be brief.\n\nWhy?"}]
for record in [*RECORDS, SYSTEM]:
    for number, candidate in enumerate(record["candidates"]):
        candidate["model"] = f"m{number}"


@pytest.fixture(autouse=True)
def the_day(monkeypatch):
    """The day that scores are made on, for the comparison with transformers."""
    today(monkeypatch, datetime(2024, 7, 26))


def today(monkeypatch, day):
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return day

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def scores(called, folder, records, *flags, label="", name="reward"):
    code, out, err = called("score", "--metric", f"reward:{folder}{label}", "--device", "cpu", *flags, stdin=lines(records))
    assert code == 0, err
    rows = parsed(out)
    return [candidate["scores"][name] for row in rows for candidate in row["candidates"]], rows[0]["signatures"][f"score:{name}"], err


def conversations(records):
    for record in records:
        turns = record.get("messages") or [{"role": "user", "content": record["instruction"]}]
        for candidate in record["candidates"]:
            yield [*turns, {"role": "assistant", "content": candidate["text"]}]


def plain(folder, chats, label=0, pair=False):
    """What transformers gives, one conversation at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for chat in chats:
        if pair:
            inputs = dict(tokenizer([chat[0]["content"]], [chat[1]["content"]], return_tensors="pt"))
        else:
            ids = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
            inputs = {"input_ids": torch.tensor([ids])}
        with torch.no_grad():
            found.append(float(model(**inputs).logits[0, label]))
    return found


CHAT = {
    "Qwen3 with an empty thought": lambda folder: made.classifier(folder),
    "Qwen2.5 with a system prompt of its own": lambda folder: made.classifier(folder, "Qwen2", template=made.QWEN_25),
    "Llama without a padding token, dated": made.llama,
    "Llama in bfloat16": lambda folder: made.llama(folder, dtype=torch.bfloat16),
    "Gemma, two who speak in turn": lambda folder: made.classifier(folder, "Gemma2", template=made.GEMMA, query_pre_attn_scalar=16),
    "padding is the end of a turn": lambda folder: made.classifier(folder, "Mistral", template=made.DEAF, pad_token_id=END),
    "padding id that no token has": lambda folder: made.classifier(folder, "Llama", written={"pad_token_id": -1}),
    "left padding": lambda folder: made.edited(made.classifier(folder), "tokenizer_config.json", padding_side="left"),
    "several templates, one the default": lambda folder: made.classifier(folder, template={"default": made.QWEN_25, "tool_use": made.DEAF}),
    "regression as its problem": lambda folder: made.classifier(folder, problem_type="regression"),
}


@pytest.mark.parametrize("kind", CHAT)
def test_a_chat_model_scores_as_transformers_does(called, tmp_path, kind):
    folder = CHAT[kind](tmp_path / "model")
    found, signature, err = scores(called, folder, RECORDS)
    assert found == pytest.approx(plain(folder, conversations(RECORDS)), abs=1e-4)
    assert len(set(found)) == len(found) and err == ""
    assert "|prompt:chat|" in signature and "label" not in signature
    # Alone, in another order, and without room for a batch it is the same.
    alone = [scores(called, folder, [record], "--batch-tokens", 8)[0] for record in RECORDS[::-1]]
    assert [*alone[1], *alone[0]] == pytest.approx(found, abs=1e-4)


ENCODERS = {
    "modernbert": lambda folder: made.encoder(folder, cls_token_id=3, sep_token_id=4, bos_token_id=3, eos_token_id=4),
    "electra": lambda folder: made.encoder(folder, "Electra", embedding_size=32),
    "bert, packed": lambda folder: made.encoder(folder, "Bert"),
    "xlnet, which reads its last token": lambda folder: made.encoder(folder, "XLNet", d_model=32, n_layer=2, n_head=2, d_inner=64),
    "bart, which reads its end of text": made.sequence_to_sequence,
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_without_a_template_reads_a_pair(called, tmp_path, kind):
    folder = ENCODERS[kind](tmp_path / "model")
    found, signature, _ = scores(called, folder, RECORDS[:1])
    assert found == pytest.approx(plain(folder, conversations(RECORDS[:1]), pair=True), abs=1e-4)
    assert "|prompt:pair|" in signature


def test_a_start_of_text_is_there_once(tmp_path):
    from blendkit.scorers import make_scorer
    from blendkit.scorers.base import items_of

    scorer = make_scorer(f"reward:{made.llama(tmp_path / 'model')}", device="cpu")
    ((ids, _),) = scorer.encoded(items_of({"id": "a"}, ["so <|begin_of_text|>"], "why"))
    assert ids.count(scorer.regressor.tokenizer.bos_token_id) == 1 and ids[0] == scorer.regressor.tokenizer.bos_token_id


@pytest.mark.parametrize("template", ["GEMMA", "DEAF"])
def test_a_system_message_moves_to_the_user_where_the_template_has_no_such_role(called, tmp_path, template):
    folder = made.classifier(tmp_path / "model", template=getattr(made, template))
    found, _, _ = scores(called, folder, [SYSTEM])
    assert found == pytest.approx(plain(folder, [[*FOLDED, {"role": "assistant", "content": "So."}]]), abs=1e-4)
    own = made.classifier(tmp_path / "own", template=made.QWEN_25)
    assert scores(called, own, [SYSTEM])[0] == pytest.approx(plain(own, conversations([SYSTEM])), abs=1e-4)


def test_a_conversation_that_no_form_fits_is_a_bad_record(called, tmp_path):
    folder = made.classifier(tmp_path / "model", template=made.GEMMA)
    odd = {"id": "o", "messages": [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "No, I."}], "candidates": SYSTEM["candidates"]}
    code, out, err = called("score", "--metric", f"reward:{folder}", "--on-error", "skip", stdin=lines([odd, RECORDS[0]]))
    assert (code, [row["id"] for row in parsed(out)]) == (70, ["a"])
    assert "Conversation roles must alternate" in err


def test_a_score_does_not_change_overnight(called, tmp_path, monkeypatch):
    folder = made.llama(tmp_path / "model")
    found, signature, _ = scores(called, folder, RECORDS)
    assert "|date:2024-07-26|" in signature
    today(monkeypatch, datetime(2099, 1, 1))
    assert scores(called, folder, RECORDS)[0] == found != pytest.approx(plain(folder, conversations(RECORDS)), abs=1e-4)
    assert "date" not in scores(called, made.classifier(tmp_path / "timeless"), RECORDS)[1]


def test_reasoning_is_not_scored(called, tmp_path):
    folder = made.classifier(tmp_path / "model")
    thoughtful = json.loads(json.dumps(RECORDS[:1]))
    for candidate in thoughtful[0]["candidates"]:
        candidate["reasoning"] = "Hm, yeast or baking powder?"
    assert scores(called, folder, thoughtful)[0] == scores(called, folder, RECORDS[:1])[0]


@pytest.mark.parametrize("build", [made.llama, made.classifier], ids=["start of text", "none"])
def test_a_long_conversation_is_cut_at_its_front_and_told(called, tmp_path, build):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, manifest = build(tmp_path / "model"), tmp_path / "manifest.json"
    long = [{"id": "l", "instruction": "long ago " * 400, "candidates": [{"model": "m", "text": "So it was."}, {"model": "n", "text": "No."}]}, RECORDS[0]]
    found, _, err = scores(called, folder, long, "--manifest", manifest)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    cut = 0
    for chat, score in zip(conversations(long[:1]), found, strict=False):
        ids = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
        start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        cut += len(ids) - 512
        with torch.no_grad():
            assert score == pytest.approx(float(model(torch.tensor([start + ids[len(ids) - 512 + len(start) :]])).logits), abs=1e-4)
    assert err == f"blendkit score: reward: cut to the model's length: 2 of 5 inputs ({cut:,} tokens)\n"
    assert json.loads(manifest.read_text())["truncation"] == {"reward": {"inputs": 5, "inputs_cut": 2, "tokens_cut": cut}}


def test_a_long_pair_is_cut_and_told(called, tmp_path):
    long = [{"id": "l", "instruction": "long ago " * 400, "candidates": [{"model": "m", "text": "So."}]}]
    assert "reward: cut to the model's length: 1 of 1 input (" in scores(called, made.encoder(tmp_path / "model", "Bert"), long)[2]
