"""Training: which pairs, which losses, that it learns, and that a killed run goes on as if nothing had been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import EXAMPLES, examples, lines, parsed

from blendkit.errors import RecordError, UsageError
from blendkit.training.examples import Example, Labels, Pairing, log_odds
from blendkit.training.kinds import NewRanker, new_trainee
from blendkit.training.loop import TrainOptions, batch_of
from blendkit.training.losses import best_or_not, soft

QUALITY = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}


def labelled(count: int = 12) -> list[dict]:
    records = examples(count)
    for record in records:
        for candidate in record["candidates"]:
            quality = QUALITY[candidate["model"]]
            candidate["scores"] = {"q": quality, "square": quality**2, "length": float(len(candidate["text"]))}
        record["ranks"] = {"r": [1, 2, 3, 4, 5]}
    return records


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(lines(labelled()))
    return path


# In float32: at this size a CPU takes several times as long for a step in bfloat16, which one of these trains in.
TINY = ["--source-maxlength", 48, "--candidate-maxlength", 64, "--learning-rate", "3e-3", "--float32"]

# --- which pairs

ONE = Example("x", "s", ["aaaa", "b", "ccc", "dd"], [[4.0], [3.0], [2.0], [0.0]])
ALL = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_sub_sampling_by_hand():
    rng = random.Random(0)
    assert Pairing("all-pair").of(ONE, rng) == ALL
    assert Pairing("all-pair", margin=1.0).of(ONE, rng) == [(0, 2), (0, 3), (1, 3), (2, 3)]
    assert Pairing("top-bottom", 2).of(ONE, rng) == [(0, 3), (1, 2)]
    assert Pairing("top-bottom", 1).of(ONE, rng) == [(0, 3)]
    # Differences in label: 1 1 2 2 3 4, of which three evenly spread are the first, the third or so, and the last.
    assert [ONE.labels[i][0] - ONE.labels[j][0] for i, j in Pairing("uniform", 3).of(ONE, rng)] == [4 - 3, 2 - 0, 4 - 0]
    drawn = [tuple(Pairing("random", 2).of(ONE, random.Random(seed))) for seed in range(40)]
    assert all(len(set(pairs)) == 2 and set(pairs) <= set(ALL) for pairs in drawn) and len(set(drawn)) > 10
    with pytest.raises(UsageError, match="expected one of random, all-pair, top-bottom, uniform"):
        Pairing("all")


def test_balanced_pairs_are_won_by_the_shorter_as_often():
    # Won by the shorter: b over ccc and dd; the four others by the longer.
    for seed in range(20):
        pairs = Pairing("random", 4, longer=0.5).of(ONE, random.Random(seed))
        shorter = [pair for pair in pairs if len(ONE.candidates[pair[0]]) < len(ONE.candidates[pair[1]])]
        assert sorted(shorter) == [(1, 2), (1, 3)] and len(pairs) == 4


def test_ties_are_pairs_where_labels_are_soft():
    tied = Example("x", "s", ["a", "b"], [[1.0], [1.0]])
    assert Pairing().of(tied, random.Random(0)) == []
    assert Pairing(ties=True).of(tied, random.Random(0)) == [(0, 1)]
    one = torch.tensor([[1.5]])
    assert float(soft(one, torch.zeros(1, 1), one, one)) > float(soft(torch.zeros(1, 1), torch.zeros(1, 1), one, one))


def test_the_best_of_each_task_is_what_summareranker_looks_for():
    labels = torch.tensor([[1.0, 5.0], [2.0, 4.0], [2.0, 3.0]])
    right = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]])
    assert float(best_or_not(right, labels)) < 1e-3 < float(best_or_not(-right, labels))


def test_labels_of_scores_people_and_references():
    records = labelled(2)
    wide = {**records[0], "candidates": [{"model": "w", "text": "another", "scores": {"q": 0.5}}, {**records[0]["candidates"][0]}]}
    judged = {"id": "h", "instruction": "i", "candidates": [{"model": "a", "text": "x"}, {"model": "b", "text": "y"}], "human": "B"}
    found = Labels(("q",), "human", log_odds=True).read([*records, wide, judged])
    assert [example.id for example in found] == [records[0]["id"], records[1]["id"], "h"]
    assert len(found[0].candidates) == 6 and found[0].labels[5] == [pytest.approx(log_odds(0.5))]
    assert found[2].labels == [[0.0], [2.0]]
    (one,) = Labels(("q",), with_reference=True, margin=0.1).read(records[:1])
    assert one.candidates[-1] == records[0]["output"] and one.labels[-1][0] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(RecordError, match="expected A, B or tie"):
        Labels(("q",), "human").read([{**judged, "human": "C"}])


def test_every_example_comes_once_an_epoch():
    given = [Example(str(k), "s", ["a", "b"], [[0.0], [1.0]]) for k in range(10)]
    options = TrainOptions(examples_per_step=3)
    epochs = [[example.id for step in range(3 * epoch + 1, 3 * epoch + 4) for example in batch_of(given, options, step)] for epoch in range(3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and epochs[0] != epochs[1]


# --- learning


@pytest.mark.slow
def test_a_tiny_pairranker_overfits_32_records(blendkit, tiny_encoder, tmp_path):
    """Labels are drawn at random, so that there is nothing to learn but by heart."""
    rng = random.Random(0)
    texts = [candidate["text"] for record in examples() for candidate in record["candidates"]]
    records = []
    for number in range(32):
        candidates = [{"model": str(k), "text": text, "scores": {"q": float(k)}} for k, text in enumerate(rng.sample(texts, 2))]
        records.append({"id": str(number), "instruction": rng.choice(examples())["instruction"], "candidates": candidates})
    path = tmp_path / "train.jsonl"
    path.write_text(lines(records))
    flags = [
        "--label",
        "q",
        "--records-per-step",
        16,
        "--steps",
        250,
        "--eval",
        path,
        "--eval-every",
        25,
        "--source-maxlength",
        48,
        "--candidate-maxlength",
        64,
    ]
    flags += ["--candidate-bias", -3, "--learning-rate", "1e-3", "--float32"]
    done = blendkit("train", "ranker", "-i", path, "--backbone", tiny_encoder, "-o", tmp_path / "r", *flags)
    assert done.returncode == 0, done.stderr
    measured = [row["pair_accuracy"] for row in parsed((tmp_path / "r" / "train.log.jsonl").read_text()) if "pair_accuracy" in row]
    assert max(measured) == 100


@pytest.mark.slow
def test_training_stops_where_nothing_gets_better(blendkit, tiny_encoder, data, tmp_path):
    flags = ["--label", "q", "--steps", 40, "--learning-rate", "1e-9", "--eval", data, "--eval-every", 2, "--patience", 3, "--float32"]
    done = blendkit("train", "ranker", "-i", data, "--backbone", tiny_encoder, "-o", tmp_path / "r", *flags)
    assert done.returncode == 0, done.stderr
    rows = parsed((tmp_path / "r" / "train.log.jsonl").read_text())
    assert rows[-1]["step"] < 40 and {"pair_accuracy", "spearman", "oracle_rank"} <= set(rows[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "loss"), [("singles", "instructgpt"), ("pairs", "bce"), ("pairs", "soft")])
def test_training_learns_and_its_checkpoint_loads(blendkit, tiny_encoder, data, tmp_path, mode, loss):
    flags = ["--label", "q", "--mode", mode, "--loss", loss, "--steps", 100, "--records-per-step", 4, *TINY, "--average", 0.9]
    flags += ["--eval", data, "--plot", tmp_path / "log.png"]
    if loss == "soft":
        flags.remove("--float32")
    done = blendkit("train", "ranker", "-i", data, "--backbone", tiny_encoder, "--candidate-bias", -3, "-o", tmp_path / "r", *flags)
    assert done.returncode == 0, done.stderr
    rows = parsed((tmp_path / "r" / "train.log.jsonl").read_text())
    assert rows[-1]["loss"] < rows[0]["loss"]
    # By chance an untrained one comes to 63; a trained one comes to 85 and more.
    assert rows[-1]["pair_accuracy"] > 74
    assert blendkit("pair", "--model", tmp_path / "r", stdin=lines(examples(1))).returncode == 0
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["summareranker", "simcls", "reward", "reward-causal"])
def test_the_other_kinds_learn_and_score(blendkit, tiny_encoder, tiny_chat, data, tmp_path, kind):
    name, _, causal = kind.partition("-")
    labels = ["--label", "q"] if name == "reward" else ["--label", "q", "--label", "square"]
    flags = [*labels, "--steps", 40, "--records-per-step", 6, "--eval", data, "--eval-every", 20, "--learning-rate", "3e-3", "--log-every", 10, "--float32"]
    done = blendkit("train", "ranker", "--kind", name, "-i", data, "--backbone", tiny_chat if causal else tiny_encoder, "-o", tmp_path / "r", *flags)
    assert done.returncode == 0, done.stderr
    rows = parsed((tmp_path / "r" / "train.log.jsonl").read_text())
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    # The label's rank of what it puts first; 3 is chance. SummaReranker learns no more than which one is best.
    assert min(row.get("oracle_rank", 5) for row in rows) < 2
    scored = blendkit("score", "--metric", f"{name}:{tmp_path / 'r'}", stdin=lines(examples(2)))
    assert scored.returncode == 0, scored.stderr
    assert all(name in candidate["scores"] for record in parsed(scored.stdout) for candidate in record["candidates"])


@pytest.mark.slow
def test_a_trained_rankers_scores_are_those_it_was_measured_by(tiny_encoder, data, tmp_path, blendkit):
    """What the loop measures is what `score` computes from the checkpoint."""
    from blendkit.training.kinds import NewRanker, new_trainee

    for kind in ("summareranker", "simcls", "reward"):
        trainee = new_trainee(kind, NewRanker(backbone=str(tiny_encoder)), Pairing())
        trainee.eval()
        trainee.save(tmp_path / kind)
        (example, *_) = Labels(("q",)).read(labelled(1))
        with torch.no_grad():
            expected = trainee.scores(example, random.Random(0))
        done = blendkit("score", "--metric", f"{kind}:{tmp_path / kind}", "--device", "cpu", stdin=lines(labelled(1)))
        found = [candidate["scores"][kind] for candidate in parsed(done.stdout)[0]["candidates"]]
        if kind == "summareranker":
            expected = torch.tensor(expected).sigmoid().tolist()
        assert found == pytest.approx(expected, abs=1e-4), kind


@pytest.mark.parametrize("kind", ["pairranker", "summareranker", "simcls"])
def test_every_kind_trains_with_the_encoders_dropout_but_attentions(tiny_encoder, tmp_path, kind):
    backbone = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((backbone / "config.json").read_text()) | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (backbone / "config.json").write_text(json.dumps(config))
    trainee = new_trainee(kind, NewRanker(str(backbone)), Pairing())
    trainees = [trainee]
    if kind == "pairranker":
        trainee.save(tmp_path / "saved")
        trainees.append(new_trainee(kind, NewRanker(init=str(tmp_path / "saved")), Pairing()))
    for each in trainees:
        rates = {name: module.p for name, module in each.named_modules() if isinstance(module, torch.nn.Dropout) and ".layer." in name}
        assert {name.endswith("attention.self.dropout"): rate for name, rate in rates.items()} == {True: 0.0, False: 0.1}


@pytest.mark.slow
def test_several_tasks_have_a_head_of_their_own(blendkit, tiny_encoder, data, tmp_path):
    flags = ["--label", "q", "--label", "length", "--steps", 2, *TINY]
    assert blendkit("train", "ranker", "-i", data, "--backbone", tiny_encoder, "-o", tmp_path / "r", *flags).returncode == 0
    assert json.loads((tmp_path / "r" / "config.json").read_text())["n_tasks"] == 2
    done = blendkit("train", "ranker", "-i", data, "--init", tmp_path / "r", "--label", "q", "-o", tmp_path / "s", "--steps", 1)
    assert done.returncode == 2 and "has 2 tasks, and 1 label is given" in done.stderr


# --- a run that is killed


# The state is of step 12 when it dies, the log has a row of step 14.
KILLED = """
import os, signal
from blendkit.training import loop

