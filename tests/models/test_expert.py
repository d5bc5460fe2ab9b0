"""A ranker with an expert gives, for each record, what two rankers give, each with the share that the gate gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import examples, lines, parsed
from test_fast_models import ENCODERS
from test_int8 import bytes_here
from test_late import network, texts
from tiny_models import with_relevance
from transformers import DistilBertConfig, DistilBertModel

from blendkit.models.attention_forms import attending
from blendkit.models.expert import Gate, expert_alone, with_expert, without_expert
from blendkit.models.layer_list import layers_of
from blendkit.models.pairrm import PairRM, PairRMConfig, load_pairrm, save_pairrm
from blendkit.pipeline.runner import apply
from blendkit.rankers.conversations import pair_texts
from blendkit.rankers.pairranker import PairRanker
from blendkit.training.new_pairranker import late_paired

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trio(tiny_ranker, tmp_path_factory):
    """A ranker with an expert whose gate parts the examples, and beside it both of its rankers as checkpoints of their own."""
    model, tokenizer = load_pairrm(str(tiny_ranker))
    model = late_paired(model, 1)
    other, _ = load_pairrm(str(tiny_ranker))
    other = late_paired(other, 1)
    torch.manual_seed(5)
    for weight in [*layers_of(other.pretrained_model)[-1].parameters(), *other.head_layer.parameters()]:
        torch.nn.init.normal_(weight, std=0.3)
    model = with_expert(model, other, 1)
    sources = [PairRanker(str(tiny_ranker), device="cpu").inputs.source(pair_texts(record, [])[0]) for record in examples()]
    means = Gate(model, 0, CPU).means(sources)
    # Along what differs most among the examples: from 0 at the first third to 1 at the last.
    places = means @ (direction := torch.linalg.svd(means - means.mean(0)).Vh[0])
    low, high = places.quantile(0.3), places.quantile(0.7)
    with torch.no_grad():
        model.expert.gate.weight.copy_(direction[None] / (high - low))
        model.expert.gate.bias.fill_(-float(low / (high - low)))
    folders = [tmp_path_factory.mktemp(name) for name in ("both", "common", "expert")]
    for folder, saved in zip(folders, (model, without_expert(model), expert_alone(model)), strict=True):
        save_pairrm(folder, saved, tokenizer, torch.float32)
    return list(map(str, folders))


def refused(called, checkpoint: str, folder: Path, changes: dict, said: str) -> None:
    """A checkpoint with these changes to its config.json is no input, in one line."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    code, _, err = called("pair", "--model", str(folder), stdin=lines(examples(1)))
    assert code == 66 and said in err and len(err.splitlines()) == 1, err


def trained(called, checkpoint: str, tmp_path: Path) -> Path:
    """What a training of one step that moves nothing makes of a ranker."""
    records = examples(4)
    for record in records:
        for place, candidate in enumerate(record["candidates"]):
            candidate["scores"] = {"label": float(place)}
    (tmp_path / "train.jsonl").write_text(lines(records))
    options = ("--label", "label", "--steps", "1", "--learning-rate", "1e-9", "--device", "cpu", "--float32", "-o", tmp_path / "new")
    code, _, err = called("train", "ranker", "-i", str(tmp_path / "train.jsonl"), "--init", checkpoint, *map(str, options))
    assert code == 0, err
    return tmp_path / "new"


def logits(stage: PairRanker, records) -> list[list]:
    return [record["comparisons"]["pairrm"]["pairs"] for record in apply(stage, records)]


@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_those_of_the_two_by_their_shares(trio, packed):
    both, *alone = (PairRanker(folder, device="cpu", packed=packed) for folder in trio)
    shares = both.gate([both.inputs.source(pair_texts(record, [])[0]) for record in examples()])
    found, common, expert = (logits(stage, examples()) for stage in (both, *alone))
    for share, ours, *theirs in zip(shares, found, common, expert, strict=True):
        assert all(a[:2] == b[:2] == c[:2] and abs(a[2] - (1 - share) * b[2] - share * c[2]) < 2e-5 for a, b, c in zip(ours, *theirs, strict=True))
        assert max(abs(b[2] - c[2]) for b, c in zip(*theirs, strict=True)) > 0.01
    assert both.describe()["routed"] == {"records": 12, "expert": 4, "both": 4} and sorted(shares)[3:9:5] == [0, 1]
    assert "routed" not in alone[0].describe()


