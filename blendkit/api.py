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


def evaluate(
    records: Records, *, versus: Sequence[str] = (), oracle: str | None = None, agreement: str | None = None, baseline: str | None = None,
    ratings: bool = False, length_controlled: str | None = None, aggregations: bool = False, manifests: Sequence[str] = (),
    compare_with: str | None = None, checks: Sequence[str] = (), report: str | None = None, report_records: int = 500,
    plot: str | None = None, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the rows of Table 2 and Table 3, and of the tables that are asked for, as `blendkit evaluate` writes them.

    Args:
        records: with what earlier stages wrote: scores, ranks, verdicts.
        versus: models; for each a column says in how many % of the examples a method is not worse.
        oracle: the true ranking: `judge:NAME`, `score:NAME` or the NAME of a score; None takes the stream's judge, MixInstruct's first.
        agreement: a field with labels A, B or tie in records of two candidates; adds each score's and ranking's agreement with it.
        baseline: a method that all others are tested against (paired, corrected for many comparisons).
        ratings: adds Bradley-Terry and Elo ratings, win rates, and the judges' position bias and agreement.
        length_controlled: a model; adds win rates against it at equal length (needs the extra `stats`).
        aggregations: adds each ranker's full comparisons by MaxLogits, MaxWins and one bubble run.
        manifests: files that earlier stages' `--manifest` wrote; adds their time and cost.
        compare_with: a file of rows of an earlier run, as JSON lines; adds what moved beyond noise.
        checks: such as `rankers.pairrm.gpt_rank < llms.best.gpt_rank`.
        report: a folder; writes one self-contained HTML page into it, with the first `report_records` records (needs the extra `plots`).
        plot: a .png, .svg or .pdf that the figures are drawn into (needs the extra `plots`).
        seed: of resampling, permutations and bubble runs.

    Raises:
        DataError: there is no record, a record lacks what an argument asks for, or a file holds something else.
        UsageError: an argument's value is none that there is, or an extra is not installed.
        NoInputError: a file that is read is not there.
        OutputError: the page or the plot cannot be written.
        CheckFailed: one of `checks` does not hold; all else is done.
    """
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.pipeline.runner import apply

    stage = Evaluating(
        versus=versus, oracle=oracle, agreement=agreement, baseline=baseline, ratings=ratings, length_controlled=length_controlled,
        aggregations=aggregations, manifests=manifests, compare_with=compare_with, checks=checks, report=report,
        report_records=report_records, plot=plot, seed=seed,
    )  # fmt: skip
    for _ in apply(stage, records):
        pass
    stage.write_page()
    stage.draw()
    stage.check()
    return stage.rows()