true = loop._Training._update

def update(self, step, parts):
    if step == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(self, step, parts)

loop._Training._update = update
from blendkit.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["singles", "pairs", "late"])
def test_kill_and_resume_give_the_curve_of_an_undisturbed_run(blendkit, tiny_encoder, data, tmp_path, mode):
    def command(folder, *more):
        how = ["--paired-layers", 1] if mode == "late" else ["--mode", mode]
        flags = ["--label", "q", *how, "--steps", 40, "--save-every", 4, "--log-every", 2, "--average", 0.9, *TINY]
        return ["train", "ranker", "-i", data, "--backbone", tiny_encoder, "-o", folder, *flags, *more]

    assert blendkit(*command(tmp_path / "whole")).returncode == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command(tmp_path / "cut"))], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(tmp_path / "cut" / "training.state.pt", weights_only=True)["progress"]["step"] == 12
    assert parsed((tmp_path / "cut" / "train.log.jsonl").read_text())[-1]["step"] == 14
    assert blendkit(*command(tmp_path / "cut", "--resume")).returncode == 0

    def curve(folder):
        return [(row["step"], row["loss"], row["tokens"]) for row in parsed((folder / "train.log.jsonl").read_text())]

    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    weights = [torch.load(tmp_path / folder / "training.state.pt", weights_only=True)["weights"] for folder in ("cut", "whole")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    other = blendkit(*command(tmp_path / "cut", "--resume", "--records-per-step", 2))
    assert other.returncode == 2 and "had other values of examples_per_step" in other.stderr
    assert blendkit(*command(tmp_path / "none", "--resume")).returncode == 66


# --- several processes


@pytest.mark.slow
def test_two_processes_train_together(blendkit, tiny_encoder, data, tmp_path):
    # One of the two processes gets the record whose candidates are all alike, so that it has nothing to learn from.
    alike = labelled(1)[0] | {"id": "alike"}
    alike["candidates"] = [candidate | {"scores": {"q": 0.5}} for candidate in alike["candidates"]]
    data.write_text(data.read_text() + lines([alike]))
    flags = ["-i", data, "--backbone", tiny_encoder, "-o", tmp_path / "out", "--label", "q", "--mode", "singles", "--steps", 60, *TINY]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "blendkit", "train", "ranker"]
    command = [*launch, *map(str, flags), "--records-per-step", "4", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = parsed((tmp_path / "out" / "train.log.jsonl").read_text())
    assert [row["step"] for row in rows] == [20, 40, 60]
    # With a learning rate of 0 it moves by 0.03, by which records come when.
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert blendkit("pair", "--model", tmp_path / "out", stdin=lines(examples(1))).returncode == 0


# --- the fuser


@pytest.mark.slow
@pytest.mark.parametrize(("model", "lora"), [("t5", 0), ("t5", 4), ("chat", 0)])
def test_the_fuser_learns_to_write_the_reference(blendkit, tiny_t5, tiny_chat, data, tmp_path, model, lora):
    backbone = tiny_t5 if model == "t5" else tiny_chat
    flags = ["--ranks", "r", "--steps", 30, "--learning-rate", "1e-2", "--lora", lora, "--random-top", "--log-every", 5, "--max-length", 256, "--float32"]
    done = blendkit("train", "fuser", "-i", data, "--backbone", backbone, "-o", tmp_path / "f", *flags)
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in parsed((tmp_path / "f" / "train.log.jsonl").read_text())]
    assert losses[-1] < losses[0] - 0.15
    if model == "t5":
        record = {**labelled(1)[0], "top": [0, 1]}
        fused = blendkit("fuse", "--model", tmp_path / "f", "--max-new-tokens", 4, stdin=lines([record]))
        assert fused.returncode == 0, fused.stderr


