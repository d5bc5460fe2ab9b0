"""Reward models with several labels, or with none: which label is the score is said by name, and what is no reward model is one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
import reward_models as made
import torch
from conftest import lines, parsed
from families import llama_3

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TEXTS = ["Yeast.", "Yeast eats sugar, and gives off gas.", ""]
RECORD = {"id": "a", "instruction": "How does bread rise?", "candidates": [{"model": f"m{n}", "text": text} for n, text in enumerate(TEXTS)]}
CHATS = [[{"role": "user", "content": RECORD["instruction"]}, {"role": "assistant", "content": text}] for text in TEXTS]


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A head with the five labels of HelpSteer, in bfloat16."""
    return made.classifier(tmp_path_factory.mktemp("steered") / "model", "Llama", labels=HELPSTEER, template=made.DEAF, dtype=torch.bfloat16)


def logits(folder):
    """What transformers gives for each conversation alone, [3, labels]."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(torch.tensor([tokenizer.apply_chat_template(chat)["input_ids"]])).logits[0].tolist() for chat in CHATS]


def scored(called, *metrics):
    code, out, err = called("score", *(part for metric in metrics for part in ("--metric", metric)), "--device", "cpu", stdin=lines([RECORD]))
    assert code == 0, err
    return parsed(out)[0]


def refused(called, metric, expected):
    code, out, err = called("score", "--metric", metric, "--device", "cpu", stdin=lines([RECORD]))
    assert (code, out) == (expected, ""), err
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize(("label", "place"), [("helpfulness", 0), ("coherence", 2), ("Coherence", 2), ("4", 4)])
def test_the_score_is_the_logit_of_the_label_that_is_named(called, steered, label, place):
    record = scored(called, f"reward:{steered}#{label}")
    assert [candidate["scores"]["reward"] for candidate in record["candidates"]] == pytest.approx([row[place] for row in logits(steered)], abs=1e-4)
    assert f"|label:{HELPSTEER[place]}|" in record["signatures"]["score:reward"]


def test_two_labels_of_one_model_are_two_scores_of_one_pass(called, steered, tmp_path):
    manifest = tmp_path / "manifest.json"
    metrics = [f"helpful=reward:{steered}#helpfulness", f"long=reward:{steered}#verbosity"]
    done = called("score", "--metric", metrics[0], "--metric", metrics[1], "--manifest", manifest, stdin=lines([RECORD]))
    assert done[0] == 0, done[2]
    found = [[candidate["scores"][name] for name in ("helpful", "long")] for candidate in parsed(done[1])[0]["candidates"]]
    assert found == [pytest.approx([row[0], row[4]], abs=1e-4) for row in logits(steered)]
    told = json.loads(manifest.read_text())
    assert told["counts"]["computed"] == 3 and list(told["models"]) == [str(steered)]


def test_one_of_several_labels_must_be_named(called, steered):
    names = "helpfulness, correctness, coherence, complexity, verbosity"
    assert f"has 5 labels ({names}); say which is the score, by its name or index: reward:{steered}#LABEL" in refused(called, f"reward:{steered}", 2)
    wrong = refused(called, f"reward:{steered}#helpfullness", 2)
    assert f"has 5 labels ({names}), none of them called 'helpfullness'; did you mean helpfulness?" in wrong
    assert "none of them called '5'" in refused(called, f"reward:{steered}#5", 2)
    assert "none of them called '-1'" in refused(called, f"reward:{steered}#-1", 2)
    assert "say which is the score" in refused(called, f"reward:{steered}#", 2)


def test_a_classifier_of_two_classes_needs_a_label_too(called, tmp_path):
    folder = made.classifier(tmp_path / "model", labels=2, template=made.DEAF)
    assert "has 2 labels (LABEL_0, LABEL_1)" in refused(called, f"reward:{folder}", 2)
    record = scored(called, f"reward:{folder}#LABEL_1")
    assert [candidate["scores"]["reward"] for candidate in record["candidates"]] == pytest.approx([row[1] for row in logits(folder)], abs=1e-4)


def test_labels_of_one_name_are_told_apart_by_index(called, tmp_path):
    folder = made.classifier(tmp_path / "model", labels=3, template=made.DEAF, written={"id2label": {"0": "good", "1": "good", "2": "bad"}})
    assert "several of them called 'good'" in refused(called, f"reward:{folder}#good", 2)
    assert "|label:1|" in scored(called, f"reward:{folder}#1")["signatures"]["score:reward"]


def test_many_labels_are_not_all_listed(called, tmp_path):
    err = refused(called, f"reward:{made.classifier(tmp_path / 'model', labels=300)}", 2)
    assert "LABEL_23 and 276 more)" in err and "LABEL_24" not in err


def test_the_only_label_may_be_named(called, tmp_path):
    folder = made.classifier(tmp_path / "one # model", labels=["reward"])
    assert "|label:reward|" in scored(called, f"reward:{folder}#reward")["signatures"]["score:reward"]
    assert "label" not in scored(called, f"reward:{folder}")["signatures"]["score:reward"].partition("@")[2]
    assert "has 1 label (reward), none of them called 'safety'" in refused(called, f"reward:{folder}#safety", 2)


def test_a_packed_encoder_has_labels_too(called, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = made.encoder(tmp_path / "model", "Bert", labels=3)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [float(model(**tokenizer([RECORD["instruction"]], [text], return_tensors="pt")).logits[0, 2]) for text in TEXTS]
    assert [candidate["scores"]["reward"] for candidate in scored(called, f"reward:{folder}#2")["candidates"]] == pytest.approx(expected, abs=1e-4)
    assert "has 3 labels; a score needs a model with one" in refused(called, f"bleurt:{folder}", 66)


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory):
    """A causal LM whose reward is the logit of a token behind the answer."""
    return made.writer(tmp_path_factory.mktemp("nemotron") / "model", made.DEAF)


def test_a_causal_model_scores_by_a_token_that_is_named(called, nemotron):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(nemotron).eval(), AutoTokenizer.from_pretrained(nemotron)
    expected = []
    for chat in CHATS:
        ids = torch.tensor([tokenizer.apply_chat_template(chat)["input_ids"]])
        done = model.generate(ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True, pad_token_id=0, do_sample=False)
        expected.append(float(done.scores[0][0][0]))
    record = scored(called, f"reward:{nemotron}#0")
    assert [candidate["scores"]["reward"] for candidate in record["candidates"]] == pytest.approx(expected, abs=1e-4)
    assert "|label:token 0|prompt:chat|" in record["signatures"]["score:reward"]
    by_text = scored(called, f"reward:{nemotron}#e")["signatures"]["score:reward"]
    assert f"|label:token {llama_3()('e')['input_ids'][0]}|" in by_text


@pytest.mark.parametrize(("token", "said"), [("99999", "none of its"), ("not one token", "tokens of it; name one")])
def test_a_token_that_is_none_is_refused(called, nemotron, token, said):
    assert said in refused(called, f"reward:{nemotron}#{token}", 2)


GATED = {
    "architectures": ["LlamaForRewardModelWithGating"],
    "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
}
REFUSED = {
    "code of its own": (GATED, "is a LlamaForRewardModelWithGating by code of its own (modeling_custom.LlamaForRewardModelWithGating), which no scorer runs"),
    "a type of its own": ({"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"], "auto_map": {"AutoModel": "m.InternLM2ForRewardModel"}},
                          "is a InternLM2ForRewardModel by code of its own"),
    "each token": ({"architectures": ["LlamaForTokenClassification"]}, "it judges each token or step (a process reward model), not an answer as a whole"),
    "text": ({"architectures": ["LlamaForCausalLM"]}, "which writes text and has no head for a score"),
    "seq2seq": ({"architectures": ["T5ForConditionalGeneration"]}, "which writes text and has no head for a score"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_reward_model_is_one_line(called, tmp_path, kind):
    """Though transformers would load each: their weights have a classifier's names."""
    written, said = REFUSED[kind]
    folder = made.classifier(tmp_path / "model", "Llama", template=made.DEAF, written=written)
    assert said in refused(called, f"reward:{folder}", 66)


