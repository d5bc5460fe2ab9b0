"""Puts a head for relevance to a late-paired ranker: python relevance.py OUTPUT RANKER TRAIN.jsonl.gz POOL.jsonl.gz HELD.jsonl.gz --encoder DIRECTORY

Further options: --layers 0 3 5, --weight 8, --shift -6.5, --steps 3000, --seed 0, --dtype bfloat16, --processes 1.

The head learns to tell answers to an instruction from answers to its neighbours of the same set, which are the most similar ones by the mean states of
ENCODER (all-MiniLM-L6-v2), and from the instruction itself; the ranker stays as it is. Its r becomes WEIGHT·log σ(r - SHIFT). The files are as
ranker_data.py writes them; sets about safety and about given passages are left out, as a refusal answers no instruction more than another, and
all passages are long. Of HELD it prints how often an answer to the instruction has a higher r than one to a neighbour, which is of TRAIN or POOL.
"""

from __future__ import annotations

import argparse
import gzip
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from ranker_data import instruction_of
from torch import Tensor
from torch.nn import functional

from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.fast.late import Late
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import PairRM, load_pairrm, save_pairrm, without_relevance
from blendkit.models.relevance import Relevance, features
from blendkit.rankers.conversations import pair_texts
from blendkit.records import source_text

CPU = torch.device("cpu")
# Sets with the same instructions are one; those that are not here are left out.
SETS = {
    **dict.fromkeys(("train", "train_wide", "alpaca_wide", "alpaca_v1"), "alpaca"),
    **{name: name for name in ("rmb_help", "ultrafeedback", "cherry", "dpo_en", "autoj_single", "tulu_human", "pool")},
    **dict.fromkeys(("qlora", "prometheus"), "vicuna"),
}
# Two instructions that are more alike than this ask the same.
SAME, NEAREST, LONGEST = 0.92, 6, 2_500
ANSWERS, NEIGHBOURS = 6, (0, 0, 0, 1, 1)
RECORDS, BINS = 4, 20


@dataclass
class Asked:
    """An instruction: its set, its text as a ranker reads it, its answers, and those of its neighbours, the nearest first."""

    name: str
    text: str
    answers: list[str]
    neighbours: list[list[str]]


@dataclass
class Shown:
    """An instruction with texts, each of a kind: 0 answers it, n > 0 answers the n-th neighbour, -1 repeats it."""

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


def shown(asked: Asked, seed: int) -> Shown:
    """Some answers to it and to its neighbours, the nearest most often."""
    rng = random.Random(f"{seed} {asked.text}")
    texts = dict.fromkeys(rng.sample(asked.answers, min(ANSWERS, len(asked.answers))), 0)
    last = len(asked.neighbours) - 1
    for number in [*(min(place, last) for place in NEIGHBOURS), *(rng.randrange(last + 1) for _ in range(3))]:
        text = rng.choice(asked.neighbours[number])
        if text not in asked.answers:
            texts.setdefault(text, number + 1)
    texts.setdefault(asked.text, -1)
    return Shown(asked.text, list(texts), list(texts.values()))


_worker: dict[str, Any] = {}


def start(ranker: str, layers: list[int], dtype: str) -> None:
    """Makes a process ready for `read`."""
    torch.set_num_threads(1)
    network, tokenizer = load_pairrm(ranker)
    network = fresh(network, layers)
    late = Late(network, CPU, getattr(torch, dtype))
    assert late.relevance is not None
    late.relevance.register_forward_pre_hook(lambda _, given: _worker["seen"].append(given))
    _worker.update(late=late, inputs=PairInputs(tokenizer, network.config), seen=[])


@torch.inference_mode()
def read(part: list[Shown]) -> Any:
    """What the head sees, [texts, features], float16."""
    inputs: PairInputs = _worker["inputs"]
    groups = []
    for one in part:
        source = inputs.source(one.text)
        groups.append((source, inputs.candidates(one.texts, source)))
    _worker["seen"].clear()
    _worker["late"].read(groups)
    ((sources, states),) = _worker["seen"]
    firsts = np.cumsum([0, *(len(texts) + 1 for _, texts in groups)])[:-1]
    kept = torch.from_numpy(np.setdiff1d(np.arange(len(states)), firsts))
    return features(sources[kept], states[kept]).half().numpy()


