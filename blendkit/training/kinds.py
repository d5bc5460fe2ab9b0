"""The table of rankers that can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError
from blendkit.registry import Registry, Row
from blendkit.terminal_text import count_of

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

    def backbone_of(self, kind: str) -> str:
        """The encoder that a kind which goes on with no checkpoint starts from. Raises UsageError when a checkpoint is given."""
        if self.backbone is None:
            raise UsageError(f"--init is for pairranker and reward; --kind {kind} starts from --backbone")
        return self.backbone


def freeze_layers(network: Any, count: int) -> None:
    """Leaves the weights below a network's upper layers as they are: its embeddings, its first `count` layers, and all that its layers share.

    Raises:
        UsageError: it has no more layers than that.
    """
    from blendkit.models.layer_list import layers_of

    layers = layers_of(network)
    if count >= len(layers):
        raise UsageError(f"--freeze {count}: expected less than the {count_of(len(layers), 'layer')} that the model has")
    network.requires_grad_(False)
    for layer in layers[count:]:
        layer.requires_grad_(True)


def new_trainee(kind: str, new: NewRanker, pairing: Pairing) -> Trainee:
    """Makes a ranker that is ready to be trained.

    Raises:
        UsageError: there is no such kind, or a setting that it does not have.
        NoInputError: there is no such model.
    """
    start = TRAINERS.load(kind, "--kind").start
    if (new.backbone is None) == (new.init is None):
        raise UsageError("give either --backbone (an encoder to start from) or --init (a checkpoint to go on with)")
    trainee: Trainee = start(new, pairing)
    if new.freeze:
        freeze_layers(trainee.network(), new.freeze)
    return trainee
