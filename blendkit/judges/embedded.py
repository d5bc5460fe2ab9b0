"""A stand-in judge that needs no network: of two candidates it prefers the one nearer to the reference."""

from __future__ import annotations

from typing import Any

from blendkit.judges.base import Judging
from blendkit.records import Record, reference_of
from blendkit.scorers.bertscore import BertScore
from blendkit.stage import Work
from blendkit.version import VERSION


class EmbeddedJudge(Judging):
    """Verdicts by BERTScore F1 against the reference; equal to the sixth digit is a tie.

    It knows nothing but the reference: a different answer that is just as good loses.
    """

    def __init__(self, name: str | None = None, device: str = "auto", dtype: str = "auto") -> None:
        self.judge_name = name or "embedded"
        self.scorer = BertScore("bertscore", None, device, dtype)
        self.signature = f"judge:embedded|{self.scorer.signature}|v:{VERSION}"

    def plan(self, record: Record) -> list[Work]:
        """One BERTScore a candidate."""
        reference = reference_of(record, "the embedded judge")
        if len(record.get("candidates", ())) < 2:
            self.pairs(record)  # says what is missing where there are none at all
            return []
        texts = [candidate["text"] for candidate in record["candidates"]]
        return [Work("bertscore", (text, reference), max(len(text), len(reference)) // 4 + 1, (text, reference)) for text in texts]

    def run(self, group: str, payloads: list[tuple[str, str]]) -> list[float]:
        """F1 of each (candidate, reference)."""
        return self.scorer.f1(payloads)

    def finish(self, record: Record, results: list[float]) -> None:
        """Adds one verdict a pair."""
        verdicts = []
        for a, b in self.pairs(record):
            difference = round(results[a] - results[b], 6)
            verdict = "A" if difference > 0 else "B" if difference < 0 else "tie-good"
            verdicts.append({"a": a, "b": b, "verdict": verdict, "shown": [a, b]})
        self.add(record, verdicts)

    def describe(self) -> dict[str, Any]:
        """The signature."""
        return {"signatures": [self.signature]}
