"""A stand-in judge that needs no network: of two candidates it prefers the one nearer to the reference."""

from __future__ import annotations

from typing import Any

from blendkit.judges.base import Judging
from blendkit.records import Record, reference_of
from blendkit.scorers.base import items_of
from blendkit.scorers.bertscore import BertScore
from blendkit.stage import Rounds
from blendkit.version import VERSION


class EmbeddedJudge(Judging):
    """Verdicts by BERTScore F1 against the reference; equal to the sixth digit is a tie.

    It knows nothing but the reference: a different answer that is just as good loses.
    """

    def __init__(self, name: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
        self.judge_name = name or "embedded"
        self.scorer = BertScore("bertscore", device=device, dtype=dtype)
        self.signature = f"judge:embedded|{self.scorer.signature}|v:{VERSION}"

    def rounds(self, record: Record) -> Rounds:
        """BERTScore's rounds, then one verdict a pair."""
        reference = reference_of(record, "the embedded judge")
        pairs = self.pairs(record)
        texts = [candidate["text"] for candidate in record["candidates"]] if pairs else []
        scores = yield from self.scorer.rounds(items_of(record, texts, reference=reference))
        verdicts = []
        for a, b in pairs:
            difference = round(scores[a] - scores[b], 6)
            verdict = "A" if difference > 0 else "B" if difference < 0 else "tie-good"
            verdicts.append({"a": a, "b": b, "verdict": verdict, "shown": [a, b]})
        self.add(record, verdicts)

    def budgeted(self, group: str) -> bool:
        """As BERTScore's."""
        return self.scorer.budgeted(group)

    def run(self, group: str, payloads: list[Any]) -> list[Any]:
        """BERTScore's work."""
        return self.scorer.run(group, payloads)

    def describe(self) -> dict[str, Any]:
        """The signature."""
        return {"signatures": [self.signature]}
