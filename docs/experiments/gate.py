"""Joins a ranker and its expert: python gate.py OUTPUT RANKER EXPERT TRAIN.jsonl.gz … --layers K --sets SET,SET

EXPERT is RANKER after a training of its last K layers alone.
The gate is a logistic regression on the mean state of x behind the layers that both share. It learns to tell the instructions of SETs, which are
the expert's, from those of all other sets of TRAIN (as ranker_data.py writes it); a set of n records counts as √n, the expert's sets together as
much as the others. Then it is moved to where --leak percent of the other sets' instructions in TRAIN, each set counting the same, pass it.
Prints what passes, set by set, of TRAIN and of each further file.
"""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor
from torch.nn import functional

from blendkit.models.encoder import layers_of
from blendkit.models.expert import Gate, with_expert
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import PairRM, load_pairrm, save_pairrm
from blendkit.rankers.conversations import pair_texts

Ids = tuple[int, ...]
BATCH = 64


def sources(path: str, inputs: PairInputs) -> tuple[np.ndarray[Any, Any], list[Ids]]:
    """Each record's set, and its x."""
    with gzip.open(path) as file:
        records = [orjson.loads(line) for line in file]
    return np.array([record["set"] for record in records]), [inputs.source(pair_texts(record, [])[0]) for record in records]


def means(gate: Gate, rows: list[Ids]) -> Tensor:
    """What the gate sees of each x, [n, H]; equal ones are read once."""
    distinct = sorted(set(rows), key=len)
    found = torch.cat([gate.means(distinct[start : start + BATCH]) for start in range(0, len(distinct), BATCH)])
    place = {row: number for number, row in enumerate(distinct)}
    return found[[place[row] for row in rows]]


def fitted(seen: Tensor, wanted: Tensor, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [H] and bias of the logistic regression; `ridge` is for inputs of variance 1."""
    mean, scale = seen.mean(0), seen.std(0)
    inputs = (seen - mean) / scale
    weight, bias = torch.zeros(seen.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        of_each = functional.binary_cross_entropy_with_logits(inputs @ weight + bias, wanted, reduction="none")
        total = (of_each * weights).mean() + ridge * (weight * weight).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        return weight / scale, bias - (weight / scale) @ mean


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
    parser.add_argument("--leak", type=float, default=5.0)
    parser.add_argument("--ridge", type=float, default=0.01)
    asked = parser.parse_args()
    (ranker, tokenizer), (trained, _) = load_pairrm(asked.ranker), load_pairrm(asked.expert)
    expect_shared(ranker, trained, asked.layers)
    ranker = with_expert(ranker, trained, asked.layers)
    assert ranker.expert is not None
    gate, inputs = Gate(ranker, tokenizer.pad_token_id, torch.device("cpu")), PairInputs(tokenizer, ranker.config)
    for number, path in enumerate(asked.files):
        sets, rows = sources(path, inputs)
        seen, wanted = means(gate, rows), asked.sets.split(",")
        if number == 0:
            if lost := set(wanted) - set(sets.tolist()):
                raise SystemExit(f"--sets: no record of {path} is of {', '.join(sorted(lost))}")
            theirs = np.isin(sets, wanted)
            sizes = Counter(sets.tolist())
            weights = np.array([sizes[name] ** -0.5 for name in sets])
            weights[theirs] *= weights[~theirs].sum() / weights[theirs].sum()
            weight, bias = fitted(seen, torch.tensor(theirs).float(), torch.tensor(weights / weights.mean()).float(), asked.ridge)
            # Of every other set the share that passes, each counting the same.
            others = np.array([1 / sizes[name] for name in sets[~theirs]])
            logits = (seen @ weight + bias).numpy()[~theirs]
            order = np.argsort(-logits)
            passed = np.cumsum(others[order]) / others.sum()
            bias = bias - float(logits[order][min(np.searchsorted(passed, asked.leak / 100), len(order) - 1)])
            with torch.no_grad():
                ranker.expert.gate.weight.copy_(weight[None])
                ranker.expert.gate.bias.copy_(bias)
            save_pairrm(asked.output, ranker, tokenizer, small_vocabulary=True)
            # As it was written.
            saved, _ = load_pairrm(str(asked.output))
            assert saved.expert is not None
            weight, bias = saved.expert.gate.weight[0].detach(), saved.expert.gate.bias.detach()
        open_for = (seen @ weight + bias > 0).numpy()
        print(path, *(f"{name} {100 * open_for[sets == name].mean():.1f} % of {(sets == name).sum()}" for name in sorted(set(sets.tolist()))), sep="\n  ")


if __name__ == "__main__":
    main()
