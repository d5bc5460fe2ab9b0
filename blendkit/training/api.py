"""Training as Python functions: records in, a checkpoint in a directory out, and the rows of its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blendkit.arguments import File, Records, checked, one, several
from blendkit.errors import DataError, OutputError, UsageError

if TYPE_CHECKING:
    from blendkit.training.examples import Example
    from blendkit.training.loop import TrainOptions
    from blendkit.training.mixing import Mixing
    from blendkit.training.trainee import Trainee

Rows = list[dict[str, Any]]


@checked
def train_ranker(
    records: Records,
    output: File,
    *,
    kind: str = "pairranker",
    backbone: File | None = None,
    init: File | None = None,
    labels: Sequence[str] | None = None,
    human: str | None = None,
    log_odds: bool = False,
    margin: float = 0.0,
    with_reference: bool = False,
    subsampling: str = "random",
    pairs_per_input: int = 5,
    balance_length: bool = False,
    longer_wins: float | None = None,
    longer_wins_in: Sequence[str] | None = None,
    mix: str | None = None,
    temperature: float = 1.0,
    weights: Sequence[str] | None = None,
    candidates: int = 12,
    loss: str = "instructgpt",
    mode: str = "pairs",
    source_maxlength: int | None = None,
    candidate_maxlength: int | None = None,
    positions: str = "segment",
    candidate_bias: float | None = None,
    paired_layers: int | None = None,
    checkpointing: bool = False,
    freeze: int = 0,
    lora: int = 0,
    evaluation: Records | None = None,
    eval_every: int = 0,
    eval_records: int = 100,
    patience: int = 0,
    steps: int = 1000,
    records_per_step: int = 4,
    learning_rate: float = 1e-4,
    average: float = 0.0,
    micro_tokens: int = 4096,
    bfloat16: bool = True,
    save_every: int = 200,
    log_every: int = 20,
    resume: bool = False,
    plot: File | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Rows:
    """Trains a ranker on records whose candidates have scores, or which people have judged, as `blendkit train ranker` does.

    Args:
        records: with `candidates[].scores` of the names in `labels`, or the field `human`. Records with the same x and the same
            id, or without an id, are joined.
        output: directory of the checkpoint, of `train.log.jsonl`, and of the state that `resume` goes on from.
        kind: pairranker (`blendkit.pair` loads it), summareranker, simcls or reward (`blendkit.score` loads them), or lmranker (`blendkit.pair` loads it).
        backbone: the encoder to start from, a directory or a hub id; for reward a causal model, too, for lmranker a chat model.
        init: the checkpoint to go on from, instead of `backbone`.
        labels: names of scores, higher is better; several are a task each.
        human: a field that holds A, B or tie, in records with two candidates.
        log_odds: the labels are probabilities, and their log-odds are compared.
        margin: pairs whose labels differ by no more than this are left out.
        with_reference: mixes the reference into the pool, as the best.
        subsampling: which pairs of a record: random, all-pair, top-bottom or uniform.
        pairs_per_input: pairs of a record a step.
        balance_length: in half of a record's pairs the shorter candidate is the better one, as far as there are such pairs.
        longer_wins: in this percentage of the pairs the longer candidate is the better one, as far as there are such pairs: of a
            record's pairs, and of the records of two candidates of a set.
        longer_wins_in: SET=NUMBER, the same percentage for one set of `mix`.
        mix: a field that names a record's set. Sets of n records are drawn in proportion to n^(1 / `temperature`).
        temperature: 1 mixes sets by their sizes; the higher, the more alike are their shares.
        weights: SET=NUMBER multiplies the share of a set, 1 otherwise.
        candidates: candidates of a record a step, where they are read one by one.
        loss: pairranker, reward and lmranker: instructgpt, bce, soft or mse.
        mode: pairranker: `pairs` read together, or `singles`.
        source_maxlength: tokens of x; None takes 128 (lmranker 256), or the checkpoint's.
        candidate_maxlength: tokens of a candidate; None takes 128 (lmranker 384), or the checkpoint's.
        positions: pairranker: `running`, or `segment`, where every text counts from 0.
        candidate_bias: pairranker: added to attention between the two candidates.
        paired_layers: pairranker: reads x and each candidate once, and lets a pair's candidates see each other in so many of the last
            layers (0, 1 or 2); None is the checkpoint's own, or the paper's ranker, whose candidates see each other in all.
        checkpointing: gradient checkpointing, which takes less memory and more time.
        freeze: the embeddings and so many of the lowest layers stay as they are, which takes less time.
        lora: lmranker: the rank of what is added to the matrices of the LM's layers that are not frozen.
        evaluation: records to measure on; the checkpoint with the best Spearman is kept.
        eval_every: steps between two measurements; 0 measures at the end.
        eval_records: how many records are measured on.
        patience: stops after so many measurements without a better one; 0 never stops.
        steps: optimizer steps.
        records_per_step: records a step, over all processes.
        learning_rate: its peak, after a linear warm-up and before a linear decay.
        average: decay of an exponential mean of the weights, which is then saved; 0 takes none.
        micro_tokens: padded tokens that go through the network at a time.
        bfloat16: bfloat16 autocast; False trains in float32 (of lmranker the LM stays in bfloat16).
        save_every: steps between two states.
        log_every: steps between two rows of the log.
        resume: goes on with the run in `output`, exactly as if it had not stopped.
        plot: draws the log into this .png, .svg or .pdf.
        device: auto, cpu, cuda, cuda:N or mps.
        seed: fixes initialisation, sampling and order.

    Raises:
        UsageError: an argument is wrong, or `resume` meets a run with other arguments or other records.
        DataError: a record is bad, or there is nothing to train or measure on.
        NoInputError: there is no such model, or no whole state to resume from.
        OutputError: `output` cannot be written.
        OutOfMemory: a part of a step does not fit.

    Example:
        log = blendkit.train_ranker(scored, "my-ranker", labels=["bertscore"], backbone="microsoft/deberta-v3-base", steps=1000)
        better = list(blendkit.pair(records, "my-ranker"))
    """
    names = tuple(several(labels) or ())
    backbone, init, plot = one(backbone), one(init), one(plot)
    if not names and not human:
        raise UsageError("no label: --label NAME, a score of the candidates, or --human FIELD")
    from blendkit.training.loop import TrainOptions

    options = TrainOptions(
        steps, records_per_step, learning_rate, average=average, seed=seed, save_every=save_every, log_every=log_every, eval_every=eval_every,
        patience=patience, device=device, bfloat16=bfloat16,
    )  # fmt: skip
    _check(options, output, plot)

    from blendkit.training.examples import Labels, Pairing
    from blendkit.training.files import read_examples
    from blendkit.training.kinds import NewRanker, new_trainee
    from blendkit.training.mixing import Mixing

    # Without names, people's preferences alone are one task.
    if balance_length and longer_wins is not None:
        raise UsageError("--balance-length is 50 % of a record's pairs; give either that or --longer-wins")
    mixing = Mixing.of(mix, temperature, several(weights) or (), longer_wins, several(longer_wins_in) or ())
    read = Labels(names or ("",), human, log_odds, with_reference, margin, mix)
    longer = 0.5 if balance_length else None if longer_wins is None else longer_wins / 100
    pairing = Pairing(subsampling, pairs_per_input, margin, ties=loss == "soft", longer=longer, longer_in=mixing.longer() if mixing else {})
    new = NewRanker(
        backbone, init, len(read.names), loss, mode, candidates, source_maxlength, candidate_maxlength, positions, candidate_bias, micro_tokens, checkpointing,
        freeze, paired_layers, lora,
    )  # fmt: skip
    trainee = new_trainee(kind, new, pairing)
    examples = [example for example in read_examples(records, read.read) if pairing.ties or _differ(example, margin)]
    measured: list[Example] = []
    if evaluation is not None:
        measured = read_examples(evaluation, Labels(read.names, human, log_odds).read)[:eval_records]
        if not measured:
            raise DataError("nothing to measure on: no record of --eval has two candidates with labels")
    settings = {
        "kind": kind, "subsampling": subsampling, "pairs_per_input": pairs_per_input, "margin": margin, "balance_length": balance_length,
        "longer_wins": longer_wins, "mix": mix, "temperature": temperature, "weights": list(weights or ()),
        # States that were written before there was such a setting lack it.
        **({"longer_wins_in": several(longer_wins_in)} if longer_wins_in else {}),
        **_deciding(asdict(new)), **trainee.decides, "init or backbone": _start(init or backbone, output),
    }  # fmt: skip
    return _run(trainee, examples, options, output, settings, measured, resume, plot, mixing)


@checked
def train_fuser(
    records: Records,
    output: File,
    *,
    backbone: File,
    ranks: str = "pairrm",
    top: int = 3,
    random_top: bool = False,
    lora: int = 0,
    max_length: int = 1024,
    candidate_maxlength: int = 128,
    output_maxlength: int = 256,
    checkpointing: bool = False,
    steps: int = 1000,
    records_per_step: int = 8,
    learning_rate: float = 5e-5,
    average: float = 0.0,
    micro_tokens: int = 4096,
    bfloat16: bool = True,
    save_every: int = 200,
    log_every: int = 20,
    resume: bool = False,
    plot: File | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Rows:
    """Trains GenFuser to write the reference from x and the top candidates, as `blendkit train fuser` does; `blendkit.fuse` loads it.

    Args:
        records: with a reference (`output`) and `ranks` of the name `ranks`.
        output: directory of the checkpoint, of `train.log.jsonl`, and of the state that `resume` goes on from.
        backbone: the seq2seq or causal model to start from, a directory or a hub id.
        ranks: which ranking the top candidates are of.
        top: candidates that the fuser reads, best first.
        random_top: shows 1 to `top` of them, drawn anew each time.
        lora: trains LoRA adapters of this rank, merged when saved; 0 trains all weights.
        max_length: tokens of the prompt.
        candidate_maxlength: tokens of a candidate.
        output_maxlength: tokens of the reference.
        checkpointing: gradient checkpointing, which takes less memory and more time.
        steps: this and all that follow are as in `train_ranker`.

    Raises:
        UsageError: an argument is wrong, or `resume` meets a run with other arguments or other records.
        DataError: a record is bad, has no reference or no such ranks, or there is none.
        NoInputError: there is no such model, or no whole state to resume from.
        OutputError: `output` cannot be written.
        OutOfMemory: a part of a step does not fit.

    Example:
        log = blendkit.train_fuser(ranked, "my-fuser", backbone="google/flan-t5-base", steps=1000)
        print(log[-1]["loss"])
    """
    backbone, plot = str(backbone), one(plot)
    from blendkit.training.loop import TrainOptions

    options = TrainOptions(
        steps, records_per_step, learning_rate, average=average, seed=seed, save_every=save_every, log_every=log_every, device=device, bfloat16=bfloat16
    )
    _check(options, output, plot)

    from blendkit.training.files import read_examples
    from blendkit.training.fuser import FuserTrainee, fuser_examples

    trainee = FuserTrainee(
        backbone, k=top, random_k=random_top, lora=lora, max_length=max_length, candidate_maxlength=candidate_maxlength,
        output_maxlength=output_maxlength, micro_tokens=micro_tokens, checkpointing=checkpointing,
    )  # fmt: skip
    examples = read_examples(records, lambda placed: fuser_examples(placed, ranks))
    settings = {
        "kind": "fuser", "top": top, "random_top": random_top, "lora": lora, "max_length": max_length, "candidate_maxlength": candidate_maxlength,
        "output_maxlength": output_maxlength, "micro_tokens": micro_tokens, "backbone": _start(backbone, output),
    }  # fmt: skip
    return _run(trainee, examples, options, output, settings, [], resume, plot)


def _check(options: TrainOptions, output: File, plot: str | None) -> None:
    """All checks of a run that need no data; fixes the seed of what is initialised."""
    if plot:
        from blendkit.evaluation.report.plots import check_plot

        check_plot(plot)
    if Path(output).exists() and not Path(output).is_dir():
        raise OutputError(f"{output}: cannot write: expected a directory")
    import torch

    from blendkit.training.processes import training_device

    training_device(options.device)
    torch.manual_seed(options.seed)


def _differ(example: Example, margin: float) -> bool:
    """Whether there is a pair to learn from: labels that differ, and the first task's by more than `margin`."""
    return len(set(map(tuple, example.labels))) > 1 and max(example.first()) - min(example.first()) > margin


