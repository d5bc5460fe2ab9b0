"""Training PairRanker (LLM-Blender, section 3.2): x and two candidates in one input, which is better?

Two modes, usually one after the other:

- `singles`: x is encoded with one candidate at a time, and every pair among a record's sampled candidates enters the loss.
  One pass over 12 candidates gives 66 pairs, so an encoder learns what a good answer is at a fraction of the cost of pairs.
- `pairs`: the real input of PairRanker, x with two candidates in a random order.

Both train the same encoder and the same head, which has one output a task (Q function).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blendkit.aggregate import matrix, max_logits
from blendkit.errors import UsageError
from blendkit.models.encoder import without_attention_dropout
from blendkit.models.pair_inputs import PairInputs, Segment
from blendkit.models.pairrm import PairRM, save_pairrm
from blendkit.training.examples import Example, Pairing
from blendkit.training.losses import PAIR_LOSSES
from blendkit.training.micro_batches import micro_batches
from blendkit.training.trainee import Part, Trainee

Rows = list[list[Segment]]


class PairRankerTrainee(Trainee):
    """`pairing` says which pairs of a record are learnt from, `micro_tokens` how many padded tokens go through at a time."""

    def __init__(
        self, model: PairRM, tokenizer: Any, pairing: Pairing, *, loss: str = "instructgpt", mode: str = "pairs", candidates: int = 12,
        micro_tokens: int = 4096,
    ) -> None:  # fmt: skip
        """`candidates` of a record are sampled a step in the mode `singles`.

        Raises:
            UsageError: there is no such loss or mode.
        """
        super().__init__()
        if loss not in PAIR_LOSSES:
            raise UsageError(f"--loss {loss}: expected one of {', '.join(PAIR_LOSSES)}")
        if mode not in ("singles", "pairs"):
            raise UsageError(f"--mode {mode}: expected singles or pairs")
        self.model, self.tokenizer, self.pairing, self.loss = model, tokenizer, pairing, PAIR_LOSSES[loss]
        self.mode, self.sampled, self.micro_tokens = mode, candidates, micro_tokens
        without_attention_dropout(model)
        self.inputs = PairInputs(tokenizer, model.config)
        # A token is some five characters.
        self.longest = 5 * max(model.config.source_maxlength, model.config.candidate_maxlength)
        self._ids: dict[tuple[str, ...], tuple[tuple[int, ...], list[tuple[int, ...]]]] = {}

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Gives groups of pairs of like length; in `singles`, a part holds one record's candidates."""
        return self._single_parts(examples, rng) if self.mode == "singles" else self._pair_parts(examples, rng)

    def _single_parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        found = []
        for example in examples:
            source, candidates = self._encoded(example)
            chosen, shown = example.sampled(self.sampled, rng)
            pairs = self.pairing.of(shown, rng)
            rows = [self.inputs.single(source, candidates[k], rng.choice((1, 2))) for k in chosen]
            if pairs:
                # Every record counts the same, however many pairs it has.
                found.append(Part((rows, shown.labels, pairs), 1.0, _tokens(rows)))
        return found

    def _pair_parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        rows: list[tuple[list[Segment], list[float], list[float]]] = []
        for example in examples:
            source, candidates = self._encoded(example)
            for pair in self.pairing.of(example, rng):
                first, second = pair if rng.random() < 0.5 else pair[::-1]
                rows.append((self.inputs.pair(source, candidates[first], candidates[second]), example.labels[first], example.labels[second]))
        parts = []
        for places in micro_batches([_tokens([row]) for row, _, _ in rows], self.micro_tokens):
            chosen = [rows[place] for place in places]
            segments, left, right = (list(column) for column in zip(*chosen, strict=True))
            parts.append(Part((segments, left, right), float(len(chosen)), _tokens(segments)))
        return parts

    def forward(self, part: Part) -> Tensor:
        """Sums the loss over pairs and takes its mean over tasks; in `singles`, it is the mean over the record's pairs."""
        if self.mode == "singles":
            rows, labels, pairs = part.inputs
            scores = self._single_scores(rows)
            truth = torch.tensor(labels, device=scores.device)
            left, right = torch.tensor(pairs, device=scores.device).T
            return self.loss(scores[left], scores[right], truth[left], truth[right]).mean()
        rows, left_labels, right_labels = part.inputs
        firsts, seconds = self._pair_scores(rows)
        first_labels, second_labels = (torch.tensor(labels, device=firsts.device) for labels in (left_labels, right_labels))
        return self.loss(firsts, seconds, first_labels, second_labels).mean(dim=1).sum()

    def scores(self, example: Example, rng: random.Random) -> list[float]:
        """Compares every pair once, in a drawn order, and gives MaxLogits; in `singles`, gives the candidates' own scores."""
        source, candidates = self._encoded(example)
        if self.mode == "singles":
            rows = [self.inputs.single(source, ids, 1) for ids in candidates]
            own: list[float] = self._single_scores(rows).mean(dim=1).tolist()
            return own
        pairs = [(i, j) if rng.random() < 0.5 else (j, i) for i in range(len(candidates)) for j in range(i + 1, len(candidates))]
        rows = [self.inputs.pair(source, candidates[i], candidates[j]) for i, j in pairs]
        logits = [0.0] * len(rows)
        for places in micro_batches([_tokens([row]) for row in rows], self.micro_tokens):
            left, right = self._pair_scores([rows[place] for place in places])
            for place, value in zip(places, (left - right).mean(dim=1).tolist(), strict=True):
                logits[place] = value
        m = matrix([(i, j, logit) for (i, j), logit in zip(pairs, logits, strict=True)], len(candidates))
        return [float(score) for score in max_logits(m)]

    def network(self) -> torch.nn.Module:
        """The encoder."""
        return self.model.pretrained_model

    def save(self, folder: Path) -> None:
        """Writes the layout that `pair --model` loads, in float16."""
        save_pairrm(folder, self.model, self.tokenizer)

    def _encoded(self, example: Example) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        # The texts are the key, as two records may share an id.
        key = (example.source, *example.candidates)
        found = self._ids.get(key)
        if found is None:
            source = self.inputs.source(example.source)
            found = self._ids[key] = (source, self.inputs.candidates(example.candidates, source))
        return found

    def _single_scores(self, rows: Rows) -> Tensor:
        """Gives scores [N, T] in the order of the rows, which go through the network by like length."""
        groups = micro_batches([_tokens([row]) for row in rows], self.micro_tokens)
        found = []
        for places in groups:
            tensors, markers = self._on_device([rows[place] for place in places])
            found.append(self.model.score(self.model.encode(tensors), markers[:, 0], markers[:, 1]))
        order = [place for places in groups for place in places]
        return torch.cat(found).float()[torch.tensor(order).argsort()]

    def _pair_scores(self, rows: Rows) -> tuple[Tensor, Tensor]:
        tensors, markers = self._on_device(rows)
        states = self.model.encode(tensors)
        left = self.model.score(states, markers[:, 0], markers[:, 1]).float()
        return left, self.model.score(states, markers[:, 0], markers[:, 2]).float()

    def _on_device(self, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
        device = next(self.model.parameters()).device
        tensors, markers = self.inputs.collate(rows)
        return {key: value.to(device) for key, value in tensors.items()}, markers.to(device)


def _tokens(rows: Sequence[Sequence[Segment]]) -> int:
    return sum(len(segment.ids) for row in rows for segment in row)