def test_the_fusers_input_is_what_fuse_gives_it(tiny_t5, data):
    from blendkit.fusers.genfuser import GenFuser
    from blendkit.training.fuser import FuserTrainee, fuser_examples

    record = labelled(1)[0]
    (example,) = fuser_examples([record], "r")
    prompt, target = FuserTrainee(str(tiny_t5))._row(example, random.Random(0))
    (work,) = GenFuser(str(tiny_t5), device="cpu").plan({**record, "top": [0, 1, 2]})
    assert tuple(prompt) == work.payload
    tokenizer = FuserTrainee(str(tiny_t5)).tokenizer
    assert tokenizer.decode(target[:-1]) == record["output"] and target[-1] == tokenizer.eos_token_id


# --- what is missing


def test_training_says_what_is_missing(blendkit, tmp_path, tiny_encoder, tiny_t5, data):
    given = ["train", "ranker", "-o", tmp_path / "o", "-i", EXAMPLES / "candidates.jsonl"]
    for arguments, code, message in (
        ([*given, "--label", "q", "--backbone", tiny_encoder], 65, "nothing to train on: no record has two candidates with labels that differ"),
        (["train", "ranker", "-o", tmp_path / "o"], 2, "no training data"),
        ([*given, "--backbone", tiny_encoder], 2, "no label: --label NAME"),
        ([*given, "--label", "q"], 2, "give either --backbone"),
        ([*given, "--label", "q", "--backbone", tiny_encoder, "--kind", "pairanker"], 2, "expected one of pairranker, summareranker, simcls, reward"),
        ([*given, "--label", "q", "--backbone", tiny_encoder, "--loss", "bec"], 2, "expected one of instructgpt, bce, soft, mse"),
        ([*given, "--label", "q", "--backbone", "no/such"], 66, "no model 'no/such'"),
        (["train", "fuser", "-o", tmp_path / "o", "-i", data, "--backbone", tiny_t5, "--ranks", "zz"], 65, f"{data}:1: ranks.zz: not there, found r"),
    ):
        done = blendkit(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert message in done.stderr
