"""Training a late-paired PairRanker: a record's x and candidates are read once, and all its sampled pairs enter the loss.

The packed path of `models.fast.late` is made anew each step of the weights as they are, and gradients go through it: no token is
padding, and twelve candidates with all their 66 pairs cost hardly more than twelve reads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from blendkit.aggregate import matrix, max_logits
from blendkit.errors import UsageError
from blendkit.models.fast.late import Ids, Late
from blendkit.models.pairrm import PairRM
from blendkit.training.examples import Example, Pair, Pairing
from blendkit.training.pairranker import PairRankerTrainee
from blendkit.training.trainee import Part

# x, the sampled candidates, their labels, and the pairs that are learnt from.
Group = tuple[Ids, list[Ids], list[list[float]], list[Pair]]


class LatePairRankerTrainee(PairRankerTrainee):
    """`candidates` of a record are sampled a step, `micro_tokens` bounds the tokens of the records that go through together."""

    def __init__(self, model: PairRM, tokenizer: Any, pairing: Pairing, *, checkpointing: bool = False, **options: Any) -> None:
        """Raises UsageError for the mode `singles`, and NoInputError where the encoder has no packed form."""
        super().__init__(model, tokenizer, pairing, **options)
        if self.mode == "singles":
            raise UsageError("--mode singles: a late-paired ranker reads each candidate once as it is; --paired-layers 0 keeps candidates apart")
        self.checkpointing = checkpointing
        self._late()

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Gives groups of whole records; one with more tokens than fit is a part of its own."""
        parts: list[Part] = []
        for example in examples:
            source, candidates = self._encoded(example)
            chosen, shown = example.sampled(self.sampled, rng)
            pairs = self.pairing.of(shown, rng)
            if not pairs:
                continue
            group: Group = (source, [candidates[k] for k in chosen], shown.labels, pairs)
            tokens = len(source) + sum(map(len, group[1]))
            if parts and parts[-1].tokens + tokens <= self.micro_tokens:
                parts[-1] = Part([*parts[-1].inputs, group], parts[-1].count + 1, parts[-1].tokens + tokens)
            else:
                parts.append(Part([group], 1.0, tokens))
        return parts

    def forward(self, part: Part) -> Tensor:
        """Sums over records the mean loss of a record's pairs, so that every record counts the same."""
        groups: list[Group] = part.inputs
        lefts, rights = self._compared([(source, candidates, pairs) for source, candidates, _, pairs in groups])
        sizes = [len(pairs) for *_, pairs in groups]
        truth = [torch.tensor([labels[pair[side]] for _, _, labels, pairs in groups for pair in pairs]) for side in (0, 1)]
        left_labels, right_labels = (labels.to(lefts.device) for labels in truth)
        losses = self.loss(lefts, rights, left_labels, right_labels).mean(dim=1)
        return torch.stack([part.mean() for part in torch.split(losses, sizes)]).sum()

    def scores(self, example: Example, rng: random.Random) -> list[float]:
        """Compares every pair, whose order means nothing, and gives MaxLogits."""
        source, candidates = self._encoded(example)
        pairs = list(combinations(range(len(candidates)), 2))
        left, right = self._compared([(source, candidates, pairs)])
        logits = zip(pairs, (left - right).mean(dim=1).tolist(), strict=True)
        # Both orders, as one gives the other: of one alone, MaxLogits would take its favour of the first place away.
        m = matrix([row for (i, j), logit in logits for row in ((i, j, logit), (j, i, -logit))], len(candidates))
        return [float(score) for score in max_logits(m)]

    def _late(self) -> Late:
        device = next(self.model.parameters()).device
        # The whole packed path computes in autocast's type, as where it reads: casts between two types took a quarter of a step.
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        return Late(self.model, device, dtype, gradients=True, checkpointing=self.checkpointing and self.training)

    def _compared(self, records: Sequence[tuple[Ids, Sequence[Ids], Sequence[Pair]]]) -> tuple[Tensor, Tensor]:
        """Scores [n, T] of the first and of the second candidates of all pairs."""
        late, head = self._late(), self.model.head_layer
        with torch.autocast(late.device.type, enabled=False):
            reads = late.read([(source, candidates) for source, candidates, _ in records])
            states = late.compare([(read[i], read[j]) for read, (_, _, pairs) in zip(reads, records, strict=True) for i, j in pairs])
            source, first, second = states.unbind(1)
            return head(torch.cat([source, first], -1)), head(torch.cat([source, second], -1))
