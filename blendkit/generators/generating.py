"""`generate`: one candidate a model a record."""

from __future__ import annotations

from typing import Any

from blendkit.errors import UsageError
from blendkit.generators.base import Completion, EndpointOptions, Messages, Prompt, Sampling, text_model
from blendkit.records import Record, source_text
from blendkit.running import seeded
from blendkit.stage import Stage, Work


class Generating(Stage):
    """Appends to `candidates`; `models` are NAME=SPEC or SPEC, in the order in which candidates are added."""

    name = "generate"
    window = 32

    def __init__(
        self,
        models: list[str],
        sampling: Sampling,
        endpoint: EndpointOptions,
        system: str | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.sampling, self.system, self.seed = sampling, system, seed
        specs: dict[str, str] = {}
        for model in models:
            name, mark, spec = model.partition("=")
            if name in specs:
                raise UsageError(f"-m {model}: the name {name} is given twice")
            specs[name] = spec if mark else model
        self.models = {name: text_model(spec, endpoint, device, dtype) for name, spec in specs.items()}

    def budgeted(self, group: str) -> bool:
        """A local model keeps to the budget, an endpoint to its concurrency."""
        return self.models[group].budgeted

    def plan(self, record: Record) -> list[Work]:
        """One prompt a model. Sampling differs from record to record, so equal prompts stay apart."""
        messages = prompt_messages(record, self.system)
        works = []
        for name, model in self.models.items():
            prompt = Prompt(messages, seeded(self.seed, name, record["id"]))
            key = source_text(record) if self.sampling.temperature == 0 else record["id"]
            works.append(Work(name, key, model.length(prompt) + self.sampling.max_new_tokens, prompt))
        return works

    def run(self, group: str, payloads: list[Prompt]) -> list[Completion | Exception]:
        """One model's completions."""
        return self.models[group].complete(payloads, self.sampling)

    def finish(self, record: Record, results: list[Completion]) -> None:
        """Appends the candidates."""
        candidates = record.setdefault("candidates", [])
        for name, completion in zip(self.models, results, strict=True):
            candidate = {"model": name, "text": completion.text, "decoding_method": self.sampling.method, "finish_reason": completion.finish_reason}
            candidates.append({**candidate, "usage": completion.usage} if completion.usage else candidate)

    def describe(self) -> dict[str, Any]:
        """Models and sampling."""
        return {"models": {name: model.describe() for name, model in self.models.items()}, "sampling": vars(self.sampling)}


def prompt_messages(record: Record, system: str | None) -> Messages:
    """The record as a conversation: its `messages`, or x as one user turn."""
    messages: Messages = record.get("messages") or [{"role": "user", "content": source_text(record)}]
    return [{"role": "system", "content": system}, *messages] if system else messages
