"""What `generate` and `judge` ask of a model that writes text, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from blendkit.errors import RecordError
from blendkit.generators.options import Sampling
from blendkit.pipeline.work import Job

Messages = list[dict[str, str]]
Material = Callable[[str], str]


class Format(Protocol):
    """How a conversation becomes a text."""

    def __call__(self, messages: Messages, *, material: Material) -> str: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be continued, and the seed of its own sampling.

    `format`, where there is one, makes a text of the messages, in place of the model's chat template, with each text of
    theirs as its `material` gives it; `stop` are texts at which that format's answers end. `quoted` are texts of others
    inside the messages: where a prompt is too long for the model, these are cut, and whole messages only where there are none.
    """

    messages: Messages
    seed: int = 0
    format: Format | None = None
    stop: tuple[str, ...] = ()
    quoted: tuple[str, ...] = ()

    def text(self, material: Material = str) -> str:
        """The messages as one text, for models that take no conversation; what is foreign in it goes through `material`."""
        if self.format:
            return self.format(self.messages, material=material)
        return "\n".join(material(message["content"]) for message in self.messages)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote, why it ended (`stop` or `length`), token counts (and `cost` in $), and the tokens' mean log-probability in nats.

    `alternatives` are what the first token that is no blank could have been, with log-probabilities, where they were asked for.
    `text` is the answer alone; what the model thought before it is `reasoning`.
    """

    text: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    logprob: float | None = None
    alternatives: dict[str, float] | None = None
    reasoning: str | None = None

    @property
    def reasoned(self) -> bool:
        """Whether the model thought first, by what it wrote or by the server's count of tokens."""
        return self.reasoning is not None or bool((self.usage or {}).get("reasoning_tokens"))

    def fields(self) -> dict[str, Any]:
        """What a candidate records of it, beside the text."""
        found: dict[str, Any] = {"finish_reason": self.finish_reason}
        if self.usage:
            found["usage"] = self.usage
        if self.logprob is not None:
            found["scores"] = {"logprobs": round(self.logprob, 6)}
        if self.reasoning:
            found["reasoning"] = self.reasoning
        return found

    def as_dict(self) -> dict[str, Any]:
        """As a cache keeps it."""
        return asdict(self)


class Unanswered(RecordError):
    """A batch that was read has no answer to the request (yet)."""


class TextModel(ABC):
    """A model behind `complete`."""

    # It runs in this process, and not behind an endpoint.
    local = True
    # Records that a stage's window should hold at least for its sake.
    window = 1
    # Tokens a batch, of a budgeted one.
    batch_tokens = 8192
    spec: str

    @abstractmethod
    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """One completion a prompt, in order; in place of a completion stands the exception of a prompt that failed alone."""

    def completing(self, sampling: Sampling) -> Job:
        """The job of continuing prompts."""
        return Job(self.spec, partial(self.complete, sampling=sampling), self.budgeted, self.close)

    @property
    def budgeted(self) -> bool:
        """Whether its batches keep to the token budget; else it gets all that a window has for it at once."""
        return self.local

    def check(self, sampling: Sampling) -> None:  # noqa: B027
        """Raises UsageError for a way of decoding that the model does not have."""

    def length(self, prompt: Prompt) -> int:
        """About how many tokens the prompt has."""
        return sum(len(message["content"]) for message in prompt.messages) // 4 + 1

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For the manifest."""

    def put_away(self) -> None:  # noqa: B027
        """Frees the memory of weights for another model's sake; the next batch loads them again. Most hold none."""

    def close(self) -> None:  # noqa: B027
        """Closes connections, where the model holds any; it may be used again."""

    def warnings(self) -> list[str]:
        """What a person should know at the end, one line each."""
        return []
