"""The loop that all kinds of training share: batches, optimizer, log, evaluation, early stop, exact resume.

Every random choice of a step comes from the seed and the step's number alone, and what a step needs from the past is in one
file, so that a run that was killed goes on as if nothing had been. Under `torchrun` several processes train together, and each
takes its share of a step's examples.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blendkit.errors import DataError, OutOfMemory, OutputError, UsageError, require
from blendkit.seeding import seeded
from blendkit.terminal_text import count_of
from blendkit.training.examples import Example
from blendkit.training.measure import evaluate
from blendkit.training.mixing import Mixing
from blendkit.training.processes import Processes, processes_on, training_device
from blendkit.training.state import LOG, Settings, TrainingState, add_row, cut_log, fingerprint_of, load_state, save_checkpoint, save_state
from blendkit.training.trainee import Part, Trainee

# A resumed run may run elsewhere, and may save more often: its weights are the same.
FREE = ("device", "save_every")

# Raised where the same options come to give other weights: a run that an earlier version began is not gone on with.
ARITHMETIC = 2


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the same options, data and torch build give the same weights. `average` above 0 keeps an exponential mean of the weights.

    Raises:
        UsageError: a number is out of its range.
    """

    steps: int = 1000
    examples_per_step: int = 4
    learning_rate: float = 1e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    average: float = 0.0
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    eval_every: int = 0
    patience: int = 0
    device: str = "auto"
    bfloat16: bool = True

    def __post_init__(self) -> None:
        least = {"steps": 1, "examples_per_step": 1, "save_every": 1, "log_every": 1, "eval_every": 0, "patience": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name}: expected at least {bound}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate: expected a number above 0, got {self.learning_rate}")
        if not 0 <= self.average < 1:
            raise UsageError(f"average: expected a number from 0 to below 1, got {self.average}")


def train(
    trainee: Trainee, examples: Sequence[Example], options: TrainOptions, out: Path, *, settings: Settings, evaluation: Sequence[Example] = (),
    resume: bool = False, mixing: Mixing | None = None,
) -> None:  # fmt: skip
    """Trains in place. The checkpoint in `out` is the best by the evaluation's Spearman, or the last where there is none.

    With `mixing`, the examples are drawn from a mixture of sets; otherwise each comes once an epoch.
    `settings` name what decides the weights beside options and data, such as the kind of model and its loss; `resume` refuses a
    run that had others.

    Raises:
        DataError: there is nothing to train on, or the mixture is of other sets.
        NoInputError: `resume` without a state in `out`, or with a damaged one.
        UsageError: `resume` of a run with other options, settings or data; or no such device.
        OutputError: `out` cannot be written.
        OutOfMemory: a part of a step does not fit.
    """
    if not examples:
        raise DataError("nothing to train on: no record has two candidates with labels that differ")
    if evaluation:
        require("scipy", "train", "--eval")
    processes = processes_on(training_device(options.device))
    if options.examples_per_step < processes.count:
        raise UsageError(
            f"--records-per-step {options.examples_per_step}: expected at least one for each of {count_of(processes.count, 'process', 'processes')}"
        )
    data = {"training data": fingerprint_of(examples), "evaluation data": fingerprint_of(evaluation)}
    how = {"number of processes": processes.count, "arithmetic version": ARITHMETIC}
    decides = {name: value for name, value in asdict(options).items() if name not in FREE} | dict(settings) | data | how
    order = mixing.order(examples, options.steps * options.examples_per_step, options.seed) if mixing else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        _Training(trainee, examples, evaluation, options, decides, out, processes, order).go(resume)
    except OSError as error:
        raise OutputError(f"{out}: cannot write: {error.strerror or error}") from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("not enough memory for a part of a step: lower --micro-tokens, or take --checkpointing") from error


