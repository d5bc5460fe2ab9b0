"""Puts a head for relevance to a late-paired ranker: python relevance.py OUTPUT RANKER TRAIN.jsonl.gz POOL.jsonl.gz HELD.jsonl.gz --encoder DIRECTORY

Further options: --drawn FILE, --layers 0 3 6, --own-layers 3, --rank 32, --weight 2.5, --shift -3, --epochs 2, --records 8 (a step and process),
--learning-rate 1e-3, --seed 0, --dtype bfloat16. With `python -m torch.distributed.run --standalone --nproc_per_node 2 relevance.py …` on two cores, and 16
records a step. A run that was stopped goes on from OUTPUT.training when it is started again. RANKER may have a head, made with --weight 1 --shift 0: training
goes on from it, and --layers, --own-layers and --rank are not read.

The head learns to tell answers to an instruction from answers to its neighbours of the same set, which are the most similar ones by the mean states of
ENCODER (all-MiniLM-L6-v2), from the instruction itself, and from garbled answers; with `--drawn` (as drawn.py and the Makefile make it), also what a small
model says at its own temperature from what it says at temperature 1, and plain right answers from padded ones and from those that drop a constraint (the sets
hard_padded and hard_constraint). All texts of a small model end after 64 tokens at the latest, the right ones, too. The ranker stays as it is. Its r becomes
WEIGHT·log σ(r - SHIFT). The files are as ranker_data.py writes them; sets about safety and about given passages are left out, as a refusal answers no
instruction more than another, and all passages are long. Of HELD, and of the held-out part of FILE, it prints how often an answer to the instruction has a
higher r than each kind of wrong text; neighbours are of TRAIN or POOL.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from ranker_data import instruction_of
from torch import Tensor, nn
from torch.nn import functional

from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.fast.late import Late
from blendkit.models.layer_list import layers_of
from blendkit.models.loading import fingerprint
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import PairRM, load_pairrm, made_of, save_pairrm
from blendkit.models.relevance import Relevance, features
from blendkit.rankers.conversations import pair_texts
from blendkit.records import source_text
from blendkit.training.processes import Processes, processes_on
from blendkit.training.state import STATE, TrainingState, load_state, save_state

CPU = torch.device("cpu")
# Sets with the same instructions are one; those that are not here are left out.
SETS = {
    **dict.fromkeys(("train", "train_wide", "alpaca_wide", "alpaca_v1"), "alpaca"),
    **{name: name for name in ("rmb_help", "ultrafeedback", "cherry", "dpo_en", "autoj_single", "tulu_human", "pool")},
    **dict.fromkeys(("qlora", "prometheus"), "vicuna"),
}
# Two instructions that are more alike than this ask the same.
SAME, NEAREST, LONGEST = 0.92, 6, 2_500
# How many answers of its own an instruction is shown with, and of which neighbours (0 is the nearest) besides three drawn ones: to learn, and to measure.
LEARNT, MEASURED = (4, (0, 0, 1)), (6, (0, 0, 0, 1, 1))
# With more neighbours' answers than this to learn from, further ones are left out; how often the instruction itself is shown.
NEIGHBOURS, REPEATED = 4, 0.3
GARBLED, BINS = 1, 20
# Kinds of wrong texts other than neighbours' answers.
ECHO, GARBLE, DRAWN, PADDED, DROPPED = -1, -2, -3, -4, -5
FAULTS = {"the instruction": ECHO, "garbled": GARBLE, "drawn at temperature 1": DRAWN, "padded": PADDED, "without the constraint": DROPPED}
# Sets of a right answer and wrong ones of one kind.
PAIRS = {"hard_padded": PADDED, "hard_constraint": DROPPED, "drawn": DRAWN}
# Characters: a longer instruction may be cut before its constraint, a longer right answer before its end, where the two of a pair differ; a shorter one can be
# right by chance.
WHOLE, READ, ENOUGH = 500, 1_000, 60
# The candidate that a small model wrote at its own temperature; the Makefile names it.
PLAIN = "plain"
# Steps between two states that a run which was stopped goes on from.
SAVED = 50


@dataclass
class Asked:
    """An instruction: its set, its text as a ranker reads it, its answers, those of its neighbours, the nearest first, and faulty ones with their kinds."""

    name: str
    text: str
    answers: list[str]
    neighbours: list[list[str]]
    faulty: dict[str, int] = field(default_factory=dict)


@dataclass
class Shown:
    """An instruction with texts, each of a kind: 0 answers it, n > 0 answers the n-th neighbour; below 0 as `ECHO` and the others say."""

    text: str
    texts: list[str]
    kinds: list[int]


def records_of(path: str) -> Iterator[dict[str, Any]]:
    """The records of a file."""
    with gzip.open(path) as file:
        yield from map(orjson.loads, file)


def answers(path: str, set_of: Any) -> dict[str, dict[str, tuple[dict[str, Any], list[str]]]]:
    """Of each set the instructions, by their text, and their distinct answers."""
    found: dict[str, dict[str, tuple[dict[str, Any], dict[str, None]]]] = defaultdict(dict)
    for record in records_of(path):
        name, x = SETS.get(set_of(record)), source_text(record)
        if name is not None and len(x) <= LONGEST:
            texts = found[name].setdefault(x, (record, {}))[1]
            texts.update((c["text"], None) for c in record["candidates"] if c["text"].strip())
    return {name: {x: (record, list(texts)) for x, (record, texts) in own.items()} for name, own in found.items()}


def parts_of(train: str, pool: str, held: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`answers` to learn from, and held-out ones."""
    learnt, measured = (answers(path, lambda record: record["set"]) for path in (train, held))
    # The pool has no names of sets: of it what is in none.
    known = {source_text(record) for path in (train, held) for record in records_of(path)}
    return {**learnt, **answers(pool, lambda record: None if source_text(record) in known else "pool")}, measured


