"""Makes a ranker on a causal LM that stays as it is, linear in what the LM knows: python linear.py OUTPUT TRAIN.jsonl.gz --lm smollm2 --read 10 15 20

Further options: --sets FILE of JSON, {SET: [RECORDS, CANDIDATES, WEIGHT]}; --l2 0.05 0.1 0.2 0.3 0.5 1 2, --folds 5, --most-tokens 6_000_000,
--source-maxlength 1024, --candidate-maxlength 384, --dtype bfloat16, --device cpu, --seed 0.

Reads the instructions and answers once (`LMRanker.features`), so many of each set as --sets says, sets mixed so that a run that --most-tokens ends has the
same share of each. What was read lies in OUTPUT.read, and a run that was stopped goes on from there. Then a convex problem is solved: the mean over pairs of
-log σ(r_better - r_worse), each record of a set the same however many pairs it has, plus L2·|w|² of the weights of features with variance 1. L2 is the one that
is best in cross-validation, in which no instruction is both learnt from and measured on. Labels that differ by 0.7 or less make no pair.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson
import torch
from ranker_data import instruction_of
from torch import Tensor
from torch.nn import functional

from blendkit.models.lm_ranker import LMInputs, LMRanker, LMRankerConfig, new_lm_ranker, save_lm_ranker
from blendkit.models.loading import choose_device
from blendkit.rankers.conversations import pair_texts
from blendkit.training.micro_batches import micro_batches

MARGIN, PIECE, TOKENS = 0.7, 100, 4096
# By set: how many records, how many candidates of each, and what a set's records weigh all in all.
SETS: dict[str, tuple[int, int, float]] = {
    "rmb_help": (2400, 3, 2.5),
    "rmb_harm": (1200, 3, 1.5),
    "hh_harmless": (1498, 2, 1.5),
    "tulu_human": (267, 2, 0.7),
    "qa_feedback": (392, 4, 0.8),
    "train": (428, 6, 1.5),
    "alpaca_wide": (331, 6, 1.0),
    "ultrafeedback": (863, 2, 0.8),
    "cherry": (400, 2, 0.4),
    "dpo_en": (181, 2, 0.3),
    "qlora": (48, 8, 0.3),
    "hard_off": (200, 2, 0.4),
    "hard_constraint": (200, 2, 0.4),
    "hard_padded": (200, 2, 0.3),
}
Read = dict[str, Any]


def chosen(path: Path, sets: dict[str, tuple[int, int, float]], seed: int) -> list[dict[str, Any]]:
    """Records with the candidates that are read of them; any beginning of the list has the same share of each set."""
    by_set: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with gzip.open(path) as file:
        for line in file:
            record = orjson.loads(line)
            by_set[record["set"]].append(record)
    if unknown := sorted(set(sets) - set(by_set)):
        raise SystemExit(f"{path} has no record of the set {unknown[0]}")
    found: list[tuple[float, str, dict[str, Any]]] = []
    for name, (most, candidates, _) in sets.items():
        rng = random.Random(f"{seed}:{name}")
        records = rng.sample(by_set[name], min(most, len(by_set[name])))
        for place, record in enumerate(records):
            own = [candidate for candidate in record["candidates"] if candidate["scores"].get("oracle") is not None]
            record["candidates"] = rng.sample(own, min(candidates, len(own)))
            if any(abs(first - second) > MARGIN for first, second in combinations(labels_of(record), 2)):
                found.append(((place + 0.5) / len(records), name, record))
    return [record for _, _, record in sorted(found, key=lambda row: row[:2])]


def labels_of(record: dict[str, Any]) -> list[float]:
    """The candidates' labels."""
    return [float(candidate["scores"]["oracle"]) for candidate in record["candidates"]]


@torch.inference_mode()
def read(model: LMRanker, inputs: LMInputs, records: list[dict[str, Any]]) -> Read:
    """Features [n, D] of the records' candidates, how many each record has, their labels, and how many tokens were read."""
    groups = []
    for record in records:
        text, texts = pair_texts(record, [candidate["text"] for candidate in record["candidates"]])
        source = inputs.source(text)
        groups.append((source, inputs.candidates(texts, source)))
    sizes = [len(source) + sum(map(len, own)) for source, own in groups]
    parts: dict[int, Tensor] = {}
    for places in micro_batches(sizes, TOKENS):
        found = model.features([groups[place] for place in places]).cpu()
        parts |= dict(zip(places, found.split([len(groups[place][1]) for place in places]), strict=True))
    features = torch.cat([parts[place] for place in range(len(groups))])
    return {
        "features": features.to(torch.bfloat16),
        "log_lengths": features[:, -1],
        "counts": [len(own) for _, own in groups],
        "labels": [labels_of(record) for record in records],
        "sets": [record["set"] for record in records],
        "tokens": sum(sizes),
    }


