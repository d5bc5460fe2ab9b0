"""blendkit train"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blendkit.commands.options import with_groups
from blendkit.errors import UsageError
from blendkit.streams.files import Role, one_role_each
from blendkit.training.kinds import TRAINERS

if TYPE_CHECKING:
    from blendkit.training.files import RecordFiles

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

DATA, MODEL, RUN = "What is learnt", "The model", "The run"


@app.callback()
def train() -> None:
    """Train the models of the method."""


def _option(text: str, *names: str, panel: str = RUN, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Output = Annotated[Path, _option("Directory of the new checkpoint.", "-o", "--output")]
Input = Annotated[list[str] | None, _option("Records (.gz, .zst). May be given several times.", "-i", "--input", panel=DATA)]
Checkpointing = Annotated[bool, _option("Gradient checkpointing: less memory, more time.", "--checkpointing", panel=MODEL)]


@dataclass(frozen=True)
class Run:
    """The flags of every run of training."""

    steps: int
    records_per_step: int
    learning_rate: float
    average: float
    micro_tokens: int
    bfloat16: bool
    save_every: int
    log_every: int
    resume: bool
    plot: str | None
    device: str
    seed: int


RUNS: dict[str, tuple[Any, Any]] = {
    "steps": (Annotated[int, _option("Optimizer steps.", min=1)], 1000),
    "records_per_step": (Annotated[int, _option("Records a step, over all processes.", min=1)], 4),
    "learning_rate": (Annotated[float, _option("Peak; linear warm-up, linear decay.")], 1e-4),
    "average": (Annotated[float, _option("Keep an exponential mean of the weights with this decay, such as 0.99, and save that.", min=0.0, max=0.9999)], 0.0),
    "micro_tokens": (Annotated[int, _option("Padded tokens that go through the network at a time; gradients add up.", min=1)], 4096),
    "bfloat16": (Annotated[bool, _option("bfloat16 autocast.", "--bfloat16/--float32")], True),
    "save_every": (Annotated[int, _option("Steps between two states that --resume can go on from.", min=1)], 200),
    "log_every": (Annotated[int, _option("Steps between two rows of train.log.jsonl.", min=1)], 20),
    "resume": (Annotated[bool, _option("Go on with the run in -o, exactly as if it had not stopped.", "--resume")], False),
    "plot": (Annotated[str | None, _option("Draw the log into this .png, .svg or .pdf.", metavar="FILE")], None),
    "device": (Annotated[str, _option("auto, cpu, cuda, cuda:N or mps.")], "auto"),
    "seed": (Annotated[int, _option("Fixes initialisation, sampling and order.")], 0),
}


def _running(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of `Run` as its parameter `run`; `defaults` are those of this command that differ."""
    flags = {name: (annotation, defaults.get(name, default)) for name, (annotation, default) in RUNS.items()}
    return lambda function: with_groups(function, {"run": (flags, Run)})


