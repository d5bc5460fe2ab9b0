"""`pair --prefilter METRIC:K`: a cheap pointwise score chooses the K candidates that are compared in pairs."""

from __future__ import annotations

from blendkit.errors import RecordError, UsageError
from blendkit.pipeline.work import Rounds
from blendkit.records import Record, source_text
from blendkit.scorers import SCORERS, better_when_lower, make_scorer
from blendkit.scorers.base import items_of


class Prefilter:
    """Keeps the K candidates with the best score; among equals the earlier one stays.

    Scores that the record has already are taken as they are. Of the others, a metric of `blendkit score` that
    needs no reference is computed here.
    """

    def __init__(self, spec: str, device: str, dtype: str, seed: int) -> None:
        """Raises UsageError for a form that is not METRIC:K, or a metric that reads the reference."""
        metric, colon, number = spec.rpartition(":")
        if not colon or not metric or not number.isascii() or not number.isdigit() or int(number) < 2:
            raise UsageError(f"--prefilter {spec}: expected METRIC:K with K of at least 2, such as length:6")
        self.spec, self.k = spec, int(number)
        self.name = metric.partition(":")[0]
        self.scorer = make_scorer(metric, device=device, dtype=dtype, seed=seed) if self.name in SCORERS else None
        if self.scorer and self.scorer.needs_reference:
            raise UsageError(f"--prefilter {spec}: {self.name} reads the reference answer, which a ranker must not see; try length:{self.k}")

    def keep(self, record: Record, chosen: list[int]) -> Rounds[list[int]]:
        """Which of the chosen candidates stay, in their old order.

        Raises:
            RecordError: a candidate lacks the score, and the score is not one that can be computed here.
        """
        if len(chosen) <= self.k:
            return chosen
        candidates = record["candidates"]
        scores = [candidates[index].get("scores", {}).get(self.name) for index in chosen]
        if None in scores:
            if self.scorer is None:
                missing = chosen[scores.index(None)]
                raise RecordError(f"candidates[{missing}].scores.{self.name}", f"expected a number, as --prefilter {self.spec} needs")
            items = items_of(record, [candidates[index]["text"] for index in chosen], source_text(record))
            scores = yield from self.scorer.rounds(items)
        sign = 1 if better_when_lower(self.name) else -1
        best = sorted(range(len(chosen)), key=lambda place: sign * scores[place])[: self.k]
        return [chosen[place] for place in sorted(best)]

    @property
    def plans_ahead(self) -> bool:
        """As the scorer has it."""
        return self.scorer is None or self.scorer.plans_ahead

    @property
    def signature(self) -> str:
        """The scorer's signature, or the name of the field that was read."""
        return self.scorer.signature if self.scorer else f"field:{self.name}"

    def warnings(self) -> list[str]:
        """What the scorer tells, such as what it had to cut."""
        return [f"--prefilter {self.spec}: {line}" for line in self.scorer.warnings()] if self.scorer else []
