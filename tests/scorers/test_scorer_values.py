"""Scorers on tiny checkpoints: the values that plain transformers, the package of origin or a hand gives."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import bert_tokenizer, examples, lines, parsed
from tiny_scorers import SHAPE, scored

from blendkit.models.fast import layers
from blendkit.pipeline.runner import apply
from blendkit.scorers import better_when_lower
from blendkit.scorers.bertscore import BertScore
from blendkit.scorers.scoring import Scoring


def pairs(records):
    return [(candidate["text"], record["output"]) for record in records for candidate in record["candidates"]]


def test_chrf_is_sacrebleus():
    import sacrebleu

    (scores,) = scored(examples(3), "chrf")
    assert scores == pytest.approx([sacrebleu.sentence_chrf(c, [r]).score for c, r in pairs(examples(3))], abs=1e-5)


def test_exact_match_and_token_f1_by_hand():
    texts = {"The cat.": (1, 1), "cat": (1, 1), "a cat sat": (0, 2 / 3), "dog": (0, 0), "": (0, 0), "Cat cat": (0, 2 / 3)}
    record = {"output": "the cat", "candidates": [{"model": "m", "text": text} for text in texts]}
    exact, f1 = scored([record], "exact-match", "token-f1")
    assert exact == [row[0] for row in texts.values()]
    assert f1 == pytest.approx([row[1] for row in texts.values()], abs=1e-6)


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layer", [1, 2])
def test_bertscore_is_the_packages(tiny, tmp_path, layer, idf):
    import bert_score

    records = examples(4)
    texts = pairs(records)
    baseline = tmp_path / "baseline.tsv"
    baseline.write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.31,0.32,0.33\n2,0.41,0.42,0.43\n")
    (tmp_path / "records.jsonl").write_text(lines(records))
    settings = {"bertscore_layer": layer, "bertscore_idf": str(tmp_path / "records.jsonl") if idf else None, "bertscore_baseline": str(baseline)}
    metrics = [f"{name}:{tiny['bertscore']}" for name in ("bertscore-precision", "bertscore-recall", "bertscore")]
    found = scored(examples(4), *metrics, **settings)
    # The package counts each reference once a candidate; its weights come out the same where all have as many.
    weights = bert_score.utils.get_idf_dict([record["output"] for record in records], bert_score.utils.get_tokenizer(str(tiny["bertscore"])), nthreads=0)
    expected = bert_score.score(
        [c for c, _ in texts], [r for _, r in texts], model_type=str(tiny["bertscore"]), num_layers=layer, device="cpu", idf=weights if idf else False,
        lang="en", rescale_with_baseline=True, baseline_path=str(baseline),
    )  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs.tolist(), abs=1e-5)


def test_bertscore_with_a_roberta_tokenizer_is_the_packages(golden):
    from collections import defaultdict

    from bert_score import utils

    checkpoint = str(golden / "checkpoints" / "roberta")
    texts = pairs(examples(3))
    (found,) = scored(examples(3), f"bertscore:{checkpoint}", bertscore_layer=2)
    tokenizer = utils.get_tokenizer(checkpoint)
    tokenizer.model_max_length = 298  # the checkpoint's does not say; it has 300 positions, of which RoBERTa reserves two
    weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
    model = utils.get_model(checkpoint, 2)
    expected = utils.bert_cos_score_idf(model, [r for _, r in texts], [c for c, _ in texts], tokenizer, weights, device="cpu")
    assert found == pytest.approx(expected[:, 2].tolist(), abs=1e-5)


def test_each_text_is_encoded_once_for_all_columns(tiny, monkeypatch):
    encoded = []
    encode = BertScore._encode
    monkeypatch.setattr(BertScore, "_encode", lambda self, rows: encoded.extend(rows) or encode(self, rows))
    metrics = [f"{name}:{tiny['bertscore']}" for name in ("bertscore-precision", "bertscore-recall", "bertscore")]
    stage = Scoring(metrics, "cpu", "float32")
    records = examples(2)
    records[0]["candidates"][0]["text"] = records[0]["candidates"][1]["text"]
    list(apply(stage, records))
    distinct = {text for record in records for text in (record["output"], *(c["text"] for c in record["candidates"]))}
    assert len(encoded) == len(distinct) == 11


def test_bartscore_is_the_plain_forward_pass(tiny):
    from transformers import AutoTokenizer, BartForConditionalGeneration

    model, tokenizer = BartForConditionalGeneration.from_pretrained(tiny["bartscore"]).eval(), AutoTokenizer.from_pretrained(tiny["bartscore"])

    def plain(source, target):
        ids = [tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"] for text in (source, target)]
        with torch.no_grad():
            return -float(model(input_ids=ids[0], labels=ids[1]).loss)

    metrics = ("bartscore-precision", "bartscore-recall", "bartscore", "bartscore-source")
    precision, recall, f, source = scored(examples(2), *(f"{metric}:{tiny['bartscore']}" for metric in metrics))
    expected = [(plain(r, c), plain(c, r)) for c, r in pairs(examples(2))]
    assert precision == pytest.approx([p for p, _ in expected], abs=1e-4)
    assert recall == pytest.approx([r for _, r in expected], abs=1e-4)
    assert f == pytest.approx([(p + r) / 2 for p, r in expected], abs=1e-4)
    asked = examples(2)[0]
    assert source[0] == pytest.approx(plain(asked["instruction"], asked["candidates"][0]["text"]), abs=1e-4)


@pytest.mark.parametrize("tiles", [True, False])
def test_bartscore_and_bertscore_in_bfloat16_are_near_float32(tiny, tiles, monkeypatch):
    asked = []
    monkeypatch.setattr(layers, "has_amx", lambda: asked.append(tiles) or tiles)
    metrics = [f"bartscore:{tiny['bartscore']}", f"bertscore:{tiny['bertscore']}"]
    found = {}
    for dtype in ("float32", "bfloat16"):
        records = list(apply(Scoring(metrics, "cpu", dtype), examples(2)))
        found[dtype] = [candidate["scores"][name] for record in records for candidate in record["candidates"] for name in ("bartscore", "bertscore")]
    assert len(asked) > 2  # Both models were laid out anew.
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.05) and found["bfloat16"] != found["float32"]


@pytest.mark.slow
def test_other_weights_over_a_bart(tiny, tmp_path, blendkit):
    from transformers import AutoTokenizer, BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(tiny["bartscore"])
    weights = {key: value * 1.1 for key, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "parabank.pth")
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path / "same")
    AutoTokenizer.from_pretrained(tiny["bartscore"]).save_pretrained(tmp_path / "same")
    (laid,) = scored(examples(1), f"bartscore:{tiny['bartscore']}+{tmp_path / 'parabank.pth'}")
    (same,) = scored(examples(1), f"bartscore:{tmp_path / 'same'}")
    (plain,) = scored(examples(1), f"bartscore:{tiny['bartscore']}")
    assert laid == pytest.approx(same, abs=1e-4)
    assert laid != pytest.approx(plain, abs=1e-2)
    # A pickle that would run code is refused.
    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    done = blendkit("score", "--metric", f"bartscore:{tiny['bartscore']}+{tmp_path / 'evil.pth'}", stdin=lines(examples(1)))
    assert done.returncode == 66
    assert "evil.pth holds no plain weights of this model" in done.stderr
    assert blendkit("score", "--metric", f"bartscore:{tiny['bartscore']}+nowhere.pth", stdin=lines(examples(1))).returncode == 66


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize("kind", ["bleurt", "roberta-bleurt", "deberta-reward"])
def test_regression_heads_are_the_plain_forward_pass(tiny, kind):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tiny[kind]).eval(), AutoTokenizer.from_pretrained(tiny[kind])
    metric = "reward" if "reward" in kind else "bleurt"
    (found,) = scored(examples(2), f"{metric}:{tiny[kind]}")
    sources = [record["instruction"] for record in examples(2) for _ in record["candidates"]]
    with torch.no_grad():
        for score, (candidate, reference), source in zip(found, pairs(examples(2)), sources, strict=True):
            first = source if metric == "reward" else reference
            inputs = tokenizer(first, candidate, truncation="longest_first", max_length=510, return_tensors="pt")
            assert score == pytest.approx(float(model(**inputs).logits), abs=1e-4)


@pytest.mark.parametrize("narrow", [16, None])
def test_the_public_port_of_bleurt(tmp_path, narrow):
    """Its layout, written from plain RemBERT and BERT models."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForSequenceClassification, RemBertConfig, RemBertForSequenceClassification

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    if narrow:
        model = RemBertForSequenceClassification(RemBertConfig(**shape, input_embedding_size=narrow, num_labels=1)).eval()
    else:
        model = BertForSequenceClassification(BertConfig(**shape, num_labels=1)).eval()
    weights = {}
    for key, value in model.state_dict().items():
        key = key.replace(f"{model.base_model_prefix}.", "bleurt.", 1).replace("embedding_hidden_mapping_in", "embedding_projection")
        weights[key] = value.contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    config = {**shape, "model_type": "bleurt", "architectures": ["BleurtForSequenceClassification"], "embedding_size": narrow, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(tmp_path)
    (found,) = scored(examples(2), f"bleurt:{tmp_path}")
    with torch.no_grad():
        for score, (candidate, reference) in zip(found, pairs(examples(2)), strict=True):
            inputs = tokenizer(reference, candidate, return_tensors="pt")
            assert score == pytest.approx(float(model(**inputs).logits), abs=1e-4)


def test_a_chat_reward_model_reads_the_conversation(tiny):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tiny["reward"]).eval(), AutoTokenizer.from_pretrained(tiny["reward"])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "a joke"}]
    texts = ["Knock knock.", "No", "A much longer answer than the others are"]
    record = {"messages": turns, "candidates": [{"model": "m", "text": text} for text in texts]}
    (found,) = scored([record], f"reward:{tiny['reward']}")
    with torch.no_grad():
        for score, text in zip(found, texts, strict=True):
            chat = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], tokenize=False)
            assert score == pytest.approx(float(model(**tokenizer(chat, add_special_tokens=False, return_tensors="pt")).logits), abs=1e-4)


