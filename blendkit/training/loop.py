"""The loop that all kinds of training share: batches, optimizer, log, evaluation, early stop, exact resume.

Every random choice of a step comes from the seed and the step's number alone, and what a step needs from the past is in one
file, so that a run that was killed goes on as if nothing had been. Accelerate brings bfloat16 and, under `accelerate launch`,
several processes: each takes its share of a step's examples.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blendkit.errors import DataError, NoInputError, UsageError, require
from blendkit.running import seeded
from blendkit.training.examples import Example

STATE = "training.state.pt"
LOG = "train.log.jsonl"


@dataclass
class Part:
    """What goes through the network at a time; `count` is how many terms its loss sums."""

    inputs: Any
    count: float
    tokens: int


class Trainee(nn.Module, ABC):
    """One kind of model in training. Its forward gives the summed loss of a part."""

    @abstractmethod
    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """The examples of a step, cut into what fits in memory."""

    @abstractmethod
    def scores(self, example: Example, rng: random.Random) -> list[float] | None:
        """Scores of the example's candidates, for the evaluation; None for a model that gives none."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes a checkpoint that the commands load."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the same options, data and torch build give the same weights. `average` above 0 keeps an exponential mean of the weights."""

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


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    best: float = -math.inf
    since_best: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(trainee: Trainee, examples: Sequence[Example], options: TrainOptions, out: Path, evaluation: Sequence[Example] = (), resume: bool = False) -> None:
    """Trains in place. The checkpoint in `out` is the best by the evaluation's Spearman, or the last where there is none.

    Raises:
        DataError: there is nothing to train on.
        UsageError: `resume` without a state in `out` or with other options, or the extra `train` is not installed.
    """
    if not examples:
        raise DataError("nothing to train on: no record has two candidates with labels that differ")
    for library in ("accelerate", "scipy"):
        require(library, "train", "train")
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()

    cpu = options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available())
    # An encoder's pooler, say, has no part in the loss.
    several = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if options.bfloat16 else "no", kwargs_handlers=[several])
    if options.examples_per_step < accelerator.num_processes:
        raise UsageError(f"--records-per-step {options.examples_per_step}: expected at least one for each of {accelerator.num_processes} processes")
    set_seed(options.seed)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    network, optimizer = accelerator.prepare(trainee, optimizer)
    average = {key: value.detach().clone() for key, value in _weights(trainee).items()} if options.average else None
    progress = Progress()
    out.mkdir(parents=True, exist_ok=True)
    if resume:
        progress = _resumed(out, trainee, optimizer, average, options)
        _cut_log(out / LOG, progress.step)
    elif (out / LOG).exists():
        (out / LOG).unlink()
    started = time.monotonic() - progress.seconds
    for step in range(progress.step + 1, options.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * warm_up_and_decay(step / options.steps, options.warmup)
        loss, tokens = _step(accelerator, network, trainee, optimizer, batch_of(examples, options, step), step, options)
        if average is not None:
            for key, value in _weights(trainee).items():
                average[key].lerp_(value.detach(), 1 - options.average)
        progress.step, progress.tokens, progress.seconds = step, progress.tokens + tokens, time.monotonic() - started
        progress.losses.append(loss)
        last = step == options.steps
        row: dict[str, Any] = {}
        if step % options.log_every == 0 or last:
            row = {"loss": round(float(np.mean(progress.losses)), 5), "tokens": progress.tokens, "seconds": round(progress.seconds, 1)}
            progress.losses = []
        stop = False
        if evaluation and ((options.eval_every and step % options.eval_every == 0) or last):
            with _averaged(trainee, average):
                row |= evaluate(trainee, evaluation, options.seed)
                better = row["spearman"] > progress.best
                progress.best, progress.since_best = (row["spearman"], 0) if better else (progress.best, progress.since_best + 1)
                if better and accelerator.is_main_process:
                    _save(trainee, out)
            stop = bool(options.patience) and progress.since_best >= options.patience
        if row and accelerator.is_main_process:
            with (out / LOG).open("a") as log:
                log.write(json.dumps({"step": step, **row}) + "\n")
        if (step % options.save_every == 0 or last or stop) and accelerator.is_main_process:
            if not evaluation:
                with _averaged(trainee, average):
                    _save(trainee, out)
            _keep(out, trainee, optimizer, average, progress, options)
        if stop:
            break
    trainee.eval()


def _step(accelerator: Any, network: Any, trainee: Trainee, optimizer: Any, batch: list[Example], step: int, options: TrainOptions) -> tuple[float, int]:
    """One update; the mean loss of all its terms, and its tokens."""
    torch.manual_seed(seeded(options.seed, "dropout", str(step), str(accelerator.process_index)))
    rng = random.Random(seeded(options.seed, "step", str(step), str(accelerator.process_index)))
    trainee.train()
    parts = trainee.parts(batch[accelerator.process_index :: accelerator.num_processes], rng)
    # Gradients travel together: where one process's records have no pair to learn from, all of them pass this step over.
    if float(accelerator.reduce(torch.tensor(float(not parts), device=accelerator.device))):
        parts = []
    terms = accelerator.reduce(torch.tensor(float(sum(part.count for part in parts)), device=accelerator.device)).clamp_min(1.0)
    summed = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts):
        # Gradients travel between processes with the last part only.
        with nullcontext() if number == len(parts) - 1 else accelerator.no_sync(network), accelerator.autocast():
            loss = network(part) / terms
            accelerator.backward(loss * accelerator.num_processes)
        summed += loss.detach()
    accelerator.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(accelerator.reduce(summed)), sum(part.tokens for part in parts) * accelerator.num_processes