@pytest.mark.parametrize(("packed", "layers", "own"), [(True, (0, 1), 0), (False, (0, 1), 0), (True, (0, 2), 1), (False, (0, 2), 1)])
def test_a_head_for_relevance_counts_with_the_rankers_share(trio, tmp_path, packed, layers, own):
    """Logits are (1 - share) times those of the ranker with its head, and the share times the expert's."""
    model, tokenizer = load_pairrm(trio[0])
    model = with_relevance(model, *layers, own=own)
    folders = [tmp_path / name for name in ("both", "common")]
    for folder, saved in zip(folders, (model, without_expert(model)), strict=True):
        save_pairrm(folder, saved, tokenizer, torch.float32)
    both, common, expert, bare = (PairRanker(str(folder), device="cpu", packed=packed) for folder in (*folders, trio[2], trio[1]))
    shares = both.gate([both.inputs.source(pair_texts(record, [])[0]) for record in examples()])
    rows = zip(shares, *(logits(stage, examples()) for stage in (both, common, expert, bare)), strict=True)
    added = []
    for share, *found in rows:
        for ours, theirs, experts, without in zip(*found, strict=True):
            assert abs(ours[2] - (1 - share) * theirs[2] - share * experts[2]) < 3e-5
            added.append(abs(theirs[2] - without[2]))
    assert max(added) > 0.05 and 0 in shares and 1 in shares


def test_a_schedule_goes_by_the_logits_of_both(trio):
    both = {record["id"]: record["comparisons"]["pairrm"]["pairs"] for record in apply(PairRanker(trio[0], device="cpu"), examples())}
    for record in apply(PairRanker(trio[0], device="cpu", schedule="sort"), examples()):
        exact = {(i, j): logit for i, j, logit in both[record["id"]]}
        found = record["comparisons"]["pairrm"]
        assert all(abs(logit - exact[i, j]) < 2e-5 for i, j, logit in found["pairs"])
        assert all(exact[i, j] > 0 for i, j in zip(found["order"], found["order"][1:], strict=False))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_lower_layers_are_shared_and_all_else_is_the_experts_own(name):
    ranker = with_expert(network(name, 1), None, 1)
    with torch.no_grad():
        for weight in ranker.expert.parameters():
            weight.add_(1.0)
    common, expert = without_expert(ranker), expert_alone(ranker)
    of_last = f".{len(layers_of(common.pretrained_model)) - 1}."
    for (key, ours), (other, theirs) in zip(common.state_dict().items(), expert.state_dict().items(), strict=True):
        own = ("layer" in key and of_last in key) or key == "paired_bias"
        assert key == other and torch.equal(ours, theirs) != (own or "head_layer" in key), key
    # What the gate sees is behind the shared layers, and the expert sees the same.
    sources = texts(17, 3, 41)
    (ours, theirs) = (Gate(with_expert(part, None, 1), 0, CPU).means(sources) for part in (common, expert))
    assert torch.equal(ours, theirs) and float(ours.std()) > 0.1
    torch.testing.assert_close(ours, Gate(ranker, 0, CPU, packed=False).means(sources), atol=1e-4, rtol=0)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=bytes_here)])
def test_the_gate_does_not_depend_on_the_number_type(trio, dtype, packed):
    exact, narrow = (PairRanker(trio[0], device="cpu", dtype=name, packed=packed) for name in ("float32", dtype))
    found = logits(narrow, examples())
    sources = [narrow.inputs.source(pair_texts(record, [])[0]) for record in examples()]
    assert torch.equal(exact.gate.means(sources), narrow.gate.means(sources))
    assert found != logits(exact, examples()) and narrow.routed == exact.routed


def test_a_new_gate_is_shut(trio, tmp_path):
    model, tokenizer = load_pairrm(trio[1])
    save_pairrm(tmp_path, with_expert(model, None, 1), tokenizer, torch.float32)
    stage = PairRanker(str(tmp_path), device="cpu")
    assert logits(stage, examples(3)) == logits(PairRanker(trio[1], device="cpu"), examples(3))
    assert stage.describe()["routed"] == {"records": 3, "expert": 0, "both": 0}


