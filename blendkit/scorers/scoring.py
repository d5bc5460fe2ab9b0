"""`score`: any number of metrics over every candidate, in one pass over the stream."""

from __future__ import annotations

import math
from typing import Any

from blendkit.errors import RecordError
from blendkit.records import Record, candidates_of, reference_of, source_text
from blendkit.scorers import make_scorer
from blendkit.scorers.base import Item
from blendkit.stage import Stage, Work


class Scoring(Stage):
    """Writes `candidates[].scores[metric]`; scores that are there already are replaced."""

    name = "score"

    def __init__(self, metrics: list[str], model: str | None = None, device: str = "auto", dtype: str = "auto", seed: int = 0) -> None:
        scorers = [make_scorer(metric, model=model, device=device, dtype=dtype, seed=seed) for metric in dict.fromkeys(metrics)]
        self.scorers = {scorer.name: scorer for scorer in scorers}

    def plan(self, record: Record) -> list[Work]:
        """One piece of work a scorer and candidate."""
        candidates = candidates_of(record)
        wanting = next((name for name, scorer in self.scorers.items() if scorer.needs_reference), None)
        reference = reference_of(record, f"--metric {wanting}") if wanting else ""
        source = source_text(record) if any(not scorer.needs_reference for scorer in self.scorers.values()) else ""
        items = [Item(source, candidate["text"], reference, record["id"], index) for index, candidate in enumerate(candidates)]
        return [Work(name, scorer.key(item), _tokens(item), item) for name, scorer in self.scorers.items() for item in items]

    def run(self, group: str, payloads: list[Item]) -> list[float]:
        """The scores of one scorer."""
        return self.scorers[group].score(payloads)

    def finish(self, record: Record, results: list[float]) -> None:
        """Adds the scores. Raises RecordError for one that is no number."""
        values = iter(results)
        for name in self.scorers:
            for index, candidate in enumerate(record["candidates"]):
                value = next(values)
                if not math.isfinite(value):
                    raise RecordError(f"candidates[{index}].scores.{name}", f"the metric gave {value}")
                candidate.setdefault("scores", {})[name] = round(value, 6)

    def describe(self) -> dict[str, Any]:
        """The scorers' signatures."""
        return {"signatures": [scorer.signature for scorer in self.scorers.values()]}


def _tokens(item: Item) -> int:
    # About four characters a token; good enough to sort by and to fill a batch.
    return max(len(item.candidate), len(item.reference)) // 4 + 1
