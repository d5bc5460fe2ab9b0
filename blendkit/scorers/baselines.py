"""Baselines that need neither a model nor a reference: length and random (LLM-Blender, Table 2)."""

from __future__ import annotations

import random
from collections.abc import Hashable

from blendkit.scorers.base import Item, TextScorer
from blendkit.seeding import seeded
from blendkit.signature import Signature


class Length(TextScorer):
    """The number of characters; judges are known to like long answers."""

    needs_reference = False
    about, bounds = "number of characters", "0 and up"

    def score(self, items: list[Item]) -> list[float]:
        return [float(len(item.candidate)) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature("length", "characters"))


class Random(TextScorer):
    """Uniform in [0, 1), from the seed, the record's id and the candidate's place."""

    needs_reference = False
    about, bounds = "a random number, by --seed", "0 to 1"
    empty = "as any"

    def __init__(self, name: str, seed: int = 0) -> None:
        super().__init__(name)
        self.seed, self.settings = seed, (seed,)

    def key(self, item: Item) -> Hashable:
        return (item.record_id, item.index)

    def score(self, items: list[Item]) -> list[float]:
        return [random.Random(seeded(self.seed, item.record_id, str(item.index))).random() for item in items]

    @property
    def signature(self) -> str:
        return str(Signature("random", seed=self.seed))