def test_a_gate_that_gives_no_number_stops_the_record(called, trio, tmp_path):
    model, tokenizer = load_pairrm(trio[0])
    torch.nn.init.constant_(model.expert.gate.bias, float("nan"))
    save_pairrm(tmp_path, model, tokenizer, torch.float32)
    code, out, err = called("pair", "--model", str(tmp_path), "--device", "cpu", stdin=lines(examples(1)))
    assert code == 65 and out == "" and "the model's gate gave nan" in err, err


@pytest.mark.parametrize(
    ("which", "changes", "said"),
    [
        (0, {"expert_layers": 2}, "config.json: expert_layers: got 2, and model.safetensors has 1 layer of an expert"),
        (0, {"expert_layers": 0}, "config.json: expert_layers: got 0, and model.safetensors has 1 layer of an expert"),
        (0, {"paired_layers": None}, "expert_layers: only a late-paired ranker has an expert"),
        (1, {"expert_layers": -1}, "expert_layers: expected a number from 0"),
        (1, {"expert_layers": 1}, "expert_layers: got 1, and model.safetensors has 0 layers of an expert"),
    ],
)
def test_a_checkpoint_that_has_no_such_expert_is_no_input(called, trio, tmp_path, which, changes, said):
    refused(called, trio[which], tmp_path / "bad", changes, said)


def test_an_expert_needs_a_layer_below_it(called, trio, tmp_path):
    model, tokenizer = load_pairrm(trio[1])
    save_pairrm(tmp_path, with_expert(model, None, 2), tokenizer, torch.float32)
    code, _, err = called("pair", "--model", str(tmp_path), stdin=lines(examples(1)))
    assert code == 66 and "expert_layers: expected less than its 2 layers, got 2" in err, err


def test_training_goes_on_from_the_ranker_without_its_expert(called, trio, tmp_path):
    new, common = (load_pairrm(str(folder))[0] for folder in (trained(called, trio[0], tmp_path), trio[1]))
    assert new.expert is None and new.config == common.config
    weights = {key: value for key, value in common.state_dict().items() if ".pooler." not in key}
    assert all(torch.allclose(value, new.state_dict()[key], atol=1e-3, rtol=1e-3) for key, value in weights.items())


def test_workers_read_what_one_process_reads(called, trio):
    code, out, err = called("pair", "--model", trio[0], "--device", "cpu", "--workers", "2", "--window", "3", stdin=lines(examples()))
    assert code == 0, err
    exact = logits(PairRanker(trio[0], device="cpu"), examples())
    for record, pairs in zip(parsed(out), exact, strict=True):
        assert all(a[:2] == b[:2] and abs(a[2] - b[2]) < 2e-5 for a, b in zip(record["comparisons"]["pairrm"]["pairs"], pairs, strict=True))


def test_a_window_is_filled_by_what_its_records_will_be_read_for(trio):
    stage, record = PairRanker(trio[0], device="cpu"), examples(1)[0]
    source, ids = stage._tokenized(record, list(range(len(record["candidates"]))))
    (work,) = next(stage.rounds(record))
    assert (work.length, work.size) == (len(source) + sum(map(len, set(ids))), len(source))


def test_the_expert_attends_as_was_asked_for(trio):
    """It is made with the rest, and not with its first record."""
    with attending("batched") as how:
        stage = PairRanker(trio[0], device="cpu")
    assert [reader.scorer.late.encoder.choice.form for reader in (stage.common, stage.expert)] == ["batched"] * 2
    assert stage.gate.reader.packed.choice.form == "per-input" and len(how.chosen) == 2


def test_a_ranker_whose_encoder_has_no_list_of_layers_needs_none(tmp_path, tiny_ranker):
    """Only a ranker with an expert is asked for its layers."""
    _, tokenizer = load_pairrm(str(tiny_ranker))
    encoder = DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64))
    save_pairrm(tmp_path, PairRM(PairRMConfig(48, 64, encoder=encoder.config.to_dict()), encoder), tokenizer, torch.float32)
    record = {**examples(1)[0], "candidates": examples(1)[0]["candidates"][:3]}
    assert len(logits(PairRanker(str(tmp_path), device="cpu"), [record])[0]) == 6