def test_weights_that_a_class_of_another_name_has_more_are_not_left_out(called, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = made.classifier(tmp_path / "model", "Llama", template=made.DEAF, written={"architectures": ["RewardModel"]})
    assert len(scored(called, f"reward:{folder}")["candidates"]) == 3
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "gating.weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    assert "it is a RewardModel, with 1 weight that a LlamaForSequenceClassification has no use for, such as gating.weight" in refused(
        called, f"reward:{folder}", 66
    )


def test_a_head_under_another_name_is_missed(called, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = made.classifier(tmp_path / "model", "Llama", template=made.DEAF)
    weights = load_file(folder / "model.safetensors")
    save_file({key.replace("score", "v_head"): value for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weight of a LlamaForSequenceClassification, such as score.weight" in refused(called, f"reward:{folder}", 66)


def test_an_adapter_is_refused(called, tmp_path):
    folder = made.classifier(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}))
    assert "is an adapter of another model" in refused(called, f"reward:{folder}", 66)


def test_several_templates_without_a_default_are_refused(called, tmp_path):
    folder = made.classifier(tmp_path / "model", template={"chat": made.DEAF, "tool_use": made.QWEN_25})
    err = refused(called, f"reward:{folder}", 66)
    assert "chat template" in err and "tool_use" in err


def test_a_token_without_an_embedding_is_the_checkpoints_fault(called, tmp_path):
    """A tokenizer that grew, and a model that did not."""
    grown = llama_3()
    grown.add_tokens(["yeasty"])
    folder = made.llama(tmp_path / "model", template=made.DEAF)
    grown.chat_template = made.DEAF
    grown.save_pretrained(tmp_path / "tokenizer")
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.json", folder)
    record = RECORD | {"candidates": [{"model": "m", "text": "so yeasty"}]}
    code, out, err = called("score", "--metric", f"reward:{folder}", stdin=lines([record]))
    assert (code, out, len(err.splitlines())) == (66, "", 1)
    assert "the two do not belong together" in err
