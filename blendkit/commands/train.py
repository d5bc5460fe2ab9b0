"""blendkit train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blendkit.errors import DataError, UsageError
from blendkit.jsonl import BadLine, Reader
from blendkit.records import Record

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def train() -> None:
    """Train the models of the method."""


@app.command()
def ranker(
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the new checkpoint; `pair --model` loads it.")],
    input: Annotated[
        list[str] | None, typer.Option("-i", "--input", help="Records whose candidates have scores. May be given several times; records of one id are joined.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Start from this encoder (a directory or a hub id)…")] = None,
    init: Annotated[str | None, typer.Option(help="…or go on from this PairRanker checkpoint.")] = None,
    label: Annotated[str, typer.Option(help="candidates[].scores.LABEL: higher is better.")] = "gpt4_pref",
    log_odds: Annotated[bool, typer.Option(help="The label is a probability; compare its log-odds.")] = True,
    margin: Annotated[float, typer.Option(help="Pairs whose labels differ by no more than this are left out.")] = 0.7,
    mode: Annotated[str, typer.Option(help="`pairs` of candidates read together, or `singles`: one at a time, all pairs in the loss.")] = "pairs",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1000,
    records_per_step: Annotated[int, typer.Option(min=1, help="Records a step.")] = 4,
    candidates_per_record: Annotated[int, typer.Option(min=2, help="singles: candidates sampled from a record.")] = 12,
    pairs_per_record: Annotated[int, typer.Option(min=1, help="pairs: pairs sampled from a record.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Peak; linear warm-up, linear decay.")] = 1e-4,
    source_maxlength: Annotated[int, typer.Option(help="Tokens of x (with --backbone).")] = 160,
    candidate_maxlength: Annotated[int, typer.Option(help="Tokens of a candidate (with --backbone).")] = 384,
    positions: Annotated[str, typer.Option(help="`running`, or `segment`: every text counts from 0 (with --backbone).")] = "segment",
    candidate_bias: Annotated[
        float | None, typer.Option(help="Added to attention between the two candidates; 0 is none.", show_default="the checkpoint's, or 0")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Fixes initialisation, sampling and order.")] = 0,
) -> None:
    """Train PairRanker with the loss of the public checkpoints.

    Example: blendkit train ranker -i train.jsonl.gz --backbone microsoft/deberta-v3-base --positions running -o my-ranker
    """
    if not input:
        raise UsageError("no training data: -i FILE, records whose candidates have scores")
    if (backbone is None) == (init is None):
        raise UsageError("give either --backbone (an encoder to start from) or --init (a PairRanker to go on with)")
    if mode not in ("singles", "pairs"):
        raise UsageError(f"--mode {mode}: expected singles or pairs")
    if positions not in ("running", "segment"):
        raise UsageError(f"--positions {positions}: expected running or segment")
    records = [record for path in input for record in _records(path)]

    import torch

    from blendkit.models.loading import choose_device
    from blendkit.models.pairrm import load_pairrm
    from blendkit.training.ranker import TrainOptions, new_ranker, train_ranker

    torch.manual_seed(seed)
    model, tokenizer = load_pairrm(init) if init else new_ranker(str(backbone), source_maxlength, candidate_maxlength, positions)
    if candidate_bias is not None:
        model.config.candidate_bias = candidate_bias
    options = TrainOptions(
        label, "singles" if mode == "singles" else "pairs", steps, records_per_step, candidates_per_record, pairs_per_record,
        learning_rate, margin=margin, log_odds=log_odds, seed=seed,
    )  # fmt: skip
    train_ranker(model.to(choose_device(device)), tokenizer, records, options, output)


def _records(path: str) -> list[Record]:
    found = []
    for line in Reader(path).records():
        if isinstance(line, BadLine):
            raise DataError(f"{path}:{line.number}: {line.error}")
        found.append(line.record)
    return found
