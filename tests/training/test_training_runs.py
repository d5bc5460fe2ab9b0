"""Runs of training: which records are one example, on which device, in which order, by how many processes, and what a resumed run asks for."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import examples, lines
from signatures import assert_same_arguments

import blendkit
from blendkit.errors import BlendkitError, DataError, NoInputError, OutputError, UsageError
from blendkit.training import loop, state
from blendkit.training.examples import Example, Labels, Pairing
from blendkit.training.files import RecordFiles, read_examples
from blendkit.training.fuser import fuser_examples
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.loop import TrainOptions, batch_of, train
from blendkit.training.micro_batches import micro_batches
from blendkit.training.processes import training_device
from blendkit.training.trainee import Trainee

QUALITY = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}
SMALL = {"source_maxlength": 48, "candidate_maxlength": 64}


def labelled(count: int = 6) -> list[dict]:
    records = examples(count)
    for record in records:
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": QUALITY[candidate["model"]], "length": float(len(candidate["text"]))}
        record["ranks"] = {"r": [1, 2, 3, 4, 5]}
    return records


def asked(instruction: str, *texts: str, **more: object) -> dict:
    return {"instruction": instruction, "candidates": [{"model": text, "text": text, "scores": {"q": float(k)}} for k, text in enumerate(texts)], **more}


def never_read():
    raise AssertionError("the records were read")
    yield


# --- which records are one example


@pytest.fixture
def two_files(tmp_path):
    """Two files without ids that share one question, in other lines."""
    first = [asked("dogs?", "a dog", "two dogs"), asked("cats?", "a cat", "two cats")]
    second = [asked("birds?", "a bird", "two birds"), asked("dogs?", "a hound", "a dog")]
    paths = []
    for name, records in (("first.jsonl", first), ("second.jsonl", second)):
        (tmp_path / name).write_text(lines(records))
        paths.append(str(tmp_path / name))
    return paths


def test_records_without_an_id_are_joined_by_their_question_and_not_by_their_line(two_files):
    found = read_examples(RecordFiles(two_files), Labels(("q",)).read)
    expected = {"dogs?": ["a dog", "two dogs", "a hound"], "cats?": ["a cat", "two cats"], "birds?": ["a bird", "two birds"]}
    assert {example.source: example.candidates for example in found} == expected


def test_an_id_of_two_questions_is_two_examples():
    records = [asked("dogs?", "a dog", "two dogs", id="1"), asked("cats?", "a cat", "two cats", id="1"), asked("dogs?", "a hound", id="1")]
    assert [(example.source, len(example.candidates)) for example in Labels(("q",)).read(records)] == [("dogs?", 3), ("cats?", 2)]
    # Several records of one question that have ids of their own stay apart.
    assert len(Labels(("q",)).read([asked("dogs?", "a dog", "two dogs", id=str(k)) for k in range(2)])) == 2


def test_an_id_that_is_the_number_of_its_line_is_kept(tmp_path):
    path = tmp_path / "numbered.jsonl"
    path.write_text(lines([asked("dogs?", "a dog", "two dogs", id="1"), asked("cats?", "a cat", "two cats")]))
    assert [record.get("id") for record in RecordFiles([str(path)])] == ["1", None]


def test_records_that_people_judged_are_compared_with_no_others():
    judged = [asked("dogs?", *texts, human="A") for texts in (("a dog", "two dogs"), ("a dog", "a hound"), ("a dog", "two dogs"))]
    found = Labels(("",), "human").read(judged)
    assert [example.candidates for example in found] == [["a dog", "two dogs"], ["a dog", "a hound"]]
    assert all(example.labels == [[2.0], [0.0]] for example in found)
    with pytest.raises(BlendkitError, match="expected A, B or tie"):
        Labels(("",), "human").read([asked("dogs?", "a dog", "two dogs", human=["A"])])


@pytest.mark.parametrize("mode", ["pairs", "singles"])
def test_an_evaluation_record_is_scored_on_its_own_text(tiny_encoder, mode):
    ranker = NewRanker(str(tiny_encoder), mode=mode, candidate_bias=-3)
    torch.manual_seed(0)
    trainee = new_trainee("pairranker", ranker, Pairing())
    trainee.eval()
    first, second = (Example("1", record["instruction"], [c["text"] for c in record["candidates"]], [[float(k)] for k in range(5)]) for record in labelled(2))
    with torch.no_grad():
        alone = trainee.scores(second, random.Random(0))
        trainee._ids.clear()
        other = trainee.scores(first, random.Random(0))
        assert trainee.scores(second, random.Random(0)) == alone != other


def test_a_bad_record_is_told_by_its_place(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(labelled(1)) + '{"instruction": 5}\n')
    with pytest.raises(DataError, match=rf"{path}:2: instruction: expected"):
        read_examples(RecordFiles([str(path)]), Labels(("q",)).read)
    with pytest.raises(DataError, match=r"records\[1\]: instruction: expected"):
        read_examples([*labelled(1), {"instruction": 5}], Labels(("q",)).read)
    with pytest.raises(DataError, match=r"records\[1\]: ranks\.r: not there"):
        read_examples([labelled(1)[0], asked("dogs?", "a dog", output="y")], lambda records: fuser_examples(records, "r"))


# --- steps


def test_the_order_of_an_epoch_is_drawn_once_for_all_its_steps(monkeypatch):
    given = [Example(str(k), "s", ["a", "b"], [[0.0], [1.0]]) for k in range(10)]
    options = TrainOptions(examples_per_step=3, seed=5)
    drawn = []
    seeded = loop.seeded
    monkeypatch.setattr(loop, "seeded", lambda *parts: drawn.append(parts) or seeded(*parts))
    loop._order.cache_clear()
    for step in range(1, 13):
        epoch, place = divmod(step - 1, 3)
        order = random.Random(seeded(5, "epoch", str(epoch))).sample(range(10), 10)
        assert [example.id for example in batch_of(given, options, step)] == [str(number) for number in order[3 * place : 3 * place + 3]]
    assert drawn == [(5, "epoch", str(epoch)) for epoch in range(4)]


def test_micro_batches_hold_every_row_once_within_the_budget():
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.randint(1, 40) for _ in range(rng.randint(0, 30))]
        budget = rng.randint(1, 120)
        groups = micro_batches(lengths, budget)
        assert [place for group in groups for place in group] == sorted(range(len(lengths)), key=lambda place: lengths[place])
        assert all(len(group) == 1 or len(group) * max(lengths[place] for place in group) <= budget for group in groups)
        # No group could take the next one's first row.
        for group, following in pairwise(groups):
            assert (len(group) + 1) * lengths[following[0]] > budget


# --- the device


@pytest.mark.parametrize("device", ["bogus", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path, device):
    for run in (
        lambda: blendkit.train_ranker(never_read(), tmp_path / "o", backbone="no/such", labels=["q"], device=device),
        lambda: blendkit.train_fuser(never_read(), tmp_path / "o", backbone="no/such", device=device),
    ):
        with pytest.raises(UsageError, match=f"--device {device}: "):
            run()
    assert not (tmp_path / "o").exists()


def test_the_command_line_refuses_a_device_that_is_not_there(blendkit, tmp_path, tiny_encoder):
    path = tmp_path / "train.jsonl"
    path.write_text(lines(labelled()))
    done = blendkit("train", "ranker", "-i", path, "--label", "q", "--backbone", tiny_encoder, "--steps", 1, "--device", "bogus", "-o", tmp_path / "o")
    assert (done.returncode, done.stderr) == (2, "blendkit train: --device bogus: expected auto, cpu, cuda, cuda:N or mps\n")


def test_the_device_that_was_named_is_the_one_that_trains(monkeypatch, tmp_path):
    class Moved(Exception):
        pass

    class Stub(Trainee):
        def to(self, device):
            raise Moved(str(device))

        parts = scores = save = None

    Stub.__abstractmethods__ = frozenset()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda:1"):
        with pytest.raises(Moved, match=f"^{name}$"):
            train(Stub(), [Example("1", "s", ["a", "b"], [[0.0], [1.0]])], TrainOptions(device=name), tmp_path, settings={})


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert training_device("cuda") == torch.device("cuda:1")
    assert training_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="one device for 4 processes; try --device cuda"):
        training_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="this machine has 2 CUDA devices"):
        training_device("cuda")


def test_a_sharded_model_is_refused_rather_than_trained_otherwise(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="shards no model"):
        training_device("cpu")


# --- going on


def run(tiny_encoder, output, *, records=None, **more):
    options = {"labels": ["q"], "backbone": str(tiny_encoder), "steps": 4, "save_every": 2, "log_every": 1, "device": "cpu", **SMALL, **more}
    return blendkit.train_ranker(labelled() if records is None else records, output, **options)


def test_a_resumed_run_must_have_the_same_data_loss_and_settings(tiny_encoder, tmp_path):
    out = tmp_path / "out"
    rows = run(tiny_encoder, out, evaluation=labelled(2))
    assert run(tiny_encoder, out, evaluation=labelled(2), resume=True) == rows
    other_words = labelled()
    other_words[3]["candidates"][0]["text"] += "!"
    other_labels = labelled()
    other_labels[3]["candidates"][0]["scores"]["q"] = 0.8
    other_encoder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    weights = state_of(other_encoder)
    next(iter(weights.values())).view(-1)[0] += 1
    from safetensors.torch import save_file

    save_file(weights, other_encoder / "model.safetensors", {"format": "pt"})
    for changed, name in (
        ({"records": other_words}, "training data"),
        ({"records": other_labels}, "training data"),
        ({"records": labelled()[::-1]}, "training data"),
        ({"labels": ["length"]}, "training data, evaluation data"),
        ({"evaluation": labelled(3)}, "evaluation data"),
        ({"evaluation": None}, "evaluation data"),
        ({"loss": "bce"}, "loss"),
        ({"mode": "singles"}, "mode"),
        ({"kind": "reward"}, "kind"),
        ({"subsampling": "uniform"}, "subsampling"),
        ({"pairs_per_input": 4}, "pairs_per_input"),
        ({"margin": 0.05}, "margin"),
        ({"balance_length": True}, "balance_length"),
        ({"candidates": 4}, "candidates"),
        ({"source_maxlength": 40}, "source_maxlength"),
        ({"candidate_maxlength": 40}, "candidate_maxlength"),
        ({"positions": "running"}, "positions"),
        ({"candidate_bias": -1.0}, "candidate_bias"),
        ({"paired_layers": 1}, "paired_layers"),
        ({"micro_tokens": 512}, "micro_tokens"),
        ({"backbone": str(other_encoder)}, "init or backbone"),
        ({"seed": 1}, "seed"),
        ({"steps": 5}, "steps"),
        ({"average": 0.5}, "average"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"bfloat16": False}, "bfloat16"),
    ):
        with pytest.raises(UsageError, match=f"had other values of .*{name}"):
            run(tiny_encoder, out, **{"evaluation": labelled(2), "resume": True, **changed})
    # What decides nothing may differ.
    assert run(tiny_encoder, out, evaluation=labelled(2), resume=True, save_every=3, checkpointing=True) == rows


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_run_that_writes_over_the_checkpoint_it_starts_from_can_be_resumed(tiny_encoder, tmp_path):
    out = tmp_path / "out"
    run(tiny_encoder, out)
    rows = run(tiny_encoder, out, backbone=None, init=str(out))
    assert run(tiny_encoder, out, backbone=None, init=str(out), resume=True) == rows


def damaged(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a state\n")
    elif how == "pickle":
        path.write_bytes(pickle.dumps(subprocess.Popen))
    elif how == "another tensor":
        torch.save({"progress": torch.zeros(3)}, path)
    elif how == "code":
        torch.save(dict.fromkeys(state.PARTS, subprocess.Popen), path)
    elif how == "wrong types":
        torch.save({**torch.load(path, weights_only=True), "progress": {"step": "four"}}, path)
    elif how == "other weights":
        torch.save({**torch.load(path, weights_only=True), "weights": {}}, path)
    elif how == "another zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "b")
    elif how == "a flipped byte":
        with zipfile.ZipFile(path) as file:
            largest = max(file.infolist(), key=lambda info: info.file_size)
        place = largest.header_offset + 200 + largest.file_size // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    else:
        path.unlink()
        path.mkdir()


HOWS = ["cut", "empty", "text", "pickle", "another tensor", "code", "wrong types", "other weights", "another zip", "a flipped byte", "a directory"]


def test_a_state_that_is_damaged_or_something_else_is_no_input(tiny_encoder, tmp_path):
    run(tiny_encoder, tmp_path / "whole")
    for how in HOWS:
        out = shutil.copytree(tmp_path / "whole", tmp_path / how)
        damaged(out / state.STATE, how)
        with pytest.raises(NoInputError, match=f"--resume: .*{state.STATE} is damaged, or no state of a training: "):
            run(tiny_encoder, out, resume=True)
    with pytest.raises(NoInputError, match=f"no {state.STATE} in"):
        run(tiny_encoder, tmp_path / "none", resume=True)


def test_the_command_line_tells_a_damaged_state_in_one_line(blendkit, tiny_encoder, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(lines(labelled()))
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / state.STATE).write_text("PK\x03\x04")
    done = blendkit("train", "ranker", "-i", path, "--label", "q", "--backbone", tiny_encoder, "--steps", 1, "--resume", "-o", tmp_path / "o")
    assert (done.returncode, len(done.stderr.splitlines())) == (66, 1), done.stderr


def test_a_log_with_a_torn_end_is_gone_on_with(tiny_encoder, tmp_path):
    out = tmp_path / "out"
    rows = run(tiny_encoder, out)
    log = out / state.LOG
    whole = log.read_text()
    log.write_text(whole + '{"step": 5, "lo')
    assert run(tiny_encoder, out, resume=True) == rows
    assert log.read_text() == whole
    log.write_text("[]\n" + whole)
    with pytest.raises(DataError, match=f"{state.LOG}:1: expected an object"):
        run(tiny_encoder, out, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [60, 200], ids=["checkpoint", "state"])
def test_a_full_disk_is_told_and_leaves_a_whole_checkpoint(tiny_encoder, tmp_path, limit):
    """A limit on the size of files, in KiB, stands for the disk: in the way of the checkpoint or of the state, which is larger."""
    run(tiny_encoder, tmp_path / "o", save_every=4, steps=4)
    before = (tmp_path / "o" / "model.safetensors").read_bytes()
    path = tmp_path / "train.jsonl"
    path.write_text(lines(labelled()))
    flags = ["train", "ranker", "-i", path, "--label", "q", "--backbone", tiny_encoder, "--steps", 1, "-o", tmp_path / "o"]
    limited = [
        "import resource, runpy, sys",
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit << 10},) * 2)",
        "runpy.run_module('blendkit', None, '__main__')",
    ]
    done = subprocess.run([sys.executable, "-c", "; ".join(limited), *map(str, flags)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 74 and len(done.stderr.splitlines()) == 1 and "cannot write" in done.stderr, done.stderr
    assert not list((tmp_path / "o").glob("*.new"))
    after = (tmp_path / "o" / "model.safetensors").read_bytes()
    assert len(after) == len(before) and (limit == 200 or after == before)


# --- several processes

TOGETHER = """
import hashlib, json, os, sys
import blendkit
from blendkit.training import loop
from blendkit.training.pairranker import PairRankerTrainee

