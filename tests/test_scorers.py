"""Scorers on tiny checkpoints: values that plain transformers or a hand gives, hostile texts, shared work."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import bert_tokenizer, bpe_tokenizer, examples, lines, parsed

import blendkit as library
from blendkit.errors import NoInputError, UsageError
from blendkit.scorers import SCORERS, better_when_lower, make_scorer
from blendkit.scorers.scoring import Scoring
from blendkit.stage import apply

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.3}


def save(folder, model, tokenizer, **kept):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kept:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | kept))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_encoder, tiny_chat):
    """A checkpoint for each metric that takes one, by name."""
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertModel,
        DebertaV2Config,
        DebertaV2ForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    from blendkit.models.summareranker import SummaRerankerHead, save_summareranker

    folder = tmp_path_factory.mktemp("scorers")
    tokenizer = bert_tokenizer()
    size = len(tokenizer)
    torch.manual_seed(0)
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}
    specials = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 4, "decoder_start_token_id": 4, "forced_eos_token_id": None}
    bart = BartConfig(vocab_size=size, d_model=32, **sides, max_position_embeddings=512, init_std=0.3, **specials)
    llama = LlamaConfig(vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_labels=1, pad_token_id=0)
    marked = BertModel(BertConfig(vocab_size=size + 2, **SHAPE))
    head = SummaRerankerHead(2, 32)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    save_summareranker(folder / "summareranker", marked, head, tokenizer, 60, 60)
    found = {
        "bertscore": tiny_encoder,
        "bartscore": save(folder / "bart", BartForConditionalGeneration(bart), tokenizer),
        "bleurt": save(folder / "bleurt", BertForSequenceClassification(BertConfig(vocab_size=size, num_labels=1, **SHAPE)), tokenizer),
        "mlm": save(folder / "mlm", BertForMaskedLM(BertConfig(vocab_size=size, **SHAPE)), tokenizer),
        "simcls": save(folder / "simcls", marked, tokenizer, source_maxlength=60, candidate_maxlength=60),
        "summareranker": folder / "summareranker",
        "reward": save(folder / "reward", LlamaForSequenceClassification(llama), bpe_tokenizer()),
        "perplexity": tiny_chat,
        "cosine": tiny_encoder,
        "mbr": f"bertscore:{tiny_encoder}",
    }
    deberta = DebertaV2Config(
        vocab_size=size, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, position_biased_input=False, num_labels=1,
        share_att_key=True, type_vocab_size=0, **SHAPE,
    )  # fmt: skip
    found["deberta-reward"] = save(folder / "deberta", DebertaV2ForSequenceClassification(deberta), tokenizer)
    roberta = RobertaConfig(vocab_size=size, num_labels=1, pad_token_id=0, max_position_embeddings=512, type_vocab_size=1, **SHAPE)
    found["roberta-bleurt"] = save(folder / "roberta", RobertaForSequenceClassification(roberta), tokenizer)
    return found


def spec(tiny, metric):
    family = next((name for name in tiny if metric == name or metric.startswith(f"{name}-")), None)
    return f"{metric}:{tiny[family]}" if family else metric


def scored(records, *metrics, **settings):
    done = list(library.score(records, list(metrics), device="cpu", **settings))
    return [[candidate["scores"][metric.partition(":")[0]] for record in done for candidate in record["candidates"]] for metric in metrics]


HOSTILE = [
    "",
    "   ",
    "same",
    "same",
    "x" * 10_000,
    "word " * 3000,
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u202eabc\u202c",
    "\x00\x01",
    "[SEP] </s> [MASK] <source>",
    "a\n\n\tb",
]


@pytest.mark.parametrize("metric", SCORERS)
def test_every_score_of_any_text_is_finite(tiny, metric):
    """Empty, blank, equal, endless, right-to-left, emoji and control characters, as candidate and as reference."""
    texts = ["", "same", "x" * 3000 + " end", "مرحبا 👩‍👩‍👧", "[SEP] [MASK]"] if metric.startswith("mlm") else HOSTILE
    references = ["", "same", "שלום 🙂", "word " * 2000]
    candidates = [{"model": str(number), "text": text} for number, text in enumerate(texts)]
    records = [{"id": str(n), "instruction": "x", "output": text, "candidates": [dict(c) for c in candidates]} for n, text in enumerate(references)]
    (scores,) = scored(records if make_scorer(spec(tiny, metric), device="cpu").needs_reference else records[:1], spec(tiny, metric))
    assert all(math.isfinite(score) for score in scores)
    if metric != "random":
        assert scores[texts.index("same")] == scores[len(texts) - 1 - texts[::-1].index("same")]


@pytest.mark.parametrize("metric", SCORERS)
def test_a_score_has_its_signature_and_depends_on_no_batch(tiny, metric):
    one = Scoring([spec(tiny, metric)], "cpu", "float32")
    whole = list(apply(one, examples(4), window=4))
    single = list(apply(Scoring([spec(tiny, metric)], "cpu", "float32"), examples(4), window=1, batch_tokens=64))
    for first, second in zip(whole, single, strict=True):
        for a, b in zip(first["candidates"], second["candidates"], strict=True):
            assert a["scores"][metric] == pytest.approx(b["scores"][metric], abs=1e-5, rel=1e-4)
    signature = one.describe()["signatures"][0]
    assert whole[0]["signatures"] == {f"score:{metric}": signature}
    values = {candidate["scores"][metric] for record in whole for candidate in record["candidates"]}
    assert len(values) > (1 if metric == "exact-match" else 5) or metric == "exact-match"


@pytest.mark.parametrize("metric", [name for name in SCORERS if name not in ("length", "random")])
def test_a_missing_need_names_the_record(blendkit, tiny, metric):
    record = {key: value for key, value in examples(1)[0].items() if key in ("id", "candidates")}
    scorer = make_scorer(spec(tiny, metric), device="cpu")
    done = blendkit("score", "--metric", spec(tiny, metric), stdin=lines([examples(1)[0] | {"id": "good"}, record]))
    if scorer.needs_reference:
        assert (done.returncode, done.stderr) == (65, f"blendkit score: <stdin>:2: output: expected a string: --metric {metric} needs the reference answer\n")
    elif scorer.needs_source:
        assert done.returncode == 65
        assert done.stderr == "blendkit score: <stdin>:2: instruction: expected a string (or `input`, or `messages`), got nothing\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert [row["id"] for row in parsed(done.stdout)][:1] == ["good"]


# --- values -----------------------------------------------------------------------------------------------------------


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
    settings = {"layers": layer, "idf": str(tmp_path / "records.jsonl") if idf else None, "baseline": str(baseline)}
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
    (found,) = scored(examples(3), f"bertscore:{checkpoint}", layers=2)
    tokenizer = utils.get_tokenizer(checkpoint)
    tokenizer.model_max_length = 298  # the checkpoint's does not say; it has 300 positions, of which RoBERTa reserves two
    weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
    model = utils.get_model(checkpoint, 2)
    expected = utils.bert_cos_score_idf(model, [r for _, r in texts], [c for c, _ in texts], tokenizer, weights, device="cpu")
    assert found == pytest.approx(expected[:, 2].tolist(), abs=1e-5)


def test_each_text_is_encoded_once_for_all_columns(tiny, monkeypatch):
    metrics = [f"{name}:{tiny['bertscore']}" for name in ("bertscore-precision", "bertscore-recall", "bertscore")]
    stage = Scoring(metrics, "cpu", "float32")
    encoded = []
    run = stage.run
    monkeypatch.setattr(stage, "run", lambda group, payloads: encoded.extend(payloads if group.endswith("|encode") else []) or run(group, payloads))
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


# --- flags, labels, faults --------------------------------------------------------------------------------------------


def test_labels_keep_two_models_of_one_metric_apart(tiny, blendkit):
    done = blendkit("score", "--metric", "bertscore", "--metric", f"tiny=bertscore:{tiny['bertscore']}", stdin=lines(examples(1)))
    assert done.returncode == 0, done.stderr
    assert set(parsed(done.stdout)[0]["candidates"][0]["scores"]) == {"bertscore", "tiny"}
    twice = blendkit("score", "--metric", "bertscore", "--metric", f"bertscore:{tiny['bertscore']}", stdin=lines(examples(1)))
    assert twice.returncode == 2
    assert "there is a bertscore already; give this one a label" in twice.stderr


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("bleu:x", "bleu takes no model"),
        ("simcls", "name a model, simcls:MODEL"),
        ("mbr:length", "length compares with no reference"),
        ("ppl=perplexity:x", "a label must say so: perplexity-ppl=perplexity:x"),
        ("bert=bertscore:a=bertsore", "no model"),
    ],
)
def test_a_wrong_metric_says_what_is_wrong(metric, said):
    with pytest.raises((UsageError, NoInputError)) as error:
        make_scorer(metric, device="cpu")
    assert said in str(error.value)


def test_a_checkpoint_of_another_kind_is_refused(tiny):
    """transformers would make up the missing head."""
    for metric in ("bleurt", "reward", "mlm", "bartscore", "simcls", "summareranker"):
        with pytest.raises(NoInputError):
            make_scorer(f"{metric}:{tiny['bertscore']}", device="cpu")


def test_bertscore_flags_that_do_not_fit(blendkit, tmp_path):
    for flags, code, said in (
        (("--bertscore-layer", "9"), 66, "embedded has 6 layers; layer 9 was asked for"),
        (("--bertscore-baseline", "en"), 2, "bert-score has no baseline of embedded in a language 'en'"),
        (("--bertscore-idf", "nowhere.jsonl"), 66, "nowhere.jsonl: No such file"),
    ):
        done = blendkit("score", "--metric", "bertscore", *flags, stdin=lines(examples(1)))
        assert done.returncode == code
        assert said in done.stderr


def test_rank_by_an_oracle_field(blendkit):
    record = {
        "id": "a",
        "instruction": "x",
        "candidates": [{"model": "m", "text": "1", "quality": 0.2}, {"model": "n", "text": "2", "scores": {"quality": 0.9}}],
    }
    done = blendkit("rank", "--by", "oracle:quality", stdin=lines([record]))
    assert parsed(done.stdout)[0]["ranks"] == {"oracle:quality": [2, 1]}
    missing = blendkit("rank", "--by", "oracle:nothing", stdin=lines([record]))
    assert missing.returncode == 65
    assert "<stdin>:1: candidates[0].nothing: expected a number there or in its scores" in missing.stderr


def labelled():
    """Four pairs and a tie: the longer answer is right twice, `good` always, `bad` never, `ppl` (lower is better) three times."""
    rows = [("A", "long one", "s", 1, 3), ("B", "s", "long one", 2, 1), ("A", "s", "long one", 1, 2), ("B", "long one", "s", 1, 5), ("tie", "s", "t", 1, 1)]
    records = []
    for number, (label, a, b, low, high) in enumerate(rows):
        good = (0.9, 0.1) if label == "A" else (0.1, 0.9)
        candidates = [
            {"model": "m", "text": text, "scores": {"good": g, "bad": -g, "perplexity": p}} for text, g, p in zip((a, b), good, (low, high), strict=True)
        ]
        records.append(
            {"id": str(number), "human": label, "candidates": candidates, "ranks": {"r": [1, 2]}, "signatures": {"score:good": f"good|{number == 9}"}}
        )
    return records


def test_agreement_with_labels_by_hand(blendkit):
    done = blendkit("evaluate", "--agreement", "human", stdin=lines(labelled()))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in parsed(done.stdout) if row["table"] == "agreement"}
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "score:good": 100, "score:bad": 0, "score:perplexity": 75, "longest candidate": 50, "r": 50,
    }  # fmt: skip
    assert all(row["pairs"] == 4 for row in rows.values())
    assert rows["score:good"]["over_longest"] == 50
    assert rows["score:good"]["accuracy_low"] == rows["score:good"]["accuracy_high"] == 100
    assert rows["score:good"]["explained_by_length"] == 0
    assert rows["longest candidate"]["right_when_longer_is"] == 100
    assert rows["longest candidate"]["right_when_shorter_is"] == 0
    assert rows["r"]["right_when_longer_is"] == 50
    assert "1 of 5 pairs are a tie by human" in done.stderr
    assert "score:good: good|False" in done.stderr
    assert "perplexity ↓" in done.stderr


def test_agreement_needs_labels_and_two_candidates(blendkit):
    records = labelled()
    records[1]["human"] = "C"
    done = blendkit("evaluate", "--agreement", "human", stdin=lines(records))
    assert done.returncode == 65
    assert "<stdin>:2: human: expected A, B or tie, as --agreement human needs, got 'C'" in done.stderr
    three = [record | {"human": "A"} for record in examples(1)]
    assert "expected two, A and B" in blendkit("evaluate", "--agreement", "human", stdin=lines(three)).stderr


def test_eight_metrics_in_one_pass_and_table_3(blendkit):
    metrics = ("bleu", "chrf", "rouge2", "rougeL", "token-f1", "bertscore", "mbr:bertscore", "cosine", "length", "random")
    flags = [part for metric in metrics for part in ("--metric", metric)]
    stream = blendkit("pair", stdin=lines(examples(4))).stdout
    stream = blendkit("score", *flags, stdin=blendkit("rank", stdin=stream).stdout).stdout
    done = blendkit("evaluate", "--oracle", "score:bleu", stdin=stream)
    assert done.returncode == 0, done.stderr
    table3 = {row["method"] for row in parsed(done.stdout) if row["table"] == 3}
    assert table3 == {"pairrm", *(f"score:{metric.partition(':')[0]}" for metric in metrics)} - {"score:bleu"}
    assert "score:mbr: mbr|bertscore|f1|model:embedded@" in done.stderr


def test_a_manifest_names_signatures_and_models(blendkit, tiny, tmp_path):
    path = tmp_path / "manifest.json"
    done = blendkit("score", "--metric", f"mlm:{tiny['mlm']}", "--metric", "bleu", "--manifest", path, stdin=lines(examples(1)))
    assert done.returncode == 0, done.stderr
    manifest = json.loads(path.read_text())
    assert [signature.partition("|")[0] for signature in manifest["signatures"]] == ["mlm", "bleu"]
    assert list(manifest["models"]) == [str(tiny["mlm"])]
    assert manifest["counts"]["tokens"] > 100


def test_a_prefilter_by_a_model(blendkit):
    done = blendkit("pair", "--prefilter", "mbr:rouge2:3", stdin=lines(examples(2)))
    assert done.returncode == 0, done.stderr
    for record in parsed(done.stdout):
        compared = {index for i, j, _ in record["comparisons"]["pairrm"]["pairs"] for index in (i, j)}
        assert len(compared) == 3
