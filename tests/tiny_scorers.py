"""Tiny checkpoints for every scorer that takes one, and how the tests of scorers call them."""

from __future__ import annotations

import json

import torch
from conftest import bert_tokenizer, bpe_tokenizer

import blendkit as library

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.3}


def save(folder, model, tokenizer, **kept):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kept:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | kept))
    return folder


def checkpoints(folder, encoder, chat):
    """A checkpoint for each metric that takes one, by name; made in `folder`, but for an encoder and a chat model that are there."""
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

    from blendkit.models.mixture_of_experts import SummaRerankerHead, save_summareranker

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
        "bertscore": encoder,
        "bartscore": save(folder / "bart", BartForConditionalGeneration(bart), tokenizer),
        "bleurt": save(folder / "bleurt", BertForSequenceClassification(BertConfig(vocab_size=size, num_labels=1, **SHAPE)), tokenizer),
        "mlm": save(folder / "mlm", BertForMaskedLM(BertConfig(vocab_size=size, **SHAPE)), tokenizer),
        "simcls": save(folder / "simcls", marked, tokenizer, source_maxlength=60, candidate_maxlength=60),
        "summareranker": folder / "summareranker",
        "reward": save(folder / "reward", LlamaForSequenceClassification(llama), bpe_tokenizer()),
        "perplexity": chat,
        "judge": chat,
        "cosine": encoder,
        "mbr": f"bertscore:{encoder}",
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
