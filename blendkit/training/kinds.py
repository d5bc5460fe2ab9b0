"""The table of rankers that can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blendkit.errors import UsageError

if TYPE_CHECKING:
    from blendkit.training.examples import Pairing
    from blendkit.training.trainee import Trainee

KINDS = ("pairranker", "summareranker", "simcls", "reward")


@dataclass(frozen=True)
class NewRanker:
    """What a ranker starts from and how it reads; each kind takes what concerns it. Lengths are in tokens; None is the kind's default."""

    backbone: str | None = None
    init: str | None = None
    tasks: int = 1
    loss: str = "instructgpt"
    mode: str = "pairs"
    candidates: int = 12
    source_maxlength: int | None = None
    candidate_maxlength: int | None = None
    positions: str = "segment"
    candidate_bias: float | None = None
    micro_tokens: int = 4096
    checkpointing: bool = False


def new_trainee(kind: str, new: NewRanker, pairing: Pairing) -> Trainee:
    """Makes a ranker that is ready to be trained.

    Raises:
        UsageError: there is no such kind, or a setting that it does not have.
        NoInputError: there is no such model.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: expected one of {', '.join(KINDS)}")
    if (new.backbone is None) == (new.init is None):
        raise UsageError("give either --backbone (an encoder to start from) or --init (a checkpoint to go on with)")
    if kind == "pairranker":
        return _pairranker(new, pairing)
    if new.mode != "pairs" or new.candidate_bias is not None:
        raise UsageError("--mode and --candidate-bias are for --kind pairranker")
    backbone = new.backbone or new.init
    assert backbone is not None
    if kind == "reward":
        from blendkit.training.reward import RewardTrainee

        trainee: Trainee = RewardTrainee(backbone, pairing, tasks=new.tasks, loss=new.loss, candidates=new.candidates)
    else:
        if new.init is not None:
            raise UsageError(f"--init is for pairranker and reward; --kind {kind} starts from --backbone")
        from blendkit.training.simcls import SimCLSTrainee
        from blendkit.training.summareranker import SummaRerankerTrainee

        make = SimCLSTrainee if kind == "simcls" else SummaRerankerTrainee
        trainee = make(
            backbone, tasks=new.tasks, candidates=new.candidates,
            source_maxlength=new.source_maxlength or 128, candidate_maxlength=new.candidate_maxlength or 128,
        )  # fmt: skip
    if new.checkpointing:
        trainee.model.gradient_checkpointing_enable()  # type: ignore[operator,union-attr]
    return trainee


def _pairranker(new: NewRanker, pairing: Pairing) -> Trainee:
    from blendkit.models.pairrm import load_pairrm
    from blendkit.training.pairranker import PairRankerTrainee, new_ranker

    if new.positions not in ("running", "segment"):
        raise UsageError(f"--positions {new.positions}: expected running or segment")
    if new.init is not None:
        model, tokenizer = load_pairrm(new.init)
        if model.config.n_tasks != new.tasks:
            raise UsageError(f"--init {new.init} has {model.config.n_tasks} tasks, and {new.tasks} labels are given")
        model.config.source_maxlength = new.source_maxlength or model.config.source_maxlength
        model.config.candidate_maxlength = new.candidate_maxlength or model.config.candidate_maxlength
    else:
        model, tokenizer = new_ranker(str(new.backbone), new.source_maxlength or 128, new.candidate_maxlength or 128, new.positions, new.tasks)
    if new.candidate_bias is not None:
        model.config.candidate_bias = new.candidate_bias
    if new.checkpointing:
        model.pretrained_model.gradient_checkpointing_enable()  # type: ignore[operator]
    return PairRankerTrainee(model, tokenizer, pairing, loss=new.loss, mode=new.mode, candidates=new.candidates, micro_tokens=new.micro_tokens)
