"""How well a ranker in training orders the candidates of records that it does not learn from."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from blendkit.errors import UsageError
from blendkit.seeding import seeded
from blendkit.training.examples import Example
from blendkit.training.processes import Processes
from blendkit.training.trainee import Trainee


@torch.no_grad()
def evaluate(trainee: Trainee, examples: Sequence[Example], seed: int, processes: Processes) -> dict[str, float]:
    """Against the first task's labels: pair accuracy (of pairs that differ), mean Spearman, and the label's mean rank of the top choice.

    Each process scores its share of the examples, and all compute the figures from everybody's scores: what follows from a
    figure, such as an early stop, is the same in every process.

    Raises:
        UsageError: the kind of model gives no scores.
    """
    from scipy import stats

    trainee.eval()
    own = [trainee.scores(example, random.Random(seeded(seed, "evaluation", example.id))) for example in examples[processes.index :: processes.count]]
    trainee.train()
    shares = processes.gathered(own)
    right = pairs = 0.0
    spearman, ranks = [], []
    for number, example in enumerate(examples):
        scores = shares[number % processes.count][number // processes.count]
        if scores is None:
            raise UsageError("this kind of model gives candidates no scores: leave --eval out")
        labels, found = np.array(example.first()), np.array(scores)
        truth, guess = np.sign(labels[:, None] - labels), np.sign(found[:, None] - found)
        right += float(((truth == guess) & (truth > 0)).sum() + 0.5 * ((guess == 0) & (truth > 0)).sum())
        pairs += float((truth > 0).sum())
        if len(set(labels)) > 1:
            value = stats.spearmanr(found, labels).statistic if len(set(scores)) > 1 else 0.0
            spearman.append(100 * float(value))
        ranks.append(1 + float((labels > labels[int(found.argmax())]).sum()))
    return {
        "pair_accuracy": round(100 * right / max(1.0, pairs), 2),
        "spearman": round(float(np.mean(spearman)), 2) if spearman else 0.0,
        "oracle_rank": round(float(np.mean(ranks)), 3),
    }