def test_perplexity_is_that_of_the_answers_tokens(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny["perplexity"]).eval(), AutoTokenizer.from_pretrained(tiny["perplexity"])
    record = {"instruction": "Say it", "candidates": [{"model": "m", "text": text} for text in ("bread", "", "bread and dough rise")]}
    (found,) = scored([record], f"perplexity:{tiny['perplexity']}")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Say it"}], tokenize=False, add_generation_prompt=True)
    for score, text in zip(found[::2], ("bread", "bread and dough rise"), strict=True):
        before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
        with torch.no_grad():
            probabilities = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected = math.exp(-np.mean([float(probabilities[len(before) + place - 1, token]) for place, token in enumerate(after)]))
        assert score == pytest.approx(expected, rel=1e-4)
    assert found[1] == 1e6


def test_the_lowest_perplexity_ranks_first(tiny, blendkit):
    assert better_when_lower("perplexity") and better_when_lower("perplexity-big") and not better_when_lower("bleu")
    metric = f"perplexity-tiny=perplexity:{tiny['perplexity']}"
    done = blendkit("score", "--metric", metric, stdin=lines(examples(2)))
    ranked = parsed(blendkit("rank", "--by", "score:perplexity-tiny", stdin=done.stdout).stdout)
    for record in ranked:
        values = [candidate["scores"]["perplexity-tiny"] for candidate in record["candidates"]]
        assert values[record["top"][0]] == min(values)


