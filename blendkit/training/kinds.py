"""The table of rankers that can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blendkit.errors import UsageError
from blendkit.registry import Registry, Row

if TYPE_CHECKING:
    from blendkit.training.examples import Pairing
    from blendkit.training.trainee import Trainee

# A new kind is one file with a Trainee, whose `start` makes one of a NewRanker and a Pairing, and one row here.
TRAINERS = Registry(
    "blendkit.trainers",
    {
        "pairranker": Row("blendkit.training.new_pairranker:PairRankers", "reads two candidates together"),
        "summareranker": Row("blendkit.training.summareranker:SummaRerankerTrainee", "reads x and one candidate together, several labels at a time"),
        "simcls": Row("blendkit.training.simcls:SimCLSTrainee", "reads x and each candidate apart"),
        "reward": Row("blendkit.training.reward:RewardTrainee", "a reward model: one number for x and one candidate"),
        "lmranker": Row(
            "blendkit.training.lm_ranker:LMRankerTrainee", "a causal LM that stays as it is, with a few weights added: x read once, each candidate once"
        ),
    },
)


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
    freeze: int = 0
    paired_layers: int | None = None
    lora: int = 0

    def backbone_of(self, kind: str) -> str:
        """The encoder that a kind which goes on with no checkpoint starts from. Raises UsageError when a checkpoint is given."""
        if self.backbone is None:
            raise UsageError(f"--init is for pairranker, reward and lmranker; --kind {kind} starts from --backbone")
        return self.backbone


def new_trainee(kind: str, new: NewRanker, pairing: Pairing) -> Trainee:
    """Makes a ranker that is ready to be trained.

    Raises:
        UsageError: there is no such kind, or a setting that it does not have.
        NoInputError: there is no such model.
    """
    start = TRAINERS.load(kind, "--kind").start
    if new.lora and kind != "lmranker":
        raise UsageError(f"--lora is for --kind lmranker, got --kind {kind}")
    if (new.backbone is None) == (new.init is None):
        raise UsageError("give either --backbone (an encoder to start from) or --init (a checkpoint to go on with)")
    trainee: Trainee = start(new, pairing)
    if new.freeze:
        trainee.freeze(new.freeze)
    return trainee