@app.command()
@_running()
def ranker(
    run: Run,
    output: Output,
    input: Input = None,
    kind: Annotated[str, _option(f"{TRAINERS.explained()}.", panel=MODEL)] = "pairranker",
    backbone: Annotated[
        str | None, _option("Start from this encoder (a directory or a hub id; for reward a causal model, too; for lmranker a chat model)…", panel=MODEL)
    ] = None,
    init: Annotated[str | None, _option("…or go on from this checkpoint.", panel=MODEL)] = None,
    labels: Annotated[list[str] | None, _option("candidates[].scores.LABEL: higher is better. Several are a task each.", "--label", panel=DATA)] = None,
    human: Annotated[str | None, _option("A field with A, B or tie, of records with two candidates.", panel=DATA)] = None,
    log_odds: Annotated[bool, _option("The labels are probabilities; compare their log-odds.", "--log-odds", panel=DATA)] = False,
    margin: Annotated[float, _option("Pairs whose labels differ by no more than this are left out.", panel=DATA)] = 0.0,
    with_reference: Annotated[bool, _option("Mix the reference into the pool, as the best.", "--with-reference", panel=DATA)] = False,
    subsampling: Annotated[str, _option("Which pairs of a record: random, all-pair, top-bottom or uniform.", panel=DATA)] = "random",
    pairs_per_input: Annotated[int, _option("Pairs of a record a step.", min=1, panel=DATA)] = 5,
    balance_length: Annotated[bool, _option("In half of a record's pairs the shorter candidate is the better one.", "--balance-length", panel=DATA)] = False,
    longer_wins: Annotated[
        float | None, _option("In so many percent of the pairs, over records too, the longer candidate is the better one.", panel=DATA, show_default="any")
    ] = None,
    longer_wins_in: Annotated[list[str] | None, _option("The same in one set of --mix.", "--longer-wins-in", metavar="SET=NUMBER", panel=DATA)] = None,
    mix: Annotated[str | None, _option("A field that names a record's set; sets are mixed by --temperature and --weight.", metavar="FIELD", panel=DATA)] = None,
    temperature: Annotated[float, _option("A set of n records is drawn in proportion to n^(1/temperature): 1 is by size.", panel=DATA)] = 1.0,
    weights: Annotated[list[str] | None, _option("Multiplies the share of a set.", "--weight", metavar="SET=NUMBER", panel=DATA)] = None,
    candidates: Annotated[int, _option("Candidates of a record a step, where they are read one by one.", min=2, panel=DATA)] = 12,
    loss: Annotated[
        str,
        _option("pairranker, reward and lmranker: instructgpt (the public checkpoints'), bce (the paper's), soft (by the labels' margin) or mse.", panel=MODEL),
    ] = "instructgpt",
    mode: Annotated[str, _option("pairranker: `pairs` read together, or `singles`, one candidate at a time, all pairs in the loss.", panel=MODEL)] = "pairs",
    source_maxlength: Annotated[int | None, _option("Tokens of x.", panel=MODEL, show_default="128, lmranker 256, or the checkpoint's")] = None,
    candidate_maxlength: Annotated[int | None, _option("Tokens of a candidate.", panel=MODEL, show_default="128, lmranker 384, or the checkpoint's")] = None,
    positions: Annotated[str, _option("pairranker: `running`, or `segment`, every text counts from 0.", panel=MODEL)] = "segment",
    candidate_bias: Annotated[float | None, _option("pairranker: added to attention between the two candidates.", panel=MODEL, show_default="none")] = None,
    paired_layers: Annotated[
        int | None,
        _option(
            "pairranker: read x and each candidate once; only so many of the last layers let a pair's candidates see each other.",
            min=0,
            max=2,
            panel=MODEL,
            show_default="all layers, or the checkpoint's",
        ),
    ] = None,
    checkpointing: Checkpointing = False,
    freeze: Annotated[int, _option("Leave the embeddings and so many of the lowest layers as they are: less time.", min=0, panel=MODEL)] = 0,
    lora: Annotated[int, _option("lmranker: the rank of what is added to the matrices of the layers that are not frozen.", min=0, panel=MODEL)] = 0,
    evaluation: Annotated[
        str | None, _option("Records to measure on: pair accuracy, Spearman, oracle rank. The best checkpoint is kept.", "--evaluation", "--eval")
    ] = None,
    eval_every: Annotated[int, _option("Steps between two measurements; 0 measures at the end.", min=0)] = 0,
    eval_records: Annotated[int, _option("Records measured on.", min=1)] = 100,
    patience: Annotated[int, _option("Stop after so many measurements without a better one; 0 never.", min=0)] = 0,
) -> None:
    """Train a ranker on records whose candidates have scores, or which people have judged.

    The checkpoints of pairranker and lmranker are for `pair --model DIR`, the others' for `score --metric KIND:DIR`. Records with the same x and the
    same id, or without an id, are joined, within a file and over several. Under `torchrun -m blendkit train ranker …` processes
    share the records of a step.

    Example: blendkit train ranker -i train.jsonl.gz --label bertscore --backbone microsoft/deberta-v3-base -o my-ranker
    """
    from blendkit.api import train_ranker

    train_ranker(
        _records(input, "records whose candidates have scores", run.plot), output, kind=kind, backbone=backbone, init=init, labels=labels, human=human,
        log_odds=log_odds, margin=margin, with_reference=with_reference, subsampling=subsampling, pairs_per_input=pairs_per_input,
        balance_length=balance_length, longer_wins=longer_wins, longer_wins_in=longer_wins_in, mix=mix, temperature=temperature, weights=weights,
        freeze=freeze, lora=lora, candidates=candidates, loss=loss, mode=mode, source_maxlength=source_maxlength,
        candidate_maxlength=candidate_maxlength, positions=positions, candidate_bias=candidate_bias, paired_layers=paired_layers, checkpointing=checkpointing,
        evaluation=_records([evaluation]) if evaluation else None, eval_every=eval_every, eval_records=eval_records, patience=patience, **asdict(run),
    )  # fmt: skip


@app.command()
@_running(records_per_step=8, learning_rate=5e-5)
def fuser(
    run: Run,
    output: Output,
    backbone: Annotated[str, _option("Start from this seq2seq or causal model (a directory or a hub id).", panel=MODEL)],
    input: Input = None,
    ranks: Annotated[str, _option("ranks.NAME: which ranking the top candidates are of.", panel=DATA)] = "pairrm",
    top: Annotated[int, _option("Candidates that the fuser reads, best first.", min=1, panel=DATA)] = 3,
    random_top: Annotated[bool, _option("Show 1 to --top of them, drawn anew each time.", "--random-top", panel=DATA)] = False,
    lora: Annotated[int, _option("Train LoRA adapters of this rank, merged when saved; 0 trains all weights.", min=0, panel=MODEL)] = 0,
    max_length: Annotated[int, _option("Tokens of the prompt.", panel=MODEL)] = 1024,
    candidate_maxlength: Annotated[int, _option("Tokens of a candidate.", panel=MODEL)] = 128,
    output_maxlength: Annotated[int, _option("Tokens of the reference.", panel=MODEL)] = 256,
    checkpointing: Checkpointing = False,
) -> None:
    """Train GenFuser to write the reference from x and the top candidates.

    The checkpoint is for `fuse --model DIR`.

    Example: blendkit train fuser -i ranked.jsonl.gz --ranks pairrm --backbone google/flan-t5-base --lora 16 -o my-fuser
    """
    from blendkit.api import train_fuser

    train_fuser(
        _records(input, "records with `ranks` and a reference", run.plot), output, backbone=backbone, ranks=ranks, top=top, random_top=random_top, lora=lora,
        max_length=max_length, candidate_maxlength=candidate_maxlength, output_maxlength=output_maxlength, checkpointing=checkpointing, **asdict(run),
    )  # fmt: skip


def _records(paths: list[str] | None, wanted: str = "", plot: str | None = None) -> RecordFiles:
    if not paths:
        raise UsageError(f"no training data: -i FILE, {wanted}")
    one_role_each([*(Role("-i", path) for path in paths), *([Role("--plot", plot, writes=True)] if plot else [])])
    from blendkit.training.files import RecordFiles

    return RecordFiles(paths)
