"""What BLEURT and reward models share: token ids in, one number out, by a `Regressor`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from blendkit.errors import NoInputError
from blendkit.models.chat_inputs import started
from blendkit.models.cuts import Cuts
from blendkit.models.loading import shared
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature
from blendkit.terminal_text import count_of

if TYPE_CHECKING:
    from blendkit.models.regression import Regressor
    from blendkit.models.token_logit import TokenLogit

# Token ids, and token types where the model has them.
Input = tuple[tuple[int, ...], tuple[int, ...] | None]


class RegressionScorer(ModelScorer):
    """A subclass says how an item is tokenized, and which of the model's labels is the score (`place`)."""

    bounds = "the model's"
    plans_ahead = True
    empty = "the model's"

    def __init__(self, name: str, model: str, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(name, model)
        self.regressor = self.loaded(device, dtype)
        self.dtype, self.hints = self.regressor.dtype, self.regressor.hints
        # Scores by several labels of one model share its works.
        self.job = shared(("regress", self.regressor), lambda: Job(f"regression:{model}", self._numbers))
        self.place = self.label_place()

    def loaded(self, device: str, dtype: str) -> Regressor | TokenLogit:
        """The model; scorers of one model share it."""
        from blendkit.models.regression import Regressor

        return shared(("regression", self.model_name, device, dtype), lambda: Regressor(self.model_name, device, dtype))

    @abstractmethod
    def encoded(self, items: list[Item]) -> list[Input]:
        """Token ids and token types of each item."""

    def label_place(self) -> int:
        """Which label is the score.

        Raises:
            NoInputError: the model has several.
        """
        labels = len(self.regressor.labels)
        if labels != 1:
            raise NoInputError(f"{self.model_name} has {count_of(labels, 'label')}; a score needs a model with one")
        return 0

    def rounds(self, items: list[Item]) -> Scores:
        """One work a distinct input."""
        found = yield [Work(self.job, row, len(row[0]), row) for row in self.encoded(items)]
        return [numbers[self.place] for numbers in found]

    def _numbers(self, payloads: list[Any]) -> list[Any]:
        """The model's numbers, one a label."""
        types = None if any(kinds is None for _, kinds in payloads) else [kinds for _, kinds in payloads]
        return self.regressor([ids for ids, _ in payloads], types)

    @property
    def signature(self) -> str:
        return str(Signature(type(self).__name__.lower(), model=self.model_at, **self.facts(), max=self.regressor.longest))

    def facts(self) -> dict[str, Any]:
        """What else decides the score."""
        return {}


def text_pairs(tokenizer: TextTokenizer, firsts: list[str], seconds: list[str], longest: int, cuts: Cuts | None = None) -> list[Input]:
    """Two texts in one input, the longer cut first where both do not fit; `cuts` counts."""
    if not firsts:
        return []
    rows = _pairs(tokenizer, firsts, seconds)
    if cuts is not None:
        for ids, _ in rows:
            cuts.count(len(ids), longest)
    long = [place for place, (ids, _) in enumerate(rows) if len(ids) > longest]
    shorter = _pairs(tokenizer, [firsts[place] for place in long], [seconds[place] for place in long], truncation="longest_first", max_length=longest)
    for place, row in zip(long, shorter, strict=True):
        rows[place] = row
    return rows


def _pairs(tokenizer: TextTokenizer, firsts: list[str], seconds: list[str], **settings: Any) -> list[Input]:
    if not firsts:
        return []
    found = tokenizer(firsts, seconds, **settings)
    rows = [tuple(started(ids, tokenizer.tokenizer)) for ids in found["input_ids"]]
    kinds = found.get("token_type_ids") or [None] * len(firsts)
    return [(ids, None if types is None else tuple(types) or (0,)) for ids, types in zip(rows, kinds, strict=True)]
