"""`rank`: turns what earlier stages wrote (comparisons, scores, verdicts) into ranks and the top K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from blendkit.aggregate import AGGREGATIONS, Matrix, compared, matrix, pairs_among, ranks_from_scores, summed, verdict_matrix, verdict_wins, weighed
from blendkit.errors import RecordError, UsageError
from blendkit.pipeline.stage import Stage
from blendkit.rankers.references import reference_index
from blendkit.records import Record, candidates_of, generated_only, verdicts_of
from blendkit.registry import nearest
from blendkit.scorers import better_when_lower
from blendkit.terminal_text import listed

VALUES = ("score", "judge", "oracle")
SOURCES = ("PAIR (a name in `comparisons`, such as pairrm)", "score:NAME", "judge:NAME", "oracle:FIELD")
DEFAULT = "max-logits"

# A candidate's place among the others: (tier, score). A higher tier always ranks above a lower one.
Standing = tuple[int, float]
ORDERED, COMPARED, NEVER_COMPARED = 2, 1, 0


class Ranking(Stage):
    """Writes `ranks[name]` for the candidates that LLMs wrote, and `top`, the indices of the best K.

    Comparisons that come with an `order` (bubble and sorting schedules) rank by it first, unless an aggregation or a weight is named. Of several
    comparisons of the same pairs the logits are summed, each times its weight, and no order counts. A candidate that was in no comparison, or in no
    verdict that could be read, ranks below all that were. A fused candidate gets no rank: `ranks` ends before it.
    """

    name = "rank"

    def __init__(
        self, by: str | Sequence[str] = "pairrm", aggregate: str | None = None, top: int = 3, name: str | None = None, reference: str | None = None
    ) -> None:
        if aggregate is not None and aggregate not in AGGREGATIONS:
            raise UsageError(f"--aggregate {aggregate}: expected one of {', '.join(AGGREGATIONS)}{nearest(aggregate, AGGREGATIONS)}")
        if top < 1:
            raise UsageError(f"--top {top}: expected at least 1")
        self.given = given = [by] if isinstance(by, str) else list(by)
        whole = "+".join(given)
        self.kind, colon, self.key = given[0].partition(":") if given else ("", "", "")
        if len(given) > 1 or (whole and not colon):
            _expect_sum(given)
            self.kind, self.key = "pair", whole
        elif self.kind not in VALUES or not self.key:
            raise UsageError(f"--by {whole}: expected {', '.join(SOURCES)}")
        if reference is not None and (self.kind != "pair" or aggregate is not None):
            raise UsageError("--reference ranks by one column of the comparisons: it goes with neither --aggregate nor --by score:, judge: or oracle:")
        self.aggregate, self.top, self.reference = aggregate, top, reference
        suffix = f":reference-{reference}" if reference else f":{aggregate}" if aggregate not in (None, DEFAULT) and self.kind in ("pair", "judge") else ""
        self.ranks_name = name or f"{whole}{suffix}"

    def finish(self, record: Record, results: list[object]) -> None:
        """Adds ranks and top; among ties the earlier candidate comes first in `top`."""
        candidates = candidates_of(record)
        chosen = generated_only(candidates)
        if chosen != list(range(len(chosen))):
            raise RecordError("candidates", "a fused candidate stands before a generated one; only fused ones may be added behind it")
        ranks = ranks_from_scores(self.standings(record, len(chosen)))
        # The ranking behind `top` is the last one, also where it is made anew.
        found = record.setdefault("ranks", {})
        found.pop(self.ranks_name, None)
        found[self.ranks_name] = ranks
        record["top"] = sorted(chosen, key=lambda index: ranks[index])[: self.top]

    def standings(self, record: Record, n: int) -> list[Standing]:
        """Where each of the first n candidates stands; higher is better."""
        if self.kind == "score":
            sign = -1 if better_when_lower(self.key) else 1
            return [(COMPARED, sign * self._score(record, index)) for index in range(n)]
        if self.kind == "oracle":
            return [(COMPARED, self._field(record, index)) for index in range(n)]
        aggregate = AGGREGATIONS[self.aggregate or DEFAULT]
        if self.kind == "judge":
            return _of_compared(m := self._verdicts(record, n), aggregate(m, verdict_wins))
        weights = self._weights(record)
        found = [record["comparisons"][name] for name in weights]
        fewer = n < len(record["candidates"])
        parts = [matrix(pairs_among(comparisons, n) if fewer else comparisons["pairs"], n) for comparisons in found]
        for name, part in zip(weights, parts, strict=True):
            if part is not parts[0] and (np.isnan(part) != np.isnan(parts[0])).any():
                raise RecordError(f"comparisons.{name}", f"expected the same pairs as {next(iter(weights))} has, to be summed; `blendkit pair` compares all")
        m = summed(zip(parts, weights.values(), strict=True))
        if self.reference is not None:
            return [(COMPARED, score) for score in self._against_reference(record, m)]
        if not compared(m).any():
            return [(COMPARED, 0.0)] * n
        standings = _of_compared(m, aggregate(m))
        if self.aggregate is None and list(weights.values()) == [1.0]:
            for place, index in enumerate(found[0].get("order", ())):
                if index < n:
                    standings[index] = (ORDERED, float(-place))
        return standings

    def _against_reference(self, record: Record, m: Matrix) -> list[float]:
        """M[i, r] - M[r, i] of every candidate i and the reference candidate r."""
        candidates = record["candidates"][: len(m)]
        r = reference_index(str(self.reference), candidates)
        margins = m[:, r] - m[r, :]
        if np.isnan(margins).any():
            missing = int(np.argmax(np.isnan(margins)))
            message = f"candidates {missing} and {r} were not compared in both orders, as --reference {self.reference} needs"
            raise RecordError(f"comparisons.{self.key}", f"{message}; `blendkit pair --schedule full` compares all")
        return [round(float(margin), 9) for margin in margins]

    def _verdicts(self, record: Record, n: int) -> Matrix:
        verdicts = verdicts_of(record)
        if self.key not in verdicts:
            raise self._missing("verdicts", self.key, list(verdicts), "blendkit judge")
        given = [verdict for verdict in verdicts[self.key] if verdict["a"] < n and verdict["b"] < n]
        m = verdict_matrix(given, n)
        if n > 1 and not compared(m).any():
            problem = f"no verdict could be read ({len(given)} unparsed)" if given else "expected at least one verdict, got none"
            raise RecordError(f"verdicts.{self.key}", problem)
        return m

    def _weights(self, record: Record) -> dict[str, float]:
        """Which of the record's comparisons count, and their weights."""
        comparisons: dict[str, dict[str, Any]] = record.get("comparisons", {})
        weights = dict(weighed(text, comparisons) for text in self.given)
        for name in weights:
            if name not in comparisons:
                raise self._missing("comparisons", name, list(comparisons), "blendkit pair")
        return weights

    def _score(self, record: Record, index: int) -> float:
        scores = record["candidates"][index].get("scores", {})
        value = scores.get(self.key)
        if value is None:
            raise RecordError(f"candidates[{index}].scores.{self.key}", f"expected a number; found {listed(scores)}; `blendkit score` writes scores")
        return float(value)

    def _field(self, record: Record, index: int) -> float:
        """A candidate's own field, or a score of that name."""
        candidate = record["candidates"][index]
        value = candidate.get(self.key, candidate.get("scores", {}).get(self.key))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordError(f"candidates[{index}].{self.key}", f"expected a number there or in its scores, as --by oracle:{self.key} needs")
        return float(value)

    @staticmethod
    def _missing(field: str, name: str, found: list[str], command: str) -> RecordError:
        return RecordError(f"{field}.{name}", f"not there, found {listed(found)}; `{command}` writes it")


def _expect_sum(given: list[str]) -> None:
    """Raises UsageError where a name is given twice or is none of comparisons, or a weight is no number."""
    names = set()
    for text in given:
        name, weight = weighed(text)
        if text.startswith(tuple(f"{kind}:" for kind in VALUES)):
            raise UsageError(f"--by {text}: where it is given several times, expected names of comparisons, such as pairrm")
        if name in names:
            raise UsageError(f"--by {text}: {name} is given twice")
        if not name or not math.isfinite(weight):
            raise UsageError(f"--by {text}: expected NAME=WEIGHT, such as pairrm=2")
        names.add(name)


def _of_compared(m: Matrix, scores: Matrix) -> list[Standing]:
    """Scores as standings: a candidate that was in no comparison is below all others."""
    if len(m) == 1:
        return [(COMPARED, float(scores[0]))]
    return [(COMPARED, float(score)) if met else (NEVER_COMPARED, 0.0) for score, met in zip(scores, compared(m), strict=True)]