rank, (records, backbone, out) = os.environ["RANK"], sys.argv[1:]
records = [json.loads(line) for line in open(records)]
scored, kept, scores = [], [], PairRankerTrainee.scores

def noisy(self, example, rng):
    # As if the two machines computed differently.
    scored.append(example.id)
    return [score + int(rank) * 10 * rng.random() for score in scores(self, example, rng)]

PairRankerTrainee.scores = noisy
save_state = loop.save_state
loop.save_state = lambda *given: kept.append(given[1].step) or save_state(*given)
network = []
joined = loop.Processes.joined
loop.Processes.joined = lambda self, model: network.append(model) or joined(self, model)

def run(resume):
    return blendkit.train_ranker(
        records, out, labels=["q"], backbone=backbone, evaluation=records, eval_every=2, patience=2, steps=30, learning_rate=1e-9,
        records_per_step=4, log_every=2, mode="singles", source_maxlength=48, candidate_maxlength=64, device="cpu", resume=resume,
    )

rows = run(False)
digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in network[-1].parameters())).hexdigest()
resumed = run(True)
json.dump({"rows": rows, "resumed": resumed, "scored": scored, "kept": kept, "weights": digest}, open(f"{out}.{rank}.json", "w"))
"""


def test_two_processes_share_the_evaluation_and_stop_together(tiny_encoder, tmp_path):
    (tmp_path / "records.jsonl").write_text(lines(labelled(5)))
    (tmp_path / "together.py").write_text(TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, tmp_path / "together.py", tmp_path / "records.jsonl", tiny_encoder, tmp_path / "out"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in (0, 1))
    assert first["rows"] == second["rows"] and first["weights"] == second["weights"]
    measured = [row for row in first["rows"] if "spearman" in row]
    assert measured[-1]["step"] < 30
    # Each process scores its share, and one of them writes.
    everybody = [record["id"] for record in labelled(5)]
    count = len(first["scored"]) // 3
    assert first["scored"][:3] == everybody[::2] and second["scored"][:2] == everybody[1::2] and len(second["scored"]) == 2 * count
    assert first["kept"][0] == measured[-1]["step"] and second["kept"] == []
    # The resumed run goes on from the early stop, in both.
    assert first["resumed"] == second["resumed"] and first["resumed"][: len(first["rows"])] == first["rows"]
    with pytest.raises(UsageError, match="number of processes"):
        run(
            tiny_encoder, tmp_path / "out", records=labelled(5), evaluation=labelled(5), eval_every=2, patience=2, steps=30, learning_rate=1e-9,
            records_per_step=4, log_every=2, mode="singles", resume=True,
        )  # fmt: skip


# --- Python


def test_the_functions_take_what_the_commands_take():
    from blendkit.commands import train as commands

    for name in ("ranker", "fuser"):
        function = getattr(blendkit, f"train_{name}")
        assert_same_arguments(getattr(commands, name), function, {"input"})
        with pytest.raises(TypeError, match="num_steps"):
            getattr(blendkit, f"train_{name}")([], "out", num_steps=3)


def test_what_is_wrong_with_the_arguments_is_said_before_anything_is_read(tmp_path):
    for more, message in (
        ({"labels": ()}, "no label"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number above 0"),
        ({"average": 1.0}, "average: expected a number from 0 to below 1"),
        ({"pairs_per_input": 0}, "--pairs-per-input 0: expected at least 1"),
        ({"kind": "pairanker"}, "expected one of pairranker"),
    ):
        with pytest.raises(UsageError, match=message):
            blendkit.train_ranker(never_read(), tmp_path / "o", **{"labels": ["q"], "backbone": "no/such", **more})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a directory"):
        blendkit.train_ranker(never_read(), tmp_path / "file", labels=["q"], backbone="no/such")


def test_one_python_process_may_train_several_times(tiny_encoder, tmp_path):
    rows = [run(tiny_encoder, tmp_path / str(bfloat16), bfloat16=bfloat16) for bfloat16 in (True, False)]
    assert [[row["step"] for row in each] for each in rows] == [[1, 2, 3, 4]] * 2
    with pytest.raises(DataError, match="nothing to measure on"):
        run(tiny_encoder, tmp_path / "o", evaluation=examples(2))