def test_mbr_by_hand():
    record = {"candidates": [{"model": "m", "text": text} for text in ("the cat sat", "cat sat", "a dog")]}
    (found,) = scored([record], "mbr:token-f1")
    assert found == pytest.approx([0.5, 0.5, 0.0])
    (alone,) = scored([{"candidates": [{"model": "m", "text": "x"}]}], "mbr:token-f1")
    assert alone == [0.0]


def test_cosine_by_hand(tiny):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny["cosine"]).eval(), AutoTokenizer.from_pretrained(tiny["cosine"])

    def embedding(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    (found,) = scored(examples(1), f"cosine:{tiny['cosine']}")
    record = examples(1)[0]
    expected = [float(torch.cosine_similarity(embedding(record["instruction"]), embedding(c["text"]), dim=0)) for c in record["candidates"]]
    assert found == pytest.approx(expected, abs=1e-5)


def test_mlm_masks_one_token_at_a_time(tiny):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(tiny["mlm"]).eval(), AutoTokenizer.from_pretrained(tiny["mlm"])
    texts = ["yeast eats sugar", "", "the gas"]
    record = {"candidates": [{"model": "m", "text": text} for text in texts]}
    total, mean = scored([record], f"mlm:{tiny['mlm']}", f"mlm-norm:{tiny['mlm']}")
    for place in (0, 2):
        ids = tokenizer(texts[place], return_tensors="pt")["input_ids"]
        expected = 0.0
        for token in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, token] = tokenizer.mask_token_id
            with torch.no_grad():
                expected += float(model(masked).logits[0, token].log_softmax(-1)[ids[0, token]])
        assert total[place] == pytest.approx(expected, abs=1e-4)
        assert mean[place] == pytest.approx(expected / (ids.shape[1] - 2), abs=1e-4)
    assert total[1] == mean[1] == -1e4


