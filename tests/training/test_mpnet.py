"""MPNet, which has no token types and relative distances of its own, is trained and read like any other encoder."""

from __future__ import annotations

import random

import pytest
import tiny_models
import torch
from conftest import examples

import blendkit
from blendkit.errors import UsageError
from blendkit.models.pairrm import load_pairrm
from blendkit.pipeline.runner import apply
from blendkit.rankers.pairranker import PairRanker
from blendkit.training.examples import Labels, Pairing
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.new_pairranker import late_paired, new_ranker

QUALITY = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}
SMALL = {
    "source_maxlength": 48,
    "candidate_maxlength": 64,
    "learning_rate": 3e-3,
    "labels": ["q"],
    "records_per_step": 2,
    "log_every": 5,
    "device": "cpu",
    "bfloat16": False,
}


def labelled(count: int = 6) -> list[dict]:
    records = examples(count)
    for record in records:
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": QUALITY[candidate["model"]]}
    return records


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory):
    return tiny_models.encoder(tmp_path_factory.mktemp("mpnet"), "MPNet")


def test_an_mpnet_becomes_a_pairranker_that_pair_reads_packed(mpnet, tmp_path):
    rows = blendkit.train_ranker(labelled(), tmp_path / "singles", backbone=mpnet, mode="singles", steps=30, **SMALL)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    pairs = {"init": tmp_path / "singles", "candidate_bias": -3, "checkpointing": True, "evaluation": labelled(2)}
    rows = blendkit.train_ranker(labelled(), tmp_path / "pairs", steps=5, **pairs, **SMALL)
    assert rows[-1]["pair_accuracy"] > 74
    model, _ = load_pairrm(str(tmp_path / "pairs"))
    assert (model.config.positions, model.config.candidate_bias) == ("segment", -3)
    assert model.pretrained_model.embeddings.token_type_embeddings.weight.abs().min() > 0  # trained, saved, and read back
    found = []
    for packed in (True, False):
        ranker = PairRanker(str(tmp_path / "pairs"), device="cpu", dtype="float32", packed=packed)
        assert (ranker.common.scorer.encoder is not None) == packed
        found.append([pair[2] for record in apply(ranker, examples(2)) for pair in record["comparisons"]["pairrm"]["pairs"]])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["simcls", "summareranker", "reward"])
def test_an_mpnet_scores_as_it_was_trained(mpnet, tmp_path, kind):
    trainee = new_trainee(kind, NewRanker(backbone=str(mpnet)), Pairing())
    trainee.eval()
    trainee.save(tmp_path)
    (example,) = Labels(("q",)).read(labelled(1))
    with torch.no_grad():
        expected = torch.tensor(trainee.scores(example, random.Random(0)))
    (record,) = blendkit.score(labelled(1), [f"{kind}:{tmp_path}"], device="cpu")
    found = [candidate["scores"][kind] for candidate in record["candidates"]]
    assert found == pytest.approx((expected.sigmoid() if kind == "summareranker" else expected).tolist(), abs=1e-4)


def test_texts_that_count_by_themselves_need_token_types(tmp_path):
    from transformers import DebertaV2Config, DebertaV2Model

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "type_vocab_size": 0}
    tokenizer = tiny_models.bert_tokenizer()
    backbone = tiny_models.saved(DebertaV2Model(DebertaV2Config(vocab_size=len(tokenizer), **shape)), tokenizer, tmp_path)
    with pytest.raises(UsageError, match="--positions segment: a DebertaV2Model has no token types"):
        new_trainee("pairranker", NewRanker(backbone=str(backbone)), Pairing())


def test_a_trained_mpnets_token_types_stay_when_it_becomes_late_paired(mpnet):
    model, _ = new_ranker(str(mpnet), 48, 64, "segment")
    types = model.pretrained_model.embeddings.token_type_embeddings.weight.detach().clone()
    assert torch.equal(late_paired(model, 1).pretrained_model.embeddings.token_type_embeddings.weight, types)