def pairs_of(records: Iterable[dict[str, Any]]) -> Iterator[Asked]:
    """The instructions that have a right answer and wrong ones of one kind."""
    for record in records:
        name, x, given = record["set"], pair_texts(record, [])[0], record["candidates"]
        if name in PAIRS and len(x) <= WHOLE:
            right = max(given, key=lambda c: c["model"] == PLAIN if name == "drawn" else c["scores"]["oracle"])["text"]
            long_enough = ENOUGH if name == "drawn" else 1
            wrong = {c["text"]: PAIRS[name] for c in given if c["text"] != right and len(c["text"].strip()) >= long_enough}
            if wrong and long_enough <= len(right.strip()) and len(right) <= READ:
                yield Asked(name, x, [right], [], wrong)


def drawn_of(path: str | None) -> dict[str, list[dict[str, Any]]]:
    """What a small model says, by the part that the instruction is of."""
    found: dict[str, list[dict[str, Any]]] = {"train": [], "held": []}
    for line in Path(path).read_bytes().splitlines() if path else ():
        record = orjson.loads(line)
        found[record["id"].split("/")[0]].append({**record, "set": "drawn"})
    return found


def directions(encoder: str, texts: list[str]) -> dict[str, Any]:
    """The mean state of each text, [H], of length 1."""
    from transformers import AutoModel, AutoTokenizer

    reader, tokenizer = (
        EncoderReader(AutoModel.from_pretrained(encoder).eval(), 0, CPU, torch.float32, places_only=False),
        AutoTokenizer.from_pretrained(encoder),
    )
    ids = tokenizer(texts, truncation=True, max_length=192)["input_ids"]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    rows: list[Any] = [None] * len(ids)
    for start in range(0, len(order), 32):
        part = order[start : start + 32]
        for number, states in zip(part, reader.states([ids[number] for number in part]), strict=True):
            rows[number] = states.mean(0)
    return dict(zip(texts, functional.normalize(torch.stack(rows), dim=1).numpy(), strict=True))


