"""Joins a ranker and its expert: python gate.py OUTPUT RANKER EXPERT TRAIN.jsonl.gz … --layers K --sets SET,SET --others POOL.jsonl.gz

Further options: --leak 10, --width 2, --ridge 0.01.

EXPERT is RANKER after a training of its last K layers alone. The gate starts as a logistic regression on the mean state of x behind the layers that
both share, and learns to tell the instructions of SETs, which are the expert's, from those of all other sets of TRAIN (as ranker_data.py writes it) and
from POOL's that are in no file named here. A set of n instructions counts as √n, the expert's sets together as much as the others.

Its logit z becomes a share of (z - z0) / WIDTH, between 0 and 1. z0 is what --leak percent of a set of other instructions that the gate has not
seen are above: each set is left out of one fit, with all its instructions, and all count the same.
Prints for TRAIN and each further file, set by set, what percentage has a share above one half and above 0.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.expert import Gate, with_expert
from blendkit.models.layer_list import layers_of
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import PairRM, load_pairrm, save_pairrm, without_relevance
from blendkit.rankers.conversations import pair_texts

Ids = tuple[int, ...]
Array = np.ndarray[Any, Any]
BATCH = 64
# Sets with fewer instructions say little of what leaks.
ENOUGH = 100


def sources(path: str, inputs: PairInputs) -> list[tuple[str, Ids]]:
    """Each set's distinct x; `others` of records that belong to no set."""
    with gzip.open(path) as file:
        records = [orjson.loads(line) for line in file]
    return list(dict.fromkeys((str(record.get("set", "others")), inputs.source(pair_texts(record, [])[0])) for record in records))


def means(gate: Gate, rows: list[Ids]) -> Tensor:
    """What the gate sees of each x, [n, H]; equal ones are read once."""
    distinct = sorted(set(rows), key=len)
    found = torch.cat([gate.means(distinct[start : start + BATCH]) for start in range(0, len(distinct), BATCH)])
    place = {row: number for number, row in enumerate(distinct)}
    return found[[place[row] for row in rows]]


def fitted(seen: Tensor, sets: Array, expert: list[str], ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [H] and bias of the logistic regression; `ridge` is for inputs of variance 1."""
    theirs = np.isin(sets, expert)
    names, sizes = np.unique(sets, return_counts=True)
    shares = dict(zip(names, sizes**-0.5, strict=True))
    counts = np.array([shares[name] for name in sets])
    counts[theirs] *= counts[~theirs].sum() / counts[theirs].sum()
    wanted, weights = torch.tensor(theirs).float(), torch.tensor(counts / counts.mean()).float()
    mean, scale = seen.mean(0), seen.std(0)
    inputs = (seen - mean) / scale
    weight, bias = torch.zeros(seen.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        of_each = functional.binary_cross_entropy_with_logits(inputs @ weight + bias, wanted, reduction="none")
        total = (of_each * weights).mean() + ridge * (weight * weight).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[arg-type,no-untyped-call]
    with torch.no_grad():
        return weight / scale, bias - (weight / scale) @ mean


def beginning(seen: Tensor, sets: Array, rows: list[Ids], expert: list[str], ridge: float, leak: float) -> float:
    """The z0 that `leak` percent of a set that the gate has not seen are above, in the mean over the other sets."""
    logits = []
    for name in sorted(set(sets.tolist()) - set(expert)):
        own = sets == name
        if own.sum() >= ENOUGH:
            theirs = {row for row, mine in zip(rows, own, strict=True) if mine}
            kept = np.array([row not in theirs for row in rows])
            weight, bias = fitted(seen[torch.from_numpy(kept)], sets[kept], expert, ridge)
            logits.append((seen[torch.from_numpy(own)] @ weight + bias).numpy())
    values = np.concatenate(logits)
    parts = np.concatenate([np.full(len(own), 1 / len(own) / len(logits)) for own in logits])
    order = np.argsort(-values)
    return float(values[order][min(np.searchsorted(np.cumsum(parts[order]), leak / 100), len(order) - 1)])


def expect_shared(ranker: PairRM, expert: PairRM, layers: int) -> None:
    """Ends the program where more differs than the last layers, the head and the paired bias."""
    first = len(layers_of(ranker.pretrained_model)) - layers
    own = ("head_layer.", "paired_bias", *(f"pretrained_model.encoder.layer.{number}." for number in range(first, first + layers)))
    theirs = expert.state_dict()
    # Checkpoints of a training are in float16.
    changed = [
        key
        for key, value in ranker.state_dict().items()
        if not key.startswith(own) and ".pooler." not in key and not torch.equal(value.half(), theirs[key].half())
    ]
    if ranker.config != expert.config or changed:
        raise SystemExit(f"the expert is not the ranker with other last {layers} layers: {changed[0] if changed else 'their config.json differ'}")


def main() -> None:
    """Writes OUTPUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("ranker")
    parser.add_argument("expert")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--sets", required=True)
    parser.add_argument("--others")
    parser.add_argument("--leak", type=float, default=10.0)
    parser.add_argument("--width", type=float, default=2.0)
    parser.add_argument("--ridge", type=float, default=0.01)
    asked = parser.parse_args()
    (ranker, tokenizer), (trained, _) = load_pairrm(asked.ranker), load_pairrm(asked.expert)
    # A training leaves the head for relevance out.
    expect_shared(without_relevance(ranker), trained, asked.layers)
    ranker = with_expert(ranker, trained, asked.layers)
    assert ranker.expert is not None
    gate, inputs, expert = Gate(ranker, tokenizer.pad_token_id, torch.device("cpu")), PairInputs(tokenizer, ranker.config), asked.sets.split(",")
    files = [sources(path, inputs) for path in asked.files]
    if lost := set(expert) - {name for name, _ in files[0]}:
        raise SystemExit(f"--sets: no record of {asked.files[0]} is of {', '.join(sorted(lost))}")
    known = {row for file in files for _, row in file}
    learnt = files[0] + [(name, row) for name, row in (sources(asked.others, inputs) if asked.others else []) if row not in known]
    sets, rows = np.array([name for name, _ in learnt]), [row for _, row in learnt]
    seen = means(gate, rows)
    weight, bias = fitted(seen, sets, expert, asked.ridge)
    bias = bias - beginning(seen, sets, rows, expert, asked.ridge, asked.leak)
    with torch.no_grad():
        ranker.expert.gate.weight.copy_(weight[None] / asked.width)
        ranker.expert.gate.bias.copy_(bias / asked.width)
    save_pairrm(asked.output, ranker, tokenizer, small=True)
    # As it was written.
    gate = Gate(load_pairrm(str(asked.output))[0], tokenizer.pad_token_id, torch.device("cpu"))
    for path, file in zip(asked.files, files, strict=True):
        sets, shares = np.array([name for name, _ in file]), gate.linear(means(gate, [row for _, row in file]))[:, 0].detach().numpy()
        print(path)
        for name in sorted(set(sets.tolist())):
            print(f"  {name} {100 * (shares[sets == name] > 0.5).mean():.1f}, {100 * (shares[sets == name] > 0).mean():.1f} % of {(sets == name).sum()}")


if __name__ == "__main__":
    main()
