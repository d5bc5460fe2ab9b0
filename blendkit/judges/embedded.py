"""A stand-in judge that needs no network: of two candidates it prefers the one nearer to the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from blendkit.judges.base import STAND_IN, Juror, Opinion, Opinions, Shown
from blendkit.models.unread import UNKNOWN
from blendkit.records import Record, reference_of
from blendkit.scorers.base import items_of
from blendkit.scorers.bertscore import BertScore
from blendkit.signature import Signature
from blendkit.version import VERSION


class EmbeddedJudge(Juror):
    """Verdicts by BERTScore F1 against the reference; equal to the sixth digit is a tie.

    It knows nothing but the reference: a different answer that is just as good loses. The order shown is nothing to it.
    """

    kind = STAND_IN
    indifferent = True

    def __init__(self, name: str = "embedded", device: str = "auto", dtype: str = "auto") -> None:
        self.name = name
        self.scorer = BertScore("bertscore", device=device, dtype=dtype)
        self._new: Record | None = None
        self.signature = str(Signature("judge:embedded", self.scorer.signature, v=VERSION))

    def begin(self, record: Record) -> None:
        self._new = record

    def rounds(self, record: Record, shown: list[Shown]) -> Opinions:
        """BERTScore's rounds, then one opinion a pair."""
        reference = reference_of(record, "the embedded judge")
        # A schedule of several rounds shows a record's texts in each.
        texts = [candidate["text"] for candidate in record["candidates"]]
        new, self._new = self._new is record, None
        scores = yield from self.scorer.rounds(items_of(record, texts, reference=reference), counted=new)
        opinions = []
        for first, second in shown:
            difference = round(scores[first] - scores[second], 6)
            opinions.append(Opinion("A" if difference > 0 else "B" if difference < 0 else "tie-good"))
        return opinions

    def describe(self) -> dict[str, Any]:
        cut = {"truncation": asdict(self.scorer.cuts)} if self.scorer.cuts.inputs_cut else {}
        return {"dtype": str(self.scorer.dtype)} | cut | ({"unread": asdict(self.scorer.unread)} if self.scorer.unread.unread else {})

    def warnings(self) -> list[str]:
        unread = self.scorer.unread.message(UNKNOWN.format(self.scorer.model_name), "a language model judges them: -m openai:MODEL")
        return [*self.scorer.hints, *self.scorer.cuts.message(self.scorer.name), *unread]
