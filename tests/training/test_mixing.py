"""Mixtures of sets, pairs that the shorter answer wins, and layers that stay as they are."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import examples, lines, parsed

import blendkit
from blendkit.errors import DataError, RecordError, UsageError
from blendkit.training.examples import Example, Labels, Pairing
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.loop import TrainOptions, _Training, share_of
from blendkit.training.mixing import Mixing


def pair(name: str, set: str, longer: bool) -> Example:
    return Example(name, name, ["a", "bb"], [[0.0], [1.0]] if longer else [[1.0], [0.0]], set=set)


MANY = [pair(f"m{k}", "many", k >= 100) for k in range(900)]
FEW = [pair(f"f{k}", "few", True) for k in range(100)]


def drawn(mixing: Mixing, count: int = 3000) -> list[Example]:
    found = [*MANY, *FEW]
    return [found[place] for place in mixing.order(found, count, seed=1)]


def shares(mixing: Mixing) -> dict[str, float]:
    counted = Counter(example.set for example in drawn(mixing))
    return {name: number / 3000 for name, number in counted.items()}


def test_sets_are_mixed_by_temperature_and_weight():
    # By size 9 to 1; by the square root 3 to 1; evenly; and the small one twice as often as that.
    assert shares(Mixing("set"))["few"] == pytest.approx(0.1, abs=0.02)
    assert shares(Mixing("set", 2.0))["few"] == pytest.approx(0.25, abs=0.03)
    assert shares(Mixing("set", 1e9))["few"] == pytest.approx(0.5, abs=0.03)
    assert shares(Mixing("set", 1e9, (("few", 2.0),)))["few"] == pytest.approx(2 / 3, abs=0.03)
    assert shares(Mixing("set", 2.0, (("many", 0.0),))) == {"few": 1.0}
    # Each example of a set comes once before any comes again.
    seen = Counter(example.id for example in drawn(Mixing("set", 1e9)) if example.set == "few")
    assert max(seen.values()) - min(seen.values()) == 1
    assert drawn(Mixing("set")) == drawn(Mixing("set"))
    with pytest.raises(DataError, match=r"--weight people: no example .* there are few, many"):
        drawn(Mixing("set", weights=(("people", 2.0),)))


def test_records_and_pairs_are_drawn_so_that_the_longer_one_wins_as_often_as_asked():
    # 800 of the 900 are won by the longer answer. The other set has no other kind, and stays as it is.
    for percent in (0, 40, 100):
        found = drawn(Mixing("set", 2.0, longer_wins=percent))
        won = [example.labels == [[0.0], [1.0]] for example in found if example.set == "many"]
        assert 100 * sum(won) / len(won) == pytest.approx(percent, abs=4)
        assert len(won) / 3000 == pytest.approx(0.75, abs=0.03)
    # Two of six are won by the shorter: b over ccc, and dd over ccc. A record of more answers is no pair, and its own pairs are chosen.
    many = Example("x", "s", ["aaaa", "b", "ccc", "dd"], [[4.0], [1.5], [1.0], [2.0]])
    assert Mixing(longer_wins=30).shares([many, *MANY])[0] == ([0], pytest.approx(1 / 901))
    for share, expected in ((0.0, (2, 0)), (0.2, (2, 0)), (0.5, (2, 2)), (0.75, (1, 4)), (1.0, (0, 4))):
        won = [len(many.candidates[i]) > len(many.candidates[j]) for i, j in Pairing("all-pair", longer=share).of(many, random.Random(0))]
        assert (won.count(False), won.count(True)) == expected
    with pytest.raises(UsageError, match="--longer-wins 101: expected a percentage"):
        Mixing(longer_wins=101)


def test_a_set_may_have_a_share_of_its_own():
    mixing = Mixing.of("set", 2.0, (), 100, ["many=40"])
    won = [example.labels == [[0.0], [1.0]] for example in drawn(mixing) if example.set == "many"]
    assert 100 * sum(won) / len(won) == pytest.approx(40, abs=4)
    assert mixing.longer() == {"many": 0.4}
    # Of a record of more answers, its pairs; other sets are as ever.
    for longer, counts in ((None, (2, 4)), (1.0, (0, 4))):
        pairing = Pairing("all-pair", longer=longer, longer_in={"own": 0.5})
        for name, expected in (("own", (2, 2)), ("other", counts)):
            example = Example("x", "s", ["aaaa", "b", "ccc", "dd"], [[4.0], [1.5], [1.0], [2.0]], set=name)
            won = [len(example.candidates[i]) > len(example.candidates[j]) for i, j in pairing.of(example, random.Random(0))]
            assert (won.count(False), won.count(True)) == expected
    with pytest.raises(UsageError, match="--longer-wins-in many=101: expected a percentage"):
        Mixing("set", longer_wins_in=(("many", 101.0),))
    with pytest.raises(DataError, match="--longer-wins-in people: no example"):
        drawn(Mixing("set", longer_wins_in=(("people", 50.0),)))


@pytest.mark.parametrize(("kind", "how"), [("pairranker", {"paired_layers": 1}), ("pairranker", {"mode": "singles"}), ("pairranker", {}), ("reward", {})])
def test_every_kind_of_training_knows_the_set_of_its_pairs(tiny_encoder, kind, how):
    example = Example("x", "s", ["aaaa", "b", "ccc", "dd"], [[4.0], [1.5], [1.0], [2.0]], set="own")
    seen = []

    class Watched(Pairing):
        def of(self, example, rng):
            seen.append(example.set)
            return super().of(example, rng)

    trainee = new_trainee(kind, NewRanker(str(tiny_encoder), candidates=3, **how), Watched("all-pair", longer_in={"own": 0.0}))
    assert trainee.parts([example], random.Random(0)) and set(seen) == {"own"}


def test_a_set_is_named_by_a_field():
    judged = {"instruction": "s", "candidates": [{"model": "m", "text": "a"}, {"model": "m", "text": "b"}], "human": "A"}
    scored = {"instruction": "t", "candidates": [{"model": "m", "text": text, "scores": {"": float(k)}} for k, text in enumerate("ab")]}
    found = Labels(("",), "human", mix="source").read([judged | {"source": "people"}, scored | {"source": "judges"}])
    assert [example.set for example in found] == ["people", "judges"]
    with pytest.raises(RecordError, match="source: expected the name of a set, a string, as --mix asks for, got None"):
        Labels(("",), "human", mix="source").read([judged])


def test_a_mixed_training_of_the_upper_layers(called, tiny_encoder, tmp_path):
    records = examples(8)
    for place, record in enumerate(records):
        record["source"] = "ab"[place % 2]
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": float(len(candidate["text"]))}
    (tmp_path / "train.jsonl").write_text(lines(records))
    flags = [
        "--label",
        "q",
        "--mode",
        "singles",
        "--subsampling",
        "all-pair",
        "--mix",
        "source",
        "--temperature",
        3,
        "--weight",
        "b=2",
        "--longer-wins",
        60,
        "--longer-wins-in",
        "b=50",
    ]
    flags += ["--freeze", 1, "--records-per-step", 2, "--save-every", 2, "--log-every", 2, "--device", "cpu", "--learning-rate", "1e-3"]
    command = ["train", "ranker", "-i", tmp_path / "train.jsonl", "--backbone", tiny_encoder, *flags]
    code, _, err = called(*command, "--steps", 4, "-o", tmp_path / "r")
    assert code == 0, err
    from safetensors.torch import load_file

    before, after = load_file(tiny_encoder / "model.safetensors"), load_file(tmp_path / "r" / "model.safetensors")
    changed = {name for name, was in before.items() if (new := after.get(f"pretrained_model.{name}")) is not None and not torch.equal(new, was.half())}
    # The vocabulary has grown by the markers, so its table is another; its old rows are not.
    assert {name.split(".")[2] for name in changed if name.startswith("encoder.layer")} == {"1"}
    old = before["embeddings.word_embeddings.weight"]
    assert torch.equal(after["pretrained_model.embeddings.word_embeddings.weight"][6 : len(old)], old[6:].half())
    code, _, err = called(*command, "--steps", 4, "-o", tmp_path / "r", "--resume", "--weight", "a=2")
    assert code == 2 and "had other values of weights" in err
    assert len(parsed((tmp_path / "r" / "train.log.jsonl").read_text())) == 2
    for more, message in (
        (["--freeze", 2], "--freeze 2: expected less than the 2 layers"),
        (["--weight", "b"], "--weight b: expected SET=NUMBER"),
        (["--longer-wins-in", "b=x"], "--longer-wins-in b=x: expected SET=NUMBER"),
        (["--longer-wins-in", 50], "--longer-wins-in 50: expected SET=NUMBER"),
        (["--temperature", 0.5], "--temperature 0.5: expected a number from 1 on"),
        (["--balance-length"], "give either that or --longer-wins"),
    ):
        code, _, err = called(*command, *more, "-o", tmp_path / "s")
        assert code == 2 and message in err, err
    with pytest.raises(UsageError, match="--weight, --temperature and --longer-wins-in are for the sets of --mix FIELD"):
        blendkit.train_ranker([], tmp_path / "s", backbone=tiny_encoder, labels=["q"], temperature=2.0)


def test_a_mixed_run_that_broke_off_goes_on_as_if_nothing_had_been(tiny_encoder, tmp_path, monkeypatch):
    from blendkit.training import loop

    records = examples(8)
    for place, record in enumerate(records):
        record["source"] = "ab"[place % 2]
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": float(len(candidate["text"]) % 7)}
    same = {"mix": "source", "temperature": 3.0, "weights": ["b=2"], "longer_wins": 60.0, "freeze": 1, "mode": "singles", "subsampling": "all-pair"}
    same |= {"records_per_step": 2, "steps": 4, "save_every": 2, "log_every": 1, "device": "cpu", "bfloat16": False, "labels": ["q"]}

    def train(name: str, **more: object) -> list[float]:
        return [row["loss"] for row in blendkit.train_ranker(records, tmp_path / name, backbone=tiny_encoder, **same, **more)]

    whole, update = train("whole"), loop._Training._update

    def breaking(training, step, parts):
        if step == 4:
            raise KeyboardInterrupt
        return update(training, step, parts)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop._Training, "_update", breaking)
        train("broken")
    assert train("broken", resume=True) == whole
    assert (tmp_path / "broken" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_processes_share_a_steps_examples_by_their_text(tiny_encoder):
    lengths = [1, 60, 2, 34, 5, 55, 13, 21, 34, 8, 34, 3, 1]
    batch = [Example(str(number), "x" * length, [], []) for number, length in enumerate(lengths)]
    assert share_of(batch, lambda example: len(example.source), 0, 1) == batch
    for count in (2, 3, 4):
        shares = [share_of(batch, lambda example: len(example.source), index, count) for index in range(count)]
        assert sorted((example for share in shares for example in share), key=batch.index) == batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        texts = [sum(len(example.source) for example in share) for share in shares]
        assert max(texts) - min(texts) < 0.15 * sum(lengths)
    step = SimpleNamespace(
        options=TrainOptions(examples_per_step=len(batch)),
        processes=SimpleNamespace(index=1, count=2),
        trainee=SimpleNamespace(parts=lambda examples, rng: examples, characters=lambda example: len(example.source)),
        examples=batch,
        order=range(len(batch)),
    )
    assert _Training._parts(step, 1) == share_of(batch, step.trainee.characters, 1, 2)
    # Of many candidates a step reads those that it samples, and of a long text its beginning.
    trainee = new_trainee("pairranker", NewRanker(str(tiny_encoder), paired_layers=1, candidates=2, source_maxlength=48, candidate_maxlength=64), Pairing())
    assert trainee.characters(Example("", "xxx", ["a" * 9999], [[0.0]])) == 3 + 5 * 64
    assert trainee.characters(Example("", "xxx", ["a", "bbb", "aaaa", "bbbb"], [[0.0]] * 4)) == 3 + 12 / 2
    assert trainee.characters(Example("", "xxx", ["a"], [[0.0]])) == 3 + 1
