"""Minimum Bayes risk (Kumar and Byrne 2004): a candidate's mean similarity to the other candidates."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from blendkit.errors import UsageError
from blendkit.models.cuts import Cuts
from blendkit.models.unread import Unread
from blendkit.registry import options_of, parameters_of
from blendkit.scorers.base import Item, Scorer, Scores
from blendkit.signature import Signature


class MBR(Scorer):
    """`mbr:METRIC`, any metric that compares with a reference; each other candidate takes the reference's place."""

    about = "mean METRIC against the other candidates: consensus; mbr:METRIC, such as mbr:bertscore"
    paper, bounds = "Kumar and Byrne 2004", "METRIC's"
    needs_reference = False
    default_model = "bertscore"
    empty = "METRIC's; 0 for one alone"

    def __init__(
        self, name: str, model: str = "bertscore", device: str = "auto", dtype: str = "auto", seed: int = 0, bertscore_layer: int | None = None,
        bertscore_idf: str | None = None, bertscore_baseline: str | None = None, tokenize: str | None = None,
    ) -> None:  # fmt: skip
        from blendkit.scorers import make_scorer

        super().__init__(name)
        self.metric = make_scorer(
            model, device=device, dtype=dtype, seed=seed, bertscore_layer=bertscore_layer, bertscore_idf=bertscore_idf,
            bertscore_baseline=bertscore_baseline, tokenize=tokenize,
        )  # fmt: skip
        self.plans_ahead = self.metric.plans_ahead
        self.dtype = getattr(self.metric, "dtype", None)
        if not self.metric.needs_reference:
            raise UsageError(f"--metric mbr:{model}: {self.metric.name} compares with no reference; try mbr:bertscore or mbr:rouge2")

    @classmethod
    def takes(cls, model: str) -> Collection[str]:
        """METRIC's options."""
        from blendkit.scorers import parsed_spec, scorer_class

        _, name, inner = parsed_spec(model or cls.default_model)
        return {"model", "device", "dtype", "seed"} | {*parameters_of(cls)} & {*options_of(scorer_class(name), inner)}

    def rounds(self, items: list[Item]) -> Scores:
        """The metric on all ordered pairs; equal texts are the metric's own matter."""
        scores = iter((yield from self.metric.rounds(_pairs(items))))
        means = []
        for item in items:
            others = len(item.peers) - 1
            means.append(sum(next(scores) for _ in range(others)) / others if others > 0 else 0.0)
        return means

    @property
    def signature(self) -> str:
        return str(Signature("mbr", self.metric.signature))

    def signature_of(self, items: list[Item]) -> str:
        return str(Signature("mbr", self.metric.signature_of(_pairs(items))))

    @property
    def models(self) -> dict[str, str]:
        return self.metric.models

    @cached_property
    def cuts(self) -> Cuts:
        return self.metric.cuts

    @cached_property
    def unread(self) -> Unread:
        return self.metric.unread

    def warnings(self) -> list[str]:
        return [f"{self.name}: {line.removeprefix(f'{self.metric.name}: ')}" for line in self.metric.warnings()]


def _pairs(items: list[Item]) -> list[Item]:
    """Each item with each other candidate as its reference."""
    return [
        Item(item.source, item.candidate, peer, item.record_id, item.index) for item in items for place, peer in enumerate(item.peers) if place != item.index
    ]
