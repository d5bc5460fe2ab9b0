"""The stages as functions over iterables of records. Models load when the first record is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from blendkit.records import Record
from blendkit.training.api import train_fuser, train_generator, train_ranker

if TYPE_CHECKING:
    from blendkit.generators.options import EndpointOptions, Sampling

Records = Iterable[Record]
__all__ = ["evaluate", "fuse", "generate", "judge", "pair", "rank", "score", "train_fuser", "train_generator", "train_ranker"]


def generate(
    records: Records, models: Sequence[str], *, sampling: Sampling | None = None, endpoint: EndpointOptions | None = None, seed: int = 0, **where: Any
) -> Iterator[Record]:
    """Adds one candidate a model; `models` are NAME=SPEC or SPEC, as for `blendkit generate -m`."""
    from blendkit.generators.generating import Generating
    from blendkit.generators.options import EndpointOptions, Sampling
    from blendkit.pipeline.runner import apply

    yield from apply(Generating(list(models), sampling or Sampling(), endpoint or EndpointOptions(), seed=seed, **where), records)


def score(records: Records, metrics: Sequence[str], *, seed: int = 0, **where: Any) -> Iterator[Record]:
    """Adds `scores` to every candidate; `metrics` are [LABEL=]NAME[:MODEL], `where` are `Scoring`'s arguments, such as `device`."""
    from blendkit.pipeline.runner import apply
    from blendkit.scorers.scoring import Scoring

    yield from apply(Scoring(list(metrics), seed=seed, **where), records)


def pair(records: Records, model: str = "embedded", *, name: str = "pairrm", **where: Any) -> Iterator[Record]:
    """Adds `comparisons` by PairRanker; `where` are PairRanker's own arguments, such as `schedule` and `device`."""
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.pairranker import PairRanker

    yield from apply(PairRanker(model, name, **where), records)


def rank(
    records: Records, by: str = "pairrm", *, aggregate: str | None = None, top: int = 3, name: str | None = None, reference: str | None = None
) -> Iterator[Record]:
    """Adds `ranks` and `top`."""
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.ranking import Ranking

    yield from apply(Ranking(by, aggregate, top, name, reference), records)


def fuse(records: Records, model: str = "consensus", **options: Any) -> Iterator[Record]:
    """Appends the fused candidate: `consensus`, or GenFuser with a seq2seq model."""
    from blendkit.fusers import make_fuser
    from blendkit.pipeline.runner import apply

    yield from apply(make_fuser(model, **options), records)


def judge(records: Records, model: str | Sequence[str] = "embedded", **options: Any) -> Iterator[Record]:
    """Adds `verdicts`: `embedded`, openai:MODEL, or a local chat model, or a panel of several; `options` are `make_judge`'s."""
    from blendkit.judges import make_judge
    from blendkit.pipeline.runner import apply

    yield from apply(make_judge(model, **options), records)


def evaluate(records: Records, *, versus: Sequence[str] = (), oracle: str | None = None, agreement: str | None = None, **more: Any) -> list[dict[str, Any]]:
    """The rows of Table 2 and Table 3, and of what else is asked for.

    With `agreement` (a field of labels A, B, tie) also those of the agreement with it; `more` are `Evaluating`'s arguments,
    such as `baseline` (a method that all others are tested against), `ratings` and `controlled`.

    Raises:
        DataError: there is no record.
    """
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.pipeline.runner import apply

    stage = Evaluating(list(versus), oracle, agreement, **more)
    for _ in apply(stage, records):
        pass
    return stage.rows()