def _deciding(new: dict[str, Any]) -> dict[str, Any]:
    """What of a `NewRanker` decides the weights; the model that it starts from is named by its content."""
    left_out = {"backbone", "init", "checkpointing"}
    # States that were written before there was such a setting lack it.
    if new["paired_layers"] is None:
        left_out.add("paired_layers")
    if not new["lora"]:
        left_out.add("lora")
    return {name: value for name, value in new.items() if name not in left_out}


def _start(model: str | None, output: File) -> str:
    """The content of the model that training starts from; none where the run writes over it, as its state then has all that was left of it."""
    from blendkit.models.loading import fingerprint

    if model is None or Path(model).resolve() == Path(output).resolve():
        return "the output"
    return fingerprint(model)


def _run(
    trainee: Trainee, examples: list[Example], options: TrainOptions, output: File, settings: dict[str, Any], evaluation: list[Example],
    resume: bool, plot: str | None, mixing: Mixing | None = None,
) -> Rows:  # fmt: skip
    from blendkit.training.loop import train
    from blendkit.training.processes import is_main_process
    from blendkit.training.state import log_rows

    out = Path(output)
    train(trainee, examples, options, out, settings=settings, evaluation=evaluation, resume=resume, mixing=mixing)
    if plot and is_main_process():
        from blendkit.training.plot import plot_log

        plot_log(out, plot)
    return log_rows(out)