def fresh(network: PairRM, layers: list[int]) -> PairRM:
    """The ranker with a new head."""
    network = without_relevance(network)
    found = PairRM(replace(network.config, relevance_layers=tuple(layers)), network.pretrained_model)
    found.head_layer, found.expert = network.head_layer, network.expert
    if network.config.paired_layers:
        found.paired_bias = network.paired_bias
    return found.eval()


def balanced(part: list[Shown]) -> tuple[Tensor, Tensor]:
    """Which texts answer [texts], and how much each counts: among texts of about one length both kinds the same, so that length says nothing."""
    kinds = np.array([kind for one in part for kind in one.kinds])
    lengths = np.array([len(text) for one in part for text in one.texts])
    right, weights = kinds == 0, np.full(len(kinds), 0.5)
    bins = np.digitize(lengths, np.quantile(lengths[kinds >= 0], np.linspace(0, 1, BINS + 1)[1:-1]))
    for number in range(BINS):
        own = (bins == number) & (kinds >= 0)
        for same in (own & right, own & ~right):
            weights[same] = 0.5 * own.sum() / max(1, same.sum())
    return torch.from_numpy(right), torch.from_numpy(weights / weights.mean()).float()


def learn(head: Relevance, seen: Tensor, right: Tensor, weights: Tensor, steps: int) -> None:
    """Logistic regression of what answers."""
    optimizer = torch.optim.AdamW([*head.enter.parameters(), *head.leave.parameters()], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(len(seen), (256,))
        inner = functional.gelu(head.enter(functional.dropout(seen[rows].float(), 0.1)))
        found = head.leave(functional.dropout(inner, 0.1))[:, 0]
        loss = functional.binary_cross_entropy_with_logits(found, right[rows].float(), weight=weights[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)


def told(r: Any, part: Iterable[Shown]) -> Iterator[str]:
    """How often answers have a higher r than the others, in percent of the pairs of an instruction, each instruction counting the same."""
    found: dict[str, list[float]] = defaultdict(list)
    place = 0
    for one in part:
        own = r[place : place + len(one.texts)]
        place += len(one.texts)
        kinds = np.array(one.kinds)
        for name, chosen in (("the nearest", kinds == 1), ("the second", kinds == 2), ("a further one", kinds > 2), ("the instruction", kinds == -1)):
            if chosen.any():
                found[name].append(float((own[kinds == 0][:, None] > own[chosen]).mean()))
    for name, shares in found.items():
        yield f"{name}: {100 * np.mean(shares):.1f} % of {len(shares)}"


def main() -> None:
    """Writes OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    for name in ("ranker", "train", "pool", "held"):
        parser.add_argument(name)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 5])
    parser.add_argument("--weight", type=float, default=8.0)
    parser.add_argument("--shift", type=float, default=-6.5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    train, held = (answers(path, lambda record: record["set"]) for path in (asked.train, asked.held))
    # The pool has no names of sets: of it what is in none.
    known = {source_text(record) for path in (asked.train, asked.held) for record in records_of(path)}
    pool = answers(asked.pool, lambda record: None if source_text(record) in known else "pool")
    base = {**train, **pool}
    directed = directions(asked.encoder, list({x: None for part in (base, held) for own in part.values() for x in own}))
    made = {name: [shown(one, asked.seed) for one in with_neighbours(own, base, directed)] for name, own in (("train", base), ("held", held))}
    print({name: (len(part), sum(len(one.texts) for one in part)) for name, part in made.items()}, flush=True)
    chunks = {name: [part[start : start + RECORDS] for start in range(0, len(part), RECORDS)] for name, part in made.items()}
    with ProcessPoolExecutor(asked.processes, get_context("spawn"), start, (asked.ranker, asked.layers, asked.dtype)) as processes:
        seen = {name: torch.from_numpy(np.concatenate(list(processes.map(read, part)))) for name, part in chunks.items()}
    network, words = load_pairrm(asked.ranker)
    # The head's start is drawn, too.
    torch.manual_seed(asked.seed)
    network = fresh(network, asked.layers)
    head = network.relevance
    assert head is not None
    learn(head, seen["train"], *balanced(made["train"]), asked.steps)
    with torch.inference_mode():
        r = head.leave(functional.gelu(head.enter(seen["held"].float())))[:, 0].numpy()
    print("\n".join(told(r, made["held"])))
    with torch.no_grad():
        head.leave.bias -= asked.shift
        head.weight.fill_(asked.weight)
    save_pairrm(asked.output, network, words, small_vocabulary=True)


if __name__ == "__main__":
    main()