def with_neighbours(own: dict[str, Any], others: dict[str, Any], directed: dict[str, Any]) -> Iterator[Asked]:
    """The instructions of one part, with neighbours among `others` of the same set, by the direction of each text."""
    for name, records in own.items():
        texts, theirs = list(records), list(others[name])
        near = np.stack([directed[x] for x in texts]) @ np.stack([directed[x] for x in theirs]).T
        for x, row in zip(texts, near, strict=True):
            record, given = records[x]
            order = [theirs[place] for place in np.argsort(-row, kind="stable")[: 2 * NEAREST] if theirs[place] != x and row[place] < SAME]
            order = [other for other in order if instruction_of(others[name][other][0]) != instruction_of(record)][:NEAREST]
            if order:
                yield Asked(name, pair_texts(record, [])[0], given, [others[name][other][1] for other in order])


def shown(asked: Asked, seed: int, learnt: bool) -> Shown:
    """Some answers to it and to its neighbours, the nearest most often, and garbled ones; or one answer and its faulty ones."""
    if asked.faulty:
        return Shown(asked.text, [*asked.answers, *asked.faulty], [0] * len(asked.answers) + list(asked.faulty.values()))
    answers, neighbours = LEARNT if learnt else MEASURED
    rng = random.Random(f"{seed} {asked.text}")
    texts = dict.fromkeys(rng.sample(asked.answers, min(answers, len(asked.answers))), 0)
    last = len(asked.neighbours) - 1
    for number in [*(min(place, last) for place in neighbours), *(rng.randrange(last + 1) for _ in range(3))]:
        text = rng.choice(asked.neighbours[number])
        if text not in asked.answers:
            texts.setdefault(text, number + 1)
    texts.setdefault(asked.text, ECHO)
    # Drawn apart, so that what is above is the same with and without garbled texts.
    rng = random.Random(f"g {seed} {asked.text}")
    if learnt and rng.random() >= REPEATED:
        texts = {text: kind for text, kind in texts.items() if kind != ECHO}
    if learnt:
        further = [text for text, kind in texts.items() if kind > 2]
        left_out = further[: max(0, sum(kind > 0 for kind in texts.values()) - NEIGHBOURS)]
        texts = {text: kind for text, kind in texts.items() if text not in left_out}
    for _ in range(GARBLED):
        answer = rng.choice(asked.answers)
        text = garbled(answer, [rng.choice(rng.choice(asked.neighbours)) for _ in range(4)], rng)
        if text and text not in asked.answers:
            texts.setdefault(text, GARBLE)
    return Shown(asked.text, list(texts), list(texts.values()))


