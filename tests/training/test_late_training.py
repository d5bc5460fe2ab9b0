"""Training a late-paired ranker: what it learns, from where, and that it goes on."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
import torch
from conftest import examples

import blendkit
from blendkit.errors import UsageError
from blendkit.models.pairrm import load_pairrm
from blendkit.training import loop
from blendkit.training.examples import Example, Pairing
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.late import LatePairRankerTrainee

QUALITY = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}


def labelled(count: int) -> list[dict]:
    records = examples(count)
    for record in records:
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": QUALITY[candidate["model"]]}
    return records


def test_records_that_go_through_together_give_the_loss_of_each(tiny_encoder):
    torch.manual_seed(0)
    new = NewRanker(str(tiny_encoder), paired_layers=1, candidate_bias=-1.0, source_maxlength=48, candidate_maxlength=64, micro_tokens=10**6)
    trainee = new_trainee("pairranker", new, Pairing("all-pair"))
    assert isinstance(trainee, LatePairRankerTrainee)
    trainee.eval()
    given = [Example(r["id"], r["instruction"], [c["text"] for c in r["candidates"]], [[c["scores"]["q"]] for c in r["candidates"]]) for r in labelled(4)]
    (together,) = trainee.parts(given, random.Random(0))
    apart = [part for example in given for part in trainee.parts([example], random.Random(0))]
    trainee.micro_tokens = 1
    assert [part.tokens for part in trainee.parts(given, random.Random(0))] == [part.tokens for part in apart]
    torch.testing.assert_close(trainee(together), sum(trainee(part) for part in apart))
    assert (together.count, together.tokens) == (4, sum(part.tokens for part in apart))
    # A record's pairs are learnt from as they would be apart from each other.
    source, candidates, labels, pairs = apart[0].inputs[0]
    alone = [trainee(type(apart[0])([(source, candidates, labels, [pair])], 1.0, 0)) for pair in pairs]
    torch.testing.assert_close(trainee(apart[0]), torch.stack(alone).mean())


def test_what_it_is_measured_by_is_max_logits_of_both_orders(tiny_encoder):
    torch.manual_seed(0)
    trainee = new_trainee("pairranker", NewRanker(str(tiny_encoder), paired_layers=1, source_maxlength=48, candidate_maxlength=64), Pairing())
    torch.nn.init.normal_(trainee.model.paired_bias, std=0.02)
    trainee.eval()
    record = labelled(1)[0]
    example = Example("x", record["instruction"], [candidate["text"] for candidate in record["candidates"]], [[0.0]] * 5)
    source, candidates = trainee._encoded(example)
    pairs = list(permutations(range(5), 2))
    with torch.no_grad():
        found = trainee.scores(example, random.Random(0))
        left, right = trainee._compared([(source, candidates, pairs)])
    full = [0.0] * 5
    for (i, j), logit in zip(pairs, (left - right).mean(1).tolist(), strict=True):
        full[i], full[j] = full[i] + logit / 5, full[j] - logit / 5
    assert found == pytest.approx(full, abs=1e-5) and max(map(abs, full)) > 1e-3


def run(out, **more):
    options = {
        "labels": ["q"],
        "steps": 24,
        "save_every": 8,
        "log_every": 4,
        "device": "cpu",
        "bfloat16": False,
        "records_per_step": 2,
        "learning_rate": 1e-3,
        "source_maxlength": 48,
    }
    return blendkit.train_ranker(labelled(6), out, **{**options, "candidate_maxlength": 64, "subsampling": "all-pair", "average": 0.9, **more})


def test_a_step_that_cannot_be_prepared_leaves_the_one_before_it_saved(tiny_encoder, tmp_path, monkeypatch):
    start = {"backbone": str(tiny_encoder), "paired_layers": 1, "steps": 4, "save_every": 1, "log_every": 1}
    rows, inner, calls = run(tmp_path / "whole", **start), LatePairRankerTrainee.parts, iter(range(9))

    def failing(self, *given):
        if next(calls) == 2:
            raise RuntimeError("no third step")
        return inner(self, *given)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no third step"):
        patched.setattr(LatePairRankerTrainee, "parts", failing)
        run(tmp_path / "cut", **start)
    assert len((tmp_path / "cut" / "train.log.jsonl").read_text().splitlines()) == 2
    assert [row["loss"] for row in run(tmp_path / "cut", resume=True, **start)] == [row["loss"] for row in rows]


def test_it_learns_is_resumed_exactly_and_starts_from_an_encoder_or_a_ranker(tiny_encoder, tiny_ranker, tmp_path, monkeypatch):
    start = {"backbone": str(tiny_encoder), "paired_layers": 1, "candidate_bias": -1.0}
    rows = run(tmp_path / "whole", **start)
    assert rows[-1]["loss"] < rows[0]["loss"]
    update = loop._Training._update

    class Killed(Exception):
        pass

    def killed(self, step, parts):
        if step == 15:
            raise Killed
        return update(self, step, parts)

    monkeypatch.setattr(loop._Training, "_update", killed)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **start)
    monkeypatch.undo()
    again = run(tmp_path / "cut", resume=True, **start)
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    states = [torch.load(tmp_path / name / "training.state.pt", weights_only=True)["weights"] for name in ("cut", "whole")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert states[0]["model.paired_bias"].abs().max() > 0
    # The checkpoint says what it is, and another run goes on with it as it is.
    first = load_pairrm(str(tmp_path / "whole"))[0]
    assert first.config.paired_layers == 1
    measured = blendkit.pair(labelled(6), str(tmp_path / "whole"), device="cpu", schedule="single")
    quality = [[QUALITY[candidate["model"]] for candidate in record["candidates"]] for record in labelled(6)]
    right = [(q[i] > q[j]) == (s > 0) for q, record in zip(quality, measured, strict=True) for i, j, s in record["comparisons"]["pairrm"]["pairs"]]
    assert len(right) == 60 and sum(right) > 48
    run(tmp_path / "further", init=str(tmp_path / "whole"), steps=1, learning_rate=1e-9, average=0.0)
    further = load_pairrm(str(tmp_path / "further"))[0]
    assert further.config == first.config
    assert all(torch.allclose(value, further.state_dict()[key], atol=1e-4) for key, value in first.state_dict().items() if "pooler" not in key)
    # From a ranker of the paper's kind, whose weights stay.
    run(tmp_path / "late", init=str(tiny_ranker), paired_layers=2, steps=1, learning_rate=1e-9, average=0.0)
    late, old = (load_pairrm(str(folder))[0] for folder in (tmp_path / "late", tiny_ranker))
    assert (late.config.paired_layers, old.config.paired_layers) == (2, None)
    assert all(torch.allclose(value, late.state_dict()[key], atol=1e-3) for key, value in old.state_dict().items() if "pooler" not in key)


def test_what_does_not_go_with_it_is_told(tiny_encoder, tmp_path):
    for more, said in (
        ({"mode": "singles"}, "--mode singles: a late-paired ranker reads each candidate once"),
        ({"kind": "simcls"}, "--paired-layers are for --kind pairranker"),
        ({"paired_layers": 3}, "--paired-layers 3: expected 0, 1 or 2"),
    ):
        with pytest.raises(UsageError, match=said):
            run(tmp_path / "o", **{"backbone": str(tiny_encoder), "paired_layers": 1, **more})


def test_the_encoders_dropout_is_there_in_training_only(tiny_encoder):
    torch.manual_seed(0)
    trainee = new_trainee("pairranker", NewRanker(str(tiny_encoder), paired_layers=1), Pairing())
    trainee.model.pretrained_model.config.hidden_dropout_prob = 0.1
    assert [layer.dropout for layer in trainee.train()._late().encoder.layers] == [0.1, 0.1]
    assert [layer.dropout for layer in trainee.eval()._late().encoder.layers] == [0.0, 0.0]


def test_autocast_decides_what_the_packed_path_computes_in(tiny_encoder, tmp_path):
    trainee = new_trainee("pairranker", NewRanker(str(tiny_encoder), paired_layers=1), Pairing())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trainee._late().encoder.where[1] == torch.bfloat16
    assert trainee._late().encoder.where[1] == torch.float32
    rows = {bfloat16: run(tmp_path / str(bfloat16), backbone=str(tiny_encoder), paired_layers=1, bfloat16=bfloat16) for bfloat16 in (True, False)}
    losses = {kind: [row["loss"] for row in found] for kind, found in rows.items()}
    assert losses[True][-1] < losses[True][0] and losses[True] != losses[False]
    saved = load_pairrm(str(tmp_path / "True"))[0]
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}