@pytest.mark.parametrize("family", ["Camembert", "DistilBert", "Electra", "Bert"])
def test_mlm_in_bfloat16_is_near_float32(tmp_path, family):
    """An encoder that is read packed or padded gets the number type, and the head stays in float32, though its words are the encoder's embeddings."""
    import transformers

    tokenizer = bert_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "DistilBert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=64, initializer_range=0.1, **shape)
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["yeast eats sugar", "the gas", "water " * 200]

    def scores(dtype):
        record = {"candidates": [{"model": "m", "text": text} for text in texts]}
        (done,) = apply(Scoring([f"mlm-norm:{tmp_path}"], "cpu", dtype), [record])
        return [candidate["scores"]["mlm-norm"] for candidate in done["candidates"]]

    exact, rounded = scores("float32"), scores("bfloat16")
    assert rounded == pytest.approx(exact, abs=0.05)
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    expected = 0.0
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            expected += float(network(masked).logits[0, place].log_softmax(-1)[ids[0, place]]) / (ids.shape[1] - 2)
    assert exact[0] == pytest.approx(expected, abs=1e-4)


def first_states(model, tokenizer, texts):
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in texts]


def test_simcls_is_the_cosine_of_first_tokens(tiny):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny["simcls"]).eval(), AutoTokenizer.from_pretrained(tiny["simcls"])
    tokenizer.add_tokens(["<source>", "<candidate>"])
    record = {"instruction": "why bread", "candidates": [{"model": "m", "text": text} for text in ("yeast", "", "gas and gluten")]}
    (found,) = scored([record], f"simcls:{tiny['simcls']}")
    source, *candidates = first_states(model, tokenizer, ["<source>why bread", *(f"<candidate>{c['text']}" for c in record["candidates"])])
    assert found == pytest.approx([float(torch.cosine_similarity(source, state, dim=0)) for state in candidates], abs=1e-5)


def test_summareranker_mixes_its_experts(tiny):
    """The head written out for one candidate at a time: two tasks, four experts, the best two of each task."""
    from blendkit.models.mixture_of_experts import load_summareranker

    encoder, head, tokenizer, _ = load_summareranker(str(tiny["summareranker"]))
    tokenizer.add_tokens(["<source>", "<candidate>"])
    texts = ["yeast", "gas and gluten"]
    record = {"instruction": "why bread", "candidates": [{"model": "m", "text": text} for text in texts]}
    (found,) = scored([record], f"summareranker:{tiny['summareranker']}")
    for score, text in zip(found, texts, strict=True):
        ids = tokenizer("<source>why bread")["input_ids"] + tokenizer(f"<candidate>{text}")["input_ids"][1:]
        with torch.no_grad():
            state = encoder(torch.tensor([ids])).last_hidden_state[0, 0]
            bottom = head.fc2(torch.relu(head.fc1(state)))
            logits = []
            for gate, tower in zip(head.moe.w_gate, head.towers, strict=True):
                weights = bottom @ gate
                best = sorted(range(4), key=lambda expert, weights=weights: -float(weights[expert]))[:2]
                shares = torch.softmax(weights[best], 0)
                mixed = sum(share * torch.exp(head.moe.experts[expert](bottom)) for share, expert in zip(shares, best, strict=True))
                logits.append(float(tower(torch.log(mixed))))
        assert score == pytest.approx(1 / (1 + math.exp(-np.mean(logits))), abs=1e-5)


@pytest.mark.parametrize("metrics", [("bertscore", "bertscore-recall"), ("bartscore", "bartscore-precision"), ("mlm", "mlm-norm")])
def test_scorers_of_one_model_load_it_once(tiny, metrics):
    from blendkit.scorers import make_scorer

    first, second = (make_scorer(f"{metric}:{tiny[metrics[0]]}", device="cpu") for metric in metrics)
    attribute = "encoder" if metrics[0] == "bertscore" else "loaded"
    assert getattr(first, attribute) is getattr(second, attribute)
