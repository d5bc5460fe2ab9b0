"""What the tables need of one record: standings by the oracle and the judge, scores, ranks, lengths. Its texts are not kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from blendkit.aggregate import AGGREGATIONS, Matrix, matrix, max_logits, ranks_from_scores, verdict_matrix
from blendkit.errors import RecordError
from blendkit.evaluation.tables import JUDGE_RANK
from blendkit.names import method_names
from blendkit.rankers.schedules import bubble
from blendkit.records import Record, candidates_of, generated_only
from blendkit.scorers import better_when_lower
from blendkit.seeding import seeded
from blendkit.terminal_text import listed, shown

# Their comparisons are a square.
MOST_CANDIDATES = 4096
# What rows of the tables have beside scores.
COLUMNS = frozenset(("table", "method", "kind", "examples", "intervals", "missing", "judged", *JUDGE_RANK.values(), "top3", "characters"))
Verdicts = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Standings:
    """Ranks of the generated candidates, and the rank that each fused candidate has if it is put among them; 1 is best."""

    generated: dict[int, int]
    fused: dict[int, int]

    def of(self, index: int) -> int | None:
        """A candidate's rank; None where a fused one was not judged."""
        return self.generated.get(index, self.fused.get(index))

    @property
    def ranks(self) -> list[int]:
        """The generated candidates' ranks, in the candidates' order."""
        return list(self.generated.values())

    @property
    def best(self) -> int:
        """The first of the candidates that rank first."""
        return min(self.generated, key=lambda index: self.generated[index])


@dataclass
class JudgedExample:
    """One record as the tables see it.

    `margin[i, j]`, [n, n], says how much the judge prefers candidate i to j, from -1 to 1; NaN where it saw no such pair, or no
    verdict of it could be read: such pairs are in `unread`. `left_out` says that the judge has no ranks here, as a candidate is
    in no verdict that could be read.
    `picks` are the candidates that aggregations put first beside `ranks`. `methods` has a name for each candidate, and `against` the
    candidates of the names that flags compare others with.
    """

    number: int
    methods: list[str]
    generated: list[int]
    characters: list[int]
    scores: list[dict[str, float | None]]
    ranks: dict[str, list[int]]
    oracle: Standings | None = None
    judge: Standings | None = None
    margin: Matrix | None = None
    picks: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    unread: set[tuple[int, int]] = field(default_factory=set)
    left_out: bool = False
    against: dict[str, int] = field(default_factory=dict)

    @cached_property
    def values_by_metric(self) -> dict[str, list[float]]:
        """Metric → the generated candidates' values, with a sign such that higher is better; only metrics that all of them have."""
        found: dict[str, list[float]] = {}
        for metric in self.scores[self.generated[0]]:
            values = [self.scores[index].get(metric) for index in self.generated]
            if None not in values:
                sign = -1 if better_when_lower(metric) else 1
                found[metric] = [sign * value for value in values]  # type: ignore[operator]
        return found


@dataclass
class Oracle:
    """What counts as the true ranking: a score, or else a judge's verdicts. Beside a score, the judge gives ranks of its own and win rates.

    Both are found in the first record where they are not named: MixInstruct's judge first, then a panel, then any.
    """

    score: str | None = None
    judge: str | None = None
    wanted: bool = False

    @classmethod
    def named(cls, name: str | None) -> Oracle:
        """From `judge:NAME`, `score:NAME`, or the plain NAME of a score."""
        if name is None:
            return cls()
        kind, mark, rest = name.partition(":")
        if mark and kind == "judge":
            return cls(judge=rest, wanted=True)
        return cls(score=rest if mark and kind == "score" else name)

    @property
    def name(self) -> str | None:
        """As signatures and flags have it."""
        return f"score:{self.score}" if self.score else f"judge:{self.judge}" if self.judge else None

    def find_judge(self, verdicts: Verdicts) -> None:
        """Takes the stream's judge where none is named."""
        if self.judge is None and verdicts:
            self.judge = next((name for name in ("mixinstruct", "panel") if name in verdicts), next(iter(verdicts)))

    def read(self, example: JudgedExample, record: Record, verdicts: Verdicts) -> None:
        """Fills the example's standings and margins.

        Raises:
            RecordError: the record lacks the scores or verdicts of the oracle.
        """
        candidates = record["candidates"]
        if self.score:
            values = [candidate.get("scores", {}).get(self.score) for candidate in candidates]
            for index in example.generated:
                if values[index] is None:
                    raise RecordError(
                        f"candidates[{index}].scores.{self.score}", f"expected a number, as --oracle {shown(str(self.score))} asks for it of every candidate"
                    )
            sign = -1 if better_when_lower(self.score) else 1
            scored = [index for index, value in enumerate(values) if value is not None]
            example.oracle = _standings(example.generated, lambda chosen: [sign * float(values[index] or 0) for index in chosen], scored)
        if self.judge is None:
            return
        if self.judge not in verdicts:
            if self.score and not self.wanted:
                return
            raise RecordError(f"verdicts.{self.judge}", f"not there, found {listed(verdicts)}; `blendkit judge` writes verdicts")
        m = verdict_matrix(verdicts[self.judge], len(candidates))
        example.margin = (m - m.T) / 2
        asked = {(min(verdict["a"], verdict["b"]), max(verdict["a"], verdict["b"])) for verdict in verdicts[self.judge]}
        example.pairs, example.unread = len(asked), {pair for pair in asked if math.isnan(example.margin[pair])}
        # Who was compared with a generated candidate (not himself) by a verdict that could be read.
        read = ~np.isnan(m) & ~np.eye(len(m), dtype=bool)
        met = np.flatnonzero(read[:, example.generated].sum(axis=1)).tolist()
        example.left_out = len(example.generated) > 1 and not set(met).issuperset(example.generated)
        if example.left_out:
            return
        judged = example.generated
        if len(candidates) > len(judged):
            judged = sorted({*judged, *met})
        example.judge = _standings(example.generated, lambda chosen: _scores(m, chosen), judged)
        if not self.score:
            example.oracle = example.judge