def read_all(folder: Path, model: LMRanker, inputs: LMInputs, records: list[dict[str, Any]], most: int) -> list[Read]:
    """Reads the records piece by piece, what an earlier run has read from its files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(orjson.dumps(records)).hexdigest()
    settings = json.dumps({"model": asdict(model.config), "dtype": str(next(model.lm.parameters()).dtype), "records": content}, indent=1)
    if not (kept := folder / "settings.json").exists():
        kept.write_text(settings)
    if kept.read_text() != settings:
        raise SystemExit(f"{kept} is of other settings or records: take the folder away to read again")
    found: list[Read] = []
    tokens, began = 0, time.monotonic()
    for number, first in enumerate(range(0, len(records), PIECE)):
        if tokens >= most:
            break
        file = folder / f"{number:04d}.pt"
        if not file.exists():
            part = read(model, inputs, records[first : first + PIECE])
            torch.save(part, file.with_suffix(".new"))
            file.with_suffix(".new").rename(file)
        found.append(torch.load(file))
        tokens += found[-1]["tokens"]
        print(
            f"{first + len(found[-1]['counts']):,} of {len(records):,} records, {tokens:,} tokens, {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return found


class Pairs:
    """Features, scaled, of better and worse candidates, and what each pair weighs."""

    def __init__(self, parts: list[Read], sets: dict[str, tuple[int, int, float]]) -> None:
        features = torch.cat([part["features"].float() for part in parts])
        features[:, -1] = torch.cat([part["log_lengths"] for part in parts])
        self.scale = 1 / features.std(0).clamp(min=1e-6)
        self.features = features * self.scale
        records = [(name, labels) for part in parts for name, labels in zip(part["sets"], part["labels"], strict=True)]
        number = Counter(name for name, _ in records)
        rows: list[tuple[int, int, int, float]] = []
        self.names = [name for name, _ in records]
        start = 0
        for place, (name, labels) in enumerate(records):
            own = [(i, j) if labels[i] > labels[j] else (j, i) for i, j in combinations(range(len(labels)), 2) if abs(labels[i] - labels[j]) > MARGIN]
            weight = sets[name][2] / number[name] / max(1, len(own))
            rows += [(start + better, start + worse, place, weight) for better, worse in own]
            start += len(labels)
        self.better, self.worse, self.record = (torch.tensor([row[part] for row in rows]) for part in range(3))
        self.weights = torch.tensor([row[3] for row in rows])

    def __len__(self) -> int:
        return len(self.weights)

    def margins(self, w: Tensor) -> Tensor:
        """r_better - r_worse, [pairs]."""
        rewards = self.features @ w
        return rewards[self.better] - rewards[self.worse]

    def fit(self, l2: float, without: Tensor | None = None) -> Tensor:
        """The weights [D] that minimise the loss over all pairs but those in `without` (bool, [pairs])."""
        weights = self.weights if without is None else self.weights * ~without
        weights = weights / weights.sum()
        w = torch.zeros(self.features.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = (weights * functional.softplus(-self.margins(w))).sum() + l2 * w.square().sum()
            found.backward()  # type: ignore[no-untyped-call]
            return found

        optimizer.step(loss)  # type: ignore[no-untyped-call,arg-type]
        return w.detach()

    def agreement(self, margins: Tensor, some: Tensor) -> dict[str, float]:
        """By set, the share of `some` of the pairs that are right, in percent, each record counted the same."""
        right, weights = (margins > 0).float() + 0.5 * (margins == 0), self.weights * some
        own = {name: torch.tensor([found == name for found in self.names])[self.record] * weights for name in dict.fromkeys(self.names)}
        return {name: 100 * float((part * right).sum() / part.sum()) for name, part in own.items()}

    def crossed(self, l2: float, folds: Tensor) -> tuple[float, dict[str, float]]:
        """Loss and agreement by set on records that the weights were not fitted to; `folds`: the part that each record is of, [records]."""
        margins = torch.zeros(len(self))
        for number in folds.unique():
            out = folds[self.record] == number
            margins = torch.where(out, self.margins(self.fit(l2, out)), margins)
        loss = float((self.weights * functional.softplus(-margins)).sum() / self.weights.sum())
        return loss, self.agreement(margins, torch.ones(len(self), dtype=torch.bool))


def main() -> None:
    """Reads, fits, writes OUTPUT, and prints what cross-validation says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("--lm", default="smollm2")
    parser.add_argument("--read", type=int, nargs="*", default=[10, 15, 20])
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--l2", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--most-tokens", type=int, default=6_000_000)
    parser.add_argument("--source-maxlength", type=int, default=1024)
    parser.add_argument("--candidate-maxlength", type=int, default=384)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    sets = {name: tuple(row) for name, row in json.loads(flags.sets.read_text()).items()} if flags.sets else SETS
    config = LMRankerConfig(flags.lm, 0, 0, flags.source_maxlength, flags.candidate_maxlength, read_layers=tuple(flags.read))
    model, tokenizer = new_lm_ranker(config, getattr(torch, flags.dtype))
    model.to(choose_device(flags.device))
    records = chosen(flags.train, sets, flags.seed)
    parts = read_all(flags.output.with_suffix(".read"), model, LMInputs(tokenizer, model.config), records, flags.most_tokens)
    pairs = Pairs(parts, sets)
    # Sets share instructions, and some have many records of one.
    places = [int(hashlib.sha256(instruction_of(record).encode()).hexdigest(), 16) % flags.folds for record in records]
    folds = torch.tensor(places[: len(pairs.names)])
    found = {}
    for l2 in flags.l2:
        loss, agrees = found[l2] = pairs.crossed(l2, folds)
        print(json.dumps({"l2": l2, "loss": round(loss, 5), "agrees": {name: round(share, 1) for name, share in agrees.items()}}), flush=True)
    best = min(found, key=lambda l2: found[l2][0])
    model.scale.copy_(pairs.scale)
    model.weight.data.copy_(pairs.fit(best))
    save_lm_ranker(flags.output, model)
    print(json.dumps({"l2": best, "pairs": len(pairs), "records": len(pairs.names), "tokens": sum(part["tokens"] for part in parts)}))


if __name__ == "__main__":
    main()
