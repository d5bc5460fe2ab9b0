"""What `generate` and `judge` ask of a model that writes text, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from blendkit.errors import UsageError

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be continued, and the seed of its own sampling."""

    messages: Messages
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote, why it ended (`stop` or `length`), and token counts."""

    text: str
    finish_reason: str | None
    usage: dict[str, int] | None


@dataclass(frozen=True)
class Sampling:
    """How to decode; temperature 0 is greedy."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The record's `decoding_method`."""
        if self.temperature == 0:
            return "greedy"
        parts = [f"temperature={self.temperature:g}"]
        parts += [f"top_p={self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"top_k={self.top_k}"] if self.top_k else []
        return "sampling(" + ",".join(parts) + ")"


class TextModel(ABC):
    """A model behind `complete`."""

    budgeted = True
    spec: str

    @abstractmethod
    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """One completion a prompt, in order; a prompt that failed for itself gives its exception."""

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt, about."""
        return sum(len(message["content"]) for message in prompt.messages) // 4 + 1

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For the manifest."""


@dataclass(frozen=True)
class EndpointOptions:
    """How to reach an OpenAI-compatible server."""

    base_url: str | None = None
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0


def text_model(spec: str, endpoint: EndpointOptions, device: str = "auto", dtype: str = "auto") -> TextModel:
    """`openai:MODEL` is an endpoint; all else is a hub id or a directory for transformers."""
    if spec.startswith("openai:"):
        from blendkit.generators.endpoint import Endpoint

        return Endpoint(spec.removeprefix("openai:"), endpoint)
    if not spec:
        raise UsageError("--model: expected a hub id, a directory or openai:MODEL, got nothing")
    from blendkit.generators.local import LocalModel

    return LocalModel(spec, device, dtype)