def garbled(answer: str, others: list[str], rng: random.Random) -> str | None:
    """The answer with words in another order, or some of them exchanged, repeated or left out, or its beginning with bits of itself and others behind it.

    None of fewer than six words.
    """
    words, bag = answer.split(" "), [word for other in others for word in other.split(" ")]
    count = len(words)
    if count < 6:
        return None
    how = rng.randrange(6)
    found: list[str] = []
    if how == 0:
        size = rng.choice((count, 8, 16))
        for start in range(0, count, size):
            part = words[start : start + size]
            rng.shuffle(part)
            found += part
    elif how == 1:
        share = rng.uniform(0.2, 0.6)
        found = [rng.choice(bag) if rng.random() < share else word for word in words]
    elif how == 2:
        size, start = rng.randint(1, min(12, count // 2)), rng.randint(0, count // 2)
        found = words[: rng.randint(0, count // 2)] + words[start : start + size] * count
    elif how == 3:
        share = rng.uniform(0.3, 0.6)
        found = [word for word in words if rng.random() > share]
    else:
        found = words[: rng.randint(0, count // 3)]
        bag += words * 2 * (how == 4)
        while len(found) < count:
            size, start = rng.randint(1, 6), rng.randrange(len(bag))
            found += bag[start : start + size]
    return " ".join(found[:count])


class Learner:
    """A ranker whose head for relevance learns."""

    def __init__(self, network: PairRM, words: Any, dtype: torch.dtype) -> None:
        assert network.relevance is not None
        self.network, self.head, self.dtype = network, network.relevance, dtype
        self.inputs = PairInputs(words, network.config)
        for weight in network.parameters():
            weight.requires_grad_(False)
        self.trained = [*self.head.added.parameters(), *self.head.enter.parameters(), *self.head.leave.parameters()]
        for weight in self.trained:
            weight.requires_grad_(True)

    def r(self, part: list[Shown], late: Late, learnt: bool) -> Tensor:
        """r of all texts, [n]; with dropout where it learns."""
        groups, seen = [], []
        for one in part:
            source = self.inputs.source(one.text)
            groups.append((source, self.inputs.candidates(one.texts, source)))
        assert late.relevance is not None
        with late.relevance.register_forward_pre_hook(lambda _, given: seen.append(given)):
            late.read(groups)
        ((sources, states),) = seen
        firsts = np.cumsum([0, *(len(texts) + 1 for _, texts in groups)])[:-1]
        kept = torch.from_numpy(np.setdiff1d(np.arange(len(states)), firsts))
        inner = functional.gelu(self.head.enter(functional.dropout(features(sources[kept], states[kept]), 0.1, learnt)))
        return self.head.leave(functional.dropout(inner, 0.1, learnt))[:, 0]  # type: ignore[no-any-return]


def balanced(part: list[Shown]) -> list[Tensor]:
    """How much each text counts, [texts] an instruction: among texts of about one length both kinds the same, so that length says nothing."""
    kinds = np.array([kind for one in part for kind in one.kinds])
    lengths = np.array([len(text) for one in part for text in one.texts])
    right, weights = kinds == 0, np.full(len(kinds), 0.5)
    bins = np.digitize(lengths, np.quantile(lengths[kinds != ECHO], np.linspace(0, 1, BINS + 1)[1:-1]))
    for number in range(BINS):
        own = (bins == number) & (kinds != ECHO)
        for same in (own & right, own & ~right):
            weights[same] = 0.5 * own.sum() / max(1, same.sum())
    return list(torch.split(torch.from_numpy(weights / weights.mean()).float(), [len(one.texts) for one in part]))


def learn(learner: Learner, part: list[Shown], records: int, processes: Processes, settings: dict[str, Any], kept: Path) -> None:
    """Logistic regression of what answers, in steps of so many instructions a process, as they stand in `part`.

    It goes on from what an earlier run of the same `settings` left in `kept`.
    """
    size = records * processes.count
    steps = len(part) // size
    weights, state = balanced(part), TrainingState()
    optimizer = torch.optim.AdamW(learner.trained, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["learning rate"], total_steps=steps, pct_start=0.1)
    texts = hashlib.sha256(orjson.dumps([(one.text, one.texts, one.kinds) for one in part])).hexdigest()
    settings = {**settings, "texts": texts, "instructions a step": size, "processes": processes.count}
    if (kept / STATE).exists():
        state = load_state(kept, settings, learner.head, optimizer, None)
        schedule.last_epoch = state.step
    begun, losses = time.monotonic() - state.seconds, state.losses
    for step in range(state.step, steps):
        # What is dropped, by the step and the process.
        torch.manual_seed((settings["seed"] * steps + step) * processes.count + processes.index)
        numbers = range(step * size + processes.index, (step + 1) * size, processes.count)
        # The weights as they are now.
        late = Late(learner.network, CPU, learner.dtype, gradients=True)
        found = learner.r([part[number] for number in numbers], late, True)
        right = torch.tensor([float(kind == 0) for number in numbers for kind in part[number].kinds])
        loss = functional.binary_cross_entropy_with_logits(found, right, weight=torch.cat([weights[number] for number in numbers]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for weight in learner.trained:
            weight.grad = processes.total(weight.grad) / processes.count
        nn.utils.clip_grad_norm_(learner.trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if processes.is_main and (step + 1) % SAVED == 0:
            kept.mkdir(parents=True, exist_ok=True)
            save_state(kept, TrainingState(step + 1, seconds=time.monotonic() - begun, losses=losses[-50:]), settings, learner.head, optimizer, None)
        if processes.is_main and (step + 1) % 10 == 0:
            row = {"step": step + 1, "loss": round(float(np.mean(losses[-50:])), 3), "seconds": round(time.monotonic() - begun)}
            print(orjson.dumps(row).decode(), flush=True)


def told(r: Any, part: Iterable[Shown]) -> dict[str, str]:
    """How often answers have a higher r than the others, in percent of the pairs of an instruction, each instruction counting the same."""
    found: dict[str, list[float]] = defaultdict(list)
    place = 0
    for one in part:
        own = r[place : place + len(one.texts)]
        place += len(one.texts)
        kinds = np.array(one.kinds)
        of_kind = {"the nearest": kinds == 1, "the second": kinds == 2, "a further one": kinds > 2}
        of_kind |= {name: kinds == kind for name, kind in FAULTS.items()}
        for name, chosen in of_kind.items():
            if chosen.any():
                found[name].append(float((own[kinds == 0][:, None] > own[chosen]).mean()))
    return {name: f"{100 * np.mean(shares):.1f} % of {len(shares)}" for name, shares in found.items()}


def main() -> None:
    """Writes OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    for name in ("ranker", "train", "pool", "held"):
        parser.add_argument(name)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--drawn")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 6])
    parser.add_argument("--own-layers", type=int, default=3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--weight", type=float, default=2.5)
    parser.add_argument("--shift", type=float, default=-3.0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    asked = parser.parse_args()
    network, words = load_pairrm(asked.ranker)
    if network.relevance is None:
        last = len(layers_of(network.pretrained_model)) - (0 if asked.own_layers else max(1, network.config.paired_layers or 0))
        if max(asked.layers) > last or (asked.own_layers and max(asked.layers) < last):
            parser.error(f"--layers: expected {last}, the last that the head may read, and others below it, got {asked.layers}")
    elif network.relevance.weight.item() != 1:
        parser.error(f"{asked.ranker}: expected a head with --weight 1 and --shift 0 to go on from, got weight {network.relevance.weight.item():g}")
    torch.set_num_threads(1)
    processes = processes_on(CPU)
    base, held = parts_of(asked.train, asked.pool, asked.held)
    directed = directions(asked.encoder, list({x: None for part in (base, held) for own in part.values() for x in own}))
    learnt, measured = (list(with_neighbours(own, base, directed)) for own in (base, held))
    drawn = drawn_of(asked.drawn)
    pairs = list(pairs_of([*records_of(asked.train), *drawn["train"]])) if asked.drawn else []
    epochs = [[shown(one, seed, True) for one in [*learnt, *pairs]] for seed in range(asked.seed, asked.seed + asked.epochs)]
    torch.manual_seed(asked.seed)
    head = network.relevance or Relevance(network.pretrained_model, asked.layers, asked.own_layers, asked.rank if asked.own_layers else 0)
    learner = Learner(made_of(network.config, network.pretrained_model, network, relevance=head), words, getattr(torch, asked.dtype))
    rng = random.Random(asked.seed)
    part = [one for epoch in epochs for one in rng.sample(epoch, len(epoch))]
    kept = asked.output.with_name(f"{asked.output.name}.training")
    settings = {"ranker": fingerprint(asked.ranker), "head": [*head.layers, head.own_layers, head.rank], "dtype": asked.dtype}
    learn(learner, part, asked.records, processes, {**settings, "seed": asked.seed, "learning rate": asked.learning_rate}, kept)
    if not processes.is_main:
        return
    with torch.no_grad():
        head.leave.bias -= asked.shift
        head.weight.fill_(asked.weight)
    save_pairrm(asked.output, made_of(network.config, network.pretrained_model, network, network.expert, head), words, small=True)
    shutil.rmtree(kept, ignore_errors=True)
    # As it was written.
    network, words = load_pairrm(str(asked.output))
    network = made_of(network.config, network.pretrained_model, network, relevance=network.relevance)
    learner, late = Learner(network, words, learner.dtype), Late(network, CPU, learner.dtype)
    measure = [shown(one, asked.seed, False) for one in [*measured, *pairs_of([*records_of(asked.held), *drawn["held"]])]]
    with torch.inference_mode():
        parts = (measure[start : start + asked.records] for start in range(0, len(measure), asked.records))
        r = torch.cat([learner.r(one, late, False) for one in parts]).numpy()
    print(orjson.dumps(told(r, measure)).decode())


if __name__ == "__main__":
    main()
