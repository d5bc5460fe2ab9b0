"""The whole contract of a scorer: one number for one candidate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from blendkit.models.cuts import Cuts
from blendkit.models.loading import fingerprint, shared
from blendkit.models.unread import Unread
from blendkit.pipeline.work import Job, Rounds, Work
from blendkit.records import Record

if TYPE_CHECKING:
    import torch

# What an empty text gets where a sum over its tokens would make it the best of all.
EMPTY = -1e4
Scores = Rounds[list[float]]


@dataclass(frozen=True, slots=True)
class Item:
    """One candidate to be scored. `source` and `reference` are empty for scorers that do not need them.

    `peers` are the texts of all candidates of the record, this one at `index`; `messages` are (role, content), the
    conversation that the candidate answers.
    """

    source: str
    candidate: str
    reference: str
    record_id: str
    index: int
    peers: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()


def items_of(record: Record, texts: Sequence[str], source: str = "", reference: str = "") -> list[Item]:
    """One item a text; the texts are candidates of the record, all that compete with each other."""
    messages = tuple((message["role"], message["content"]) for message in record.get("messages") or [{"role": "user", "content": source}])
    return [Item(source, text, reference, record["id"], index, tuple(texts), messages) for index, text in enumerate(texts)]


class Graded(float):
    """A score with the parts that it is made of, which the record keeps as `rubrics[name]`; NaN where one of them is not known."""

    def __new__(cls, value: float, parts: dict[str, Any], unread: Sequence[str] = ()) -> Graded:
        """The score, and its parts by their names; `unread` are the replies that should have been parts and could not be read."""
        made = super().__new__(cls, value)
        made.parts, made.unread = parts, unread
        return made

    parts: dict[str, Any]
    unread: Sequence[str]


class Scorer(ABC):
    """Writes `scores[name]` of each candidate; every value is finite, whatever the texts, but for the NaN of `Graded`, which the record keeps as null.

    The class variables are the scorer's row in `score --list` and docs/scorers.md. A signature tells all that
    decided a score; a score without it is not a result. Of `model`, `kind` (its name in the table), `device`, `dtype`,
    `seed` and the options of `make_scorer`, a scorer gets those that its `__init__` names behind `name`.
    """

    about: ClassVar[str]
    paper: ClassVar[str] = "–"
    bounds: ClassVar[str]
    needs_reference: ClassVar[bool] = True
    needs_source: ClassVar[bool] = False
    # The default model; "" where one must be named, None where there is none.
    default_model: ClassVar[str | None] = None
    # The metric's own tokenizer, where NAME:TOKENIZER and --tokenize name others (the option `tokenize`); None where there is no choice.
    own_tokenizer: ClassVar[str | None] = None
    # The lowest score ranks first; a label of such a scorer begins with its name and a dash.
    lower_is_better: ClassVar[bool] = False
    # What an empty candidate or reference gets.
    empty: ClassVar[str] = "0"
    # On a GPU, rounds of later records may be planned in a thread while its jobs run: only rounds tokenize, or there is nothing to tokenize.
    plans_ahead: bool = False
    # Windows of records that it may work on at a time (see Stage).
    overlap: int = 1

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def rounds(self, items: list[Item]) -> Scores:
        """The work of one record's items, round after round; returns their scores."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Such as `bleu|eff:yes|tok:13a|v:2.6.0`."""

    def signature_of(self, items: list[Item]) -> str:
        """The signature of one record's scores; another one where the texts had a say in how they were scored."""
        return self.signature

    @property
    def models(self) -> dict[str, str]:
        """Models by name, each with its revision or hash."""
        return {}

    @cached_property
    def cuts(self) -> Cuts:
        """What did not fit into the model, for a scorer that counts it."""
        return Cuts()

    @cached_property
    def unread(self) -> Unread:
        """Texts of which hardly anything was read, for a scorer that counts them."""
        return Unread()

    def describe(self) -> dict[str, Any]:
        """For the manifest, beside the signature and the models."""
        return {}

    def warnings(self) -> list[str]:
        """What a person should know at the end, one line each."""
        return self.cuts.message(self.name)

    def unread_warnings(self, what: str, instead: str) -> list[str]:
        """A line on the texts of which hardly anything was read, as `Unread.message` has it."""
        return [f"{self.name}: {line}" for line in self.unread.message(what, instead)]


class TextScorer(Scorer):
    """A scorer without a model: one number from an item's texts, in one round. Equal `settings` give equal scores."""

    plans_ahead = True
    settings: tuple[Hashable, ...] = ()

    def rounds(self, items: list[Item]) -> Scores:
        return (yield [Work(self.job, self.key(item), 1, item) for item in items])

    @cached_property
    def job(self) -> Job:
        """One for all scorers of this kind and these settings, whatever their labels."""
        return shared((type(self), self.settings), lambda: Job(self.name, self.score, budgeted=False))

    @abstractmethod
    def score(self, items: list[Item]) -> list[float]:
        """One number an item."""

    def key(self, item: Item) -> Hashable:
        """Items with equal keys have equal scores."""
        return (item.candidate, item.reference)


class ModelScorer(Scorer):
    """A scorer with a model."""

    def __init__(self, name: str, model: str) -> None:
        super().__init__(name)
        self.model_name = model
        # An encoder's number type, and a line where another one is clearly quicker.
        self.dtype: torch.dtype | None = None
        self.hints: list[str] = []

    @property
    def revision(self) -> str:
        """The model's revision or hash."""
        return fingerprint(self.model_name)

    @property
    def model_at(self) -> str:
        """`NAME@REVISION`, for signatures; `NAME@REVISION,int8` of a model in int8, whose scores are others."""
        return f"{self.model_name}@{self.revision}{',int8' if str(self.dtype) == 'torch.int8' else ''}"

    def warnings(self) -> list[str]:
        return [*self.hints, *super().warnings()]

    @property
    def models(self) -> dict[str, str]:
        return {self.model_name: self.revision}
