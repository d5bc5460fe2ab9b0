"""`rank`: what earlier stages wrote (comparisons, scores, verdicts) into ranks and the top K."""

from __future__ import annotations

import difflib

from blendkit.aggregate import AGGREGATIONS, Matrix, matrix, ranks_from_scores, verdict_matrix
from blendkit.errors import RecordError, UsageError
from blendkit.records import Record, candidates_of, generated_only, verdicts_of
from blendkit.stage import Stage

SOURCES = ("PAIR (a name in `comparisons`, such as pairrm)", "score:NAME", "judge:NAME")


class Ranking(Stage):
    """Writes `ranks[name]` for the candidates that LLMs wrote, and `top`, the indices of the best K.

    A fused candidate gets no rank: `ranks` ends before it.
    """

    name = "rank"

    def __init__(self, by: str = "pairrm", aggregate: str = "max-logits", top: int = 3, name: str | None = None) -> None:
        if aggregate not in AGGREGATIONS:
            near = difflib.get_close_matches(aggregate, AGGREGATIONS, 1)
            raise UsageError(f"--aggregate {aggregate}: expected one of {', '.join(AGGREGATIONS)}" + (f"; did you mean {near[0]}?" if near else ""))
        if top < 1:
            raise UsageError(f"--top {top}: expected at least 1")
        self.kind, _, self.key = by.partition(":")
        if self.key and self.kind not in ("score", "judge"):
            raise UsageError(f"--by {by}: expected {', '.join(SOURCES)}")
        if not self.key:
            self.kind, self.key = "pair", by
        self.aggregate, self.top = aggregate, top
        suffix = "" if aggregate == "max-logits" or self.kind == "score" else f":{aggregate}"
        self.ranks_name = name or f"{by}{suffix}"

    def finish(self, record: Record, results: list[object]) -> None:
        """Adds ranks and top; among ties the earlier candidate comes first in `top`."""
        candidates = candidates_of(record)
        chosen = generated_only(candidates)
        if chosen != list(range(len(chosen))):
            raise RecordError("candidates", "a fused candidate stands before a generated one; only fused ones may be added behind it")
        ranks = ranks_from_scores(self.scores(record, len(chosen)))
        record.setdefault("ranks", {})[self.ranks_name] = ranks
        record["top"] = sorted(chosen, key=lambda index: ranks[index])[: self.top]

    def scores(self, record: Record, n: int) -> list[float]:
        """One score for each of the first n candidates, higher is better."""
        if self.kind == "score":
            return [self._score(record, index) for index in range(n)]
        return [float(score) for score in AGGREGATIONS[self.aggregate](self._matrix(record, n))]

    def _matrix(self, record: Record, n: int) -> Matrix:
        if self.kind == "judge":
            verdicts = verdicts_of(record)
            if self.key not in verdicts:
                raise self._missing("verdicts", list(verdicts), "blendkit judge")
            rows = [verdict for verdict in verdicts[self.key] if verdict["a"] < n and verdict["b"] < n]
            return verdict_matrix(rows, n)
        comparisons = record.get("comparisons", {})
        if self.key not in comparisons:
            raise self._missing("comparisons", list(comparisons), "blendkit pair")
        return matrix([pair for pair in comparisons[self.key]["pairs"] if pair[0] < n and pair[1] < n], n)

    def _score(self, record: Record, index: int) -> float:
        scores = record["candidates"][index].get("scores", {})
        value = scores.get(self.key)
        if value is None:
            raise RecordError(f"candidates[{index}].scores.{self.key}", f"expected a number; found {_list(list(scores))}; `blendkit score` writes scores")
        return float(value)

    def _missing(self, field: str, found: list[str], command: str) -> RecordError:
        return RecordError(f"{field}.{self.key}", f"not there, found {_list(found)}; `{command}` writes it")


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