def rank_of(standings: Standings | None, index: int) -> int | None:
    """A candidate's rank, where there is one."""
    return standings.of(index) if standings else None


def example_of(record: Record, verdicts: Verdicts, number: int, oracle: Oracle, aggregations: bool = False, seed: int = 0) -> JudgedExample:
    """The record and its `verdicts_of` as an example; with `aggregations`, every ranker's full comparisons by MaxLogits, MaxWins and one bubble run.

    Raises:
        RecordError: no candidate that an LLM wrote, or what the oracle needs is missing.
    """
    candidates = candidates_of(record)
    if len(candidates) > MOST_CANDIDATES:
        raise RecordError("candidates", f"expected at most {MOST_CANDIDATES:,}, got {len(candidates):,}")
    for index, candidate in enumerate(candidates):
        if not COLUMNS.isdisjoint(candidate.get("scores", ())):
            name = next(name for name in candidate["scores"] if name in COLUMNS)
            raise RecordError(f"candidates[{index}].scores.{name}", "expected another name: the tables have a column of this one")
    generated = generated_only(candidates)
    if not generated:
        raise RecordError("candidates", "expected at least one that an LLM wrote, got fused ones only")
    oracle.find_judge(verdicts)
    example = JudgedExample(
        number,
        method_names(candidates),
        generated,
        [len(candidate["text"]) for candidate in candidates],
        [candidate.get("scores", {}) for candidate in candidates],
        {name: values for name, values in record.get("ranks", {}).items() if len(values) == len(generated)},
    )
    oracle.read(example, record, verdicts)
    if aggregations:
        for name, m in _full_matrices(record, generated):
            for aggregate in ("max-logits", "max-wins"):
                example.ranks[f"{name}: {aggregate}"] = ranks_from_scores(AGGREGATIONS[aggregate](m))
            example.picks[f"{name}: bubble"] = generated[_bubble(m, random.Random(seeded(seed, "schedule", record["id"])))]
    return example


def _full_matrices(record: Record, generated: list[int]) -> Iterator[tuple[str, Matrix]]:
    n = len(generated)
    for name, comparisons in record.get("comparisons", {}).items():
        m = matrix([pair for pair in comparisons["pairs"] if pair[0] < n and pair[1] < n], n)
        if not np.isnan(m).any():
            yield name, m


def _bubble(m: Matrix, rng: random.Random) -> int:
    """The best by the bubble run that `pair --schedule bubble` would have done."""
    run = bubble(len(m), rng)
    try:
        asked = next(run)
        while True:
            asked = run.send([float(m[i, j]) for i, j in asked])
    except StopIteration as done:
        return int(done.value[0])


def _scores(m: Matrix, chosen: list[int]) -> list[float]:
    found: list[float] = max_logits(m if chosen == list(range(len(m))) else m[np.ix_(chosen, chosen)]).tolist()
    return found


def _standings(generated: list[int], scores_of: Callable[[list[int]], list[float]], judged: list[int]) -> Standings:
    ranks = ranks_from_scores(scores_of(generated))
    others = [index for index in judged if index not in generated] if len(judged) > len(generated) else []
    fused = {index: ranks_from_scores(scores_of([*generated, index]))[-1] for index in others}
    return Standings(dict(zip(generated, ranks, strict=True)), fused)


def rounded(value: float) -> float | None:
    """Four digits; None for NaN, and for a sum beyond all numbers."""
    return round(value, 4) if math.isfinite(value) else None
