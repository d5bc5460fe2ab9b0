"""What BLEURT and reward models share: token ids in, one number out, by a `Regressor`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from blendkit.models.loading import shared
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature

# Token ids, and token types where the model has them.
Input = tuple[tuple[int, ...], tuple[int, ...] | None]


class RegressionScorer(ModelScorer):
    """A subclass says how an item is tokenized."""

    bounds = "the model's"
    empty = "the model's"

    def __init__(self, name: str, model: str, device: str = "auto", dtype: str = "auto") -> None:
        from blendkit.models.regression import Regressor

        super().__init__(name, model)
        self.regressor = shared(("regression", model, device, dtype), lambda: Regressor(model, device, dtype))
        self.job = shared(("regress", self.regressor), lambda: Job(f"regression:{model}", self._numbers))

    @abstractmethod
    def encoded(self, items: list[Item]) -> list[Input]:
        """Token ids and token types of each item."""

    def rounds(self, items: list[Item]) -> Scores:
        """One work a distinct input."""
        return (yield [Work(self.job, row, len(row[0]), row) for row in self.encoded(items)])

    def _numbers(self, payloads: list[Any]) -> list[Any]:
        """The model's numbers."""
        types = None if any(kinds is None for _, kinds in payloads) else [kinds for _, kinds in payloads]
        return self.regressor([ids for ids, _ in payloads], types)

    @property
    def signature(self) -> str:
        return str(Signature(type(self).__name__.lower(), model=self.model_at, max=self.regressor.longest))


def text_pairs(tokenizer: TextTokenizer, firsts: list[str], seconds: list[str], longest: int) -> list[Input]:
    """Two texts in one input, the longer cut first where both do not fit."""
    if not firsts:
        return []
    found = tokenizer(firsts, seconds, truncation="longest_first", max_length=longest)
    kinds = found.get("token_type_ids") or [None] * len(firsts)
    return [(tuple(ids), None if types is None else tuple(types)) for ids, types in zip(found["input_ids"], kinds, strict=True)]
