"""Training a ranker on a causal LM: -log σ(r_better - r_worse) over a record's pairs; what is added to the LM learns, the LM itself does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from blendkit.errors import UsageError
from blendkit.models.fast.shared_prefix import Group
from blendkit.models.lm_ranker import MOST_RANK, LMInputs, LMRanker, LMRankerConfig, lm_ranker_config, load_lm_ranker, new_lm_ranker, save_lm_ranker
from blendkit.models.pretrained import pretrained
from blendkit.training.examples import Example, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.losses import PAIR_LOSSES
from blendkit.training.micro_batches import micro_batches
from blendkit.training.pointwise import expect_no_pairs
from blendkit.training.trainee import Part, Trainee, upper_layers

# The LM's weights do not learn, and this is how exact they are while the others do.
LM_DTYPE = torch.bfloat16


class LMRankerTrainee(Trainee):
    """`pair --model DIR` loads it. `micro_tokens` tokens go through at a time."""

    def __init__(self, model: LMRanker, tokenizer: Any, pairing: Pairing, *, loss: str = "instructgpt", candidates: int = 12, micro_tokens: int = 4096) -> None:
        """Raises UsageError where there is no such loss."""
        super().__init__()
        if loss not in PAIR_LOSSES:
            raise UsageError(f"--loss {loss}: expected one of {', '.join(PAIR_LOSSES)}")
        self.model, self.pairing, self.loss = model, pairing, PAIR_LOSSES[loss]
        self.sampled, self.micro_tokens = candidates, micro_tokens
        self.inputs = LMInputs(tokenizer, model.config)
        # The LM by its content, wherever it is.
        self.decides = {name: value for name, value in asdict(model.config).items() if name != "model_name"}
        # A token is some five characters.
        self.longest = 5 * max(model.config.source_maxlength, model.config.candidate_maxlength)

    @classmethod
    def start(cls, new: NewRanker, pairing: Pairing) -> Self:
        """Makes a ranker that is ready to be trained.

        Raises:
            UsageError: a setting that the kind does not have.
            NoInputError: there is no such model.
        """
        expect_no_pairs(new)
        if new.tasks != 1:
            raise UsageError("--kind lmranker: one --label, as a reward is one number")
        if new.checkpointing:
            raise UsageError("--checkpointing is not for --kind lmranker, whose LM has no gradients of its own; a lower --micro-tokens takes less memory")
        for flag, value in {"--source-maxlength": new.source_maxlength, "--candidate-maxlength": new.candidate_maxlength}.items():
            if value is not None and value < 1:
                raise UsageError(f"{flag}: expected at least 1, got {value}")
        if not 0 <= new.lora <= MOST_RANK:
            raise UsageError(f"--lora: expected 1 to {MOST_RANK:,}, got {new.lora}")
        if new.init is not None:
            config = lm_ranker_config(new.init)
            if (config.rank or not new.lora) and (new.lora or new.freeze):
                raise UsageError("--lora and --freeze are the checkpoint's that --init goes on from")
            given = {"source_maxlength": new.source_maxlength, "candidate_maxlength": new.candidate_maxlength}
            changed = {name: value for name, value in given.items() if value}
            if new.lora:
                changed |= {"rank": new.lora, "adapted_layers": _adapted(config, new.freeze)}
            model, tokenizer = load_lm_ranker(new.init, LM_DTYPE, **changed)
        else:
            if not new.lora:
                raise UsageError("--kind lmranker: the LM stays as it is, and products of some rank are added to it: --lora 32")
            lengths = new.source_maxlength or 256, new.candidate_maxlength or 384
            config = LMRankerConfig(str(new.backbone), 0, new.lora, *lengths)
            model, tokenizer = new_lm_ranker(replace(config, adapted_layers=_adapted(config, new.freeze)), LM_DTYPE)
        return cls(model, tokenizer, pairing, loss=new.loss, candidates=new.candidates, micro_tokens=new.micro_tokens)

    def freeze(self, count: int) -> None:
        """Does nothing: `start` gave products to the layers above the first `count` only."""

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Puts records of like length together, and leaves out those that have no pair to learn from."""
        rows: list[tuple[Group, list[float], list[tuple[int, int]]]] = []
        for example in examples:
            _, group = example.sampled(self.sampled, rng)
            if pairs := self.pairing.of(group, rng):
                rows.append((self._group(group), group.first(), pairs))
        sizes = [len(source) + sum(map(len, own)) for (source, own), _, _ in rows]
        found = []
        for places in micro_batches(sizes, self.micro_tokens):
            part = [rows[place] for place in places]
            found.append(Part(part, float(len(part)), sum(sizes[place] for place in places)))
        return found

    def _group(self, example: Example) -> Group:
        source = self.inputs.source(example.source)
        return source, self.inputs.candidates(example.candidates, source)

    def forward(self, part: Part) -> Tensor:
        """Sums the mean losses of the records' pairs, so that every record counts the same."""
        rewards = self.model([group for group, _, _ in part.inputs])
        losses = []
        for own, (_, labels, pairs) in zip(rewards.split([len(own) for (_, own), _, _ in part.inputs]), part.inputs, strict=True):
            left, right = torch.tensor(pairs, device=own.device).T
            labelled = torch.tensor(labels, device=own.device)
            losses.append(self.loss(own[left], own[right], labelled[left], labelled[right]).mean())
        return torch.stack(losses).sum()

    def scores(self, example: Example, rng: random.Random) -> list[float]:
        """Gives each candidate's reward."""
        found: list[float] = self.model([self._group(example)]).tolist()
        return found

    def save(self, folder: Path) -> None:
        """Writes what was added, and the name of the LM."""
        save_lm_ranker(folder, self.model)


def _adapted(config: LMRankerConfig, frozen: int) -> int:
    """How many of the layers that are read are above the first `frozen` ones."""
    from transformers import AutoConfig

    if config.read_layers:
        return len(upper_layers(range(config.read_layers[-1]), frozen))
    known = pretrained(AutoConfig, config.model_name, "causal LM that a ranker could stand on")
    return len(upper_layers(range(int(getattr(known, "num_hidden_layers", 1))), frozen))