def batch_of(examples: Sequence[Example], options: TrainOptions, step: int) -> list[Example]:
    """The examples of a step: every example comes once an epoch, in a new order each time; a short last batch is left out."""
    size = min(options.examples_per_step, len(examples))
    epoch, place = divmod(step - 1, len(examples) // size)
    order = random.Random(seeded(options.seed, "epoch", str(epoch))).sample(range(len(examples)), len(examples))
    return [examples[number] for number in order[place * size : (place + 1) * size]]


def warm_up_and_decay(progress: float, warmup: float) -> float:
    """The learning rate's factor: linear up to 1 at `warmup`, linear down to 0 at the end."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


@torch.no_grad()
def evaluate(trainee: Trainee, examples: Sequence[Example], seed: int) -> dict[str, float]:
    """Against the first task's labels: pair accuracy (of pairs that differ), mean Spearman, and the label's mean rank of the top choice."""
    from scipy import stats

    trainee.eval()
    right = pairs = 0.0
    spearman, ranks = [], []
    for example in examples:
        scores = trainee.scores(example, random.Random(seeded(seed, "evaluation", example.id)))
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
    trainee.train()
    return {
        "pair_accuracy": round(100 * right / max(1.0, pairs), 2),
        "spearman": round(float(np.mean(spearman)), 2) if spearman else 0.0,
        "oracle_rank": round(float(np.mean(ranks)), 3),
    }


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


def _save(trainee: Trainee, out: Path) -> None:
    """The checkpoint, for whom the user's umask lets read it; the libraries that write it have modes of their own."""
    trainee.save(out)
    os.umask(mask := os.umask(0))
    for path in out.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _keep(out: Path, trainee: Trainee, optimizer: Any, average: dict[str, Tensor] | None, progress: Progress, options: TrainOptions) -> None:
    """Everything that a resumed run needs, in one file that is whole or not there."""
    state = {"progress": asdict(progress), "options": asdict(options), "weights": trainee.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    torch.save(state, out / f"{STATE}.new")
    os.replace(out / f"{STATE}.new", out / STATE)


def _resumed(out: Path, trainee: Trainee, optimizer: Any, average: dict[str, Tensor] | None, options: TrainOptions) -> Progress:
    try:
        state = torch.load(out / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NoInputError(f"--resume: no {STATE} in {out}; a run writes it every {options.save_every} steps") from error
    different = [key for key, value in asdict(options).items() if key not in ("device", "save_every") and state["options"][key] != value]
    if different:
        raise UsageError(f"--resume: the run in {out} had other values of {', '.join(different)}")
    trainee.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        for key, value in state["average"].items():
            average[key].copy_(value)
    return Progress(**state["progress"])


def _cut_log(path: Path, step: int) -> None:
    """Leaves the rows up to the step that the state is of."""
    rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step] if path.exists() else []
    path.write_text("".join(f"{row}\n" for row in rows))


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