class _Training:
    """One training: what its steps share."""

    def __init__(
        self, trainee: Trainee, examples: Sequence[Example], evaluation: Sequence[Example], options: TrainOptions, decides: Settings, out: Path,
        processes: Processes, order: list[int] | None,
    ) -> None:  # fmt: skip
        self.trainee, self.examples, self.evaluation, self.options = trainee.to(processes.device), examples, evaluation, options
        self.decides, self.out, self.processes, self.order = decides, out, processes, order
        self.optimizer = torch.optim.AdamW(trainee.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
        self.network = processes.joined(trainee)
        self.average = {key: value.detach().clone() for key, value in _weights(trainee).items()} if options.average else None
        self.state = TrainingState()

    def go(self, resume: bool) -> None:
        """All steps that are left."""
        if resume:
            self.state = load_state(self.out, self.decides, self.trainee, self.optimizer, self.average)
        # No process writes the log before all have read what a killed run left.
        self.processes.wait()
        if self.processes.is_main:
            if resume:
                cut_log(self.out, self.state.step)
            else:
                (self.out / LOG).unlink(missing_ok=True)
        started = time.monotonic() - self.state.seconds
        with ThreadPoolExecutor(1, "ahead") as ahead:
            # A step's texts are tokenized while the device computes the one before it; on a CPU that is a small part of a step.
            following = ahead.submit(self._parts, self.state.step + 1)
            for step in range(self.state.step + 1, self.options.steps + 1):
                parts = following.result()
                following = ahead.submit(self._parts, step + 1)
                loss, tokens = self._update(step, parts)
                self.state.step, self.state.tokens, self.state.seconds = step, self.state.tokens + tokens, time.monotonic() - started
                self.state.losses.append(loss)
                # Texts are tokenized by one thread at a time, and measuring tokenizes, too.
                wait([following])
                if self._after(step):
                    break
        self.trainee.eval()
        # The checkpoint is whole when any process goes on.
        self.processes.wait()

    def _parts(self, step: int) -> list[Part]:
        """What goes through the network in a step, of this process's share of its examples; nothing behind the last step."""
        options, processes = self.options, self.processes
        if step > options.steps:
            return []
        rng = random.Random(seeded(options.seed, "step", str(step), str(processes.index)))
        batch = batch_of(self.examples, options, step, self.order)
        return self.trainee.parts(share_of(batch, self.trainee.characters, processes.index, processes.count), rng)

    def _update(self, step: int, parts: list[Part]) -> tuple[float, int]:
        """One update of the weights; the mean loss of all its terms, and its tokens, over all processes."""
        options, processes = self.options, self.processes
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * warm_up_and_decay(step / options.steps, options.warmup)
        torch.manual_seed(seeded(options.seed, "dropout", str(step), str(processes.index)))
        self.trainee.train()
        # Gradients travel together: where one process's records have no pair to learn from, all of them pass this step over.
        if float(processes.total(float(not parts))):
            parts = []
        terms = processes.total(float(sum(part.count for part in parts))).clamp_min(1.0)
        summed = torch.zeros((), device=processes.device)
        for number, part in enumerate(parts):
            # Gradients travel between processes with the last part only.
            last = number == len(parts) - 1
            with nullcontext() if last else processes.without_exchange(self.network), self._autocast():
                loss = self.network(part).float() / terms
                # The processes' gradients are averaged, and `terms` is of all of them.
                (loss * processes.count).backward()
            summed += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for key, value in _weights(self.trainee).items() if self.average is not None else ():
            self.average[key].lerp_(value.detach(), 1 - options.average)  # type: ignore[index]
        return float(processes.total(summed)), int(processes.total(sum(part.tokens for part in parts)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=self.options.bfloat16)

    def _after(self, step: int) -> bool:
        """Log, evaluation and what is saved after a step; True where the run stops early, in all processes alike."""
        options, state, main = self.options, self.state, self.processes.is_main
        last = step == options.steps
        row: dict[str, Any] = {}
        if step % options.log_every == 0 or last:
            row = {"loss": round(float(np.mean(state.losses)), 5), "tokens": state.tokens, "seconds": round(state.seconds, 1)}
            state.losses = []
        stop = False
        if self.evaluation and ((options.eval_every and step % options.eval_every == 0) or last):
            with _averaged(self.trainee, self.average):
                row |= evaluate(self.trainee, self.evaluation, options.seed, self.processes)
                better = row["spearman"] > state.best
                state.best, state.since_best = (row["spearman"], 0) if better else (state.best, state.since_best + 1)
                if better and main:
                    save_checkpoint(self.trainee, self.out)
            stop = bool(options.patience) and state.since_best >= options.patience
        if row and main:
            add_row(self.out, {"step": step, **row})
        if (step % options.save_every == 0 or last or stop) and main:
            if not self.evaluation:
                with _averaged(self.trainee, self.average):
                    save_checkpoint(self.trainee, self.out)
            save_state(self.out, state, self.decides, self.trainee, self.optimizer, self.average)
        return stop


def batch_of(examples: Sequence[Example], options: TrainOptions, step: int, order: Sequence[int] | None = None) -> list[Example]:
    """The examples of a step, by the places in `order`; or every example comes once an epoch, in a new order each time; a short last batch is left out."""
    if order is not None:
        return [examples[place] for place in order[(step - 1) * options.examples_per_step : step * options.examples_per_step]]
    size = min(options.examples_per_step, len(examples))
    epoch, place = divmod(step - 1, len(examples) // size)
    return [examples[number] for number in _order(options.seed, epoch, len(examples))[place * size : (place + 1) * size]]


def share_of(batch: Sequence[Example], size: Callable[[Example], float], index: int, count: int) -> list[Example]:
    """What one of `count` processes gets of a step's examples: the largest are dealt first, back and forth, so that none waits long for another."""
    if count == 1:
        return list(batch)
    turns = [*range(count), *reversed(range(count))]
    return [example for place, example in enumerate(sorted(batch, key=size, reverse=True)) if turns[place % len(turns)] == index]


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of an epoch, drawn once for all its steps."""
    return random.Random(seeded(seed, "epoch", str(epoch))).sample(range(count), count)


def warm_up_and_decay(progress: float, warmup: float) -> float:
    """The learning rate's factor: linear up to 1 at `warmup`, linear down to 0 at the end."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def _weights(trainee: Trainee) -> dict[str, Tensor]:
    return {key: value for key, value in trainee.state_dict().items() if value.is_floating_point()}


class _averaged:
    """The trainee with the averaged weights for as long as it is saved or evaluated."""

    def __init__(self, trainee: Trainee, average: dict[str, Tensor] | None) -> None:
        self.trainee, self.average = trainee, average
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        if self.average is not None:
            self.kept = {key: value.detach().clone() for key, value in _weights(self.trainee).items()}
            self.trainee.load_state_dict(self.average, strict=False)

    def __exit__(self, *ending: object) -> None:
        if self.average is not None:
            self.trainee.load_state_dict(self.kept, strict=False)
