"""Training a ranker on a causal LM: it learns, the LM does not, and a run goes on as if it had not stopped."""

from __future__ import annotations

import json
import random

import pytest
import torch
from test_late_training import labelled

import blendkit
from blendkit.errors import UsageError
from blendkit.models.lm_ranker import LMRankerConfig, load_lm_ranker, new_lm_ranker, save_lm_ranker
from blendkit.training import loop
from blendkit.training.examples import Example, Pairing
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.lm_ranker import LMRankerTrainee


def run(out, backbone, **more):
    options = {"steps": 16, "save_every": 4, "log_every": 4, "records_per_step": 2, "learning_rate": 1e-2, "average": 0.5, "subsampling": "all-pair", **more}
    start = {"backbone": str(backbone), "lora": 4} if backbone else {}
    return blendkit.train_ranker(labelled(6), out, kind="lmranker", labels=["q"], device="cpu", bfloat16=False, **start, **options)


def trainee_of(backbone, **more):
    torch.manual_seed(0)
    trainee = new_trainee("lmranker", NewRanker(str(backbone), lora=4, **more), Pairing("all-pair"))
    assert isinstance(trainee, LMRankerTrainee)
    with torch.no_grad():
        for weight in trainee.parameters():
            weight.normal_(std=0.3)
    return trainee


def test_records_that_go_through_together_give_the_loss_of_each(tiny_chat):
    trainee = trainee_of(tiny_chat, micro_tokens=10**6)
    trainee.model.lm.float()
    given = [Example(r["id"], r["instruction"], [c["text"] for c in r["candidates"]], [[c["scores"]["q"]] for c in r["candidates"]]) for r in labelled(4)]
    (together,) = trainee.parts(given, random.Random(0))
    apart = [part for example in given for part in trainee.parts([example], random.Random(0))]
    assert (together.count, together.tokens) == (4, sum(part.tokens for part in apart))
    with torch.no_grad():
        torch.testing.assert_close(trainee(together), sum(trainee(part) for part in apart), atol=1e-4, rtol=1e-4)


def test_gradients_reach_all_that_was_added_and_nothing_of_the_lm(tiny_chat):
    trainee = trainee_of(tiny_chat)
    given = [Example(r["id"], r["instruction"], [c["text"] for c in r["candidates"]], [[c["scores"]["q"]] for c in r["candidates"]]) for r in labelled(1)]
    trainee(trainee.parts(given, random.Random(0))[0]).backward()
    assert all(float(weight.grad.abs().max()) > 0 for weight in trainee.parameters())
    assert len(trainee.model.added) == 2 and all(weight.grad is None for weight in trainee.model.lm.parameters())
    frozen = trainee_of(tiny_chat, freeze=1)
    assert len(frozen.model.added) == 1 and frozen.model.config.adapted_layers == 1


def test_it_learns_is_resumed_exactly_and_pair_reads_it(tiny_chat, tmp_path, monkeypatch):
    rows = run(tmp_path / "whole", tiny_chat)
    assert rows[-1]["loss"] < rows[0]["loss"]
    update = loop._Training._update

    class Killed(Exception):
        pass

    def killed(self, step, parts):
        if step == 11:
            raise Killed
        return update(self, step, parts)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop._Training, "_update", killed)
        run(tmp_path / "cut", tiny_chat)
    again = run(tmp_path / "cut", tiny_chat, resume=True)
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert files[0] == files[1]
    # It goes on from a checkpoint, too.
    assert run(tmp_path / "more", None, init=str(tmp_path / "whole"), steps=4)[-1]["loss"] < rows[0]["loss"]
    assert load_lm_ranker(str(tmp_path / "more"))[0].config == load_lm_ranker(str(tmp_path / "whole"))[0].config
    records = list(blendkit.pair(labelled(2), str(tmp_path / "whole")))
    best = [max(range(5), key=lambda i, r=record: sum(logit for a, _, logit in r["comparisons"]["pairrm"]["pairs"] if a == i)) for record in records]
    assert [record["candidates"][place]["model"] for record, place in zip(records, best, strict=True)] == ["careful-writer"] * 2


def test_a_run_from_a_checkpoint_is_not_resumed_where_that_has_changed(tiny_chat, tmp_path):
    run(tmp_path / "first", tiny_chat, steps=1)
    start = {"init": str(tmp_path / "first"), "steps": 2}
    run(tmp_path / "second", None, **start)
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    (tmp_path / "first" / "config.json").write_text(json.dumps({**config, "candidate_maxlength": 16}))
    with pytest.raises(UsageError, match="candidate_maxlength"):
        run(tmp_path / "second", None, resume=True, **start)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"checkpointing": True}, "--checkpointing is not for --kind lmranker"),
        ({"lora": -1}, "--lora: expected 1 to 10,000, got -1"),
        ({"source_maxlength": -5}, "--source-maxlength: expected at least 1, got -5"),
        ({"lora": 0}, "products of some rank are added to it: --lora 32"),
        ({"freeze": 2}, "--freeze 2: expected less than the 2 layers that the model has"),
        ({"candidate_bias": -3.0}, "are for --kind pairranker"),
        ({"tasks": 2}, "one --label, as a reward is one number"),
        ({"loss": "none"}, "--loss none: expected one of"),
    ],
)
def test_settings_that_it_does_not_have_are_one_line(tiny_chat, more, said):
    with pytest.raises(UsageError) as caught:
        new_trainee("lmranker", NewRanker(**{"backbone": str(tiny_chat), "lora": 4, **more}), Pairing())
    assert said in str(caught.value)


def test_a_linear_one_gets_products_that_change_nothing_at_first(tiny_chat, tmp_path):
    linear, _ = new_lm_ranker(LMRankerConfig(str(tiny_chat), 0, 0, 96, 64, read_layers=(1,)), torch.bfloat16)
    torch.manual_seed(1)
    linear.weight.data.normal_()
    save_lm_ranker(tmp_path / "linear", linear)
    start = {"init": str(tmp_path / "linear"), "backbone": None}
    trainee = new_trainee("lmranker", NewRanker(**start, lora=4), Pairing())
    assert (trainee.model.config.rank, trainee.model.config.adapted_layers, trainee.model.config.read_layers) == (4, 1, (1,))
    asked = [((1, 2, 3), [(4, 5), (6,)])]
    torch.testing.assert_close(trainee.model(asked), linear(asked), rtol=0, atol=0)
    # Without products the linear function goes on learning alone.
    assert [name for name, _ in new_trainee("lmranker", NewRanker(**start), Pairing()).named_parameters()] == ["model.weight"]
    rows = run(tmp_path / "more", None, init=str(tmp_path / "linear"), lora=4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    for more in ({"init": str(tmp_path / "more"), "lora": 4}, {"init": str(tmp_path / "linear"), "freeze": 1}):
        with pytest.raises(UsageError, match="--lora and --freeze are the checkpoint's that --init goes on from"):
            new_trainee("lmranker", NewRanker(None, **more), Pairing())


def test_lora_is_for_this_kind_alone(tiny_encoder):
    with pytest.raises(UsageError, match="--lora is for --kind lmranker, got --kind simcls"):
        new_trainee("simcls", NewRanker(str(tiny_encoder), lora=4), Pairing())
