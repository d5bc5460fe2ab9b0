"""How a model is asked: how to decode, how to reach a server, and within which limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from blendkit.errors import UsageError, expect_at_least
from blendkit.registry import nearest


@dataclass(frozen=True)
class Sampling:
    """How to decode; temperature 0 is greedy, and more than one beam is a search that samples nothing.

    `diverse` makes each beam a group of its own (Vijayakumar et al. 2018), with a penalty for a token that an earlier
    group chose in the same step. `alternatives` is how many likely tokens to tell of the first place, `schema` the JSON
    Schema that the answer must follow; both are for endpoints. `effort` is how much a model that reasons shall do so
    (none, low, medium, high; None leaves it to the model); `max_new_tokens` are for the answer alone.
    """

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    typical_p: float = 1.0
    beams: int = 1
    diverse: bool = False
    logprobs: bool = False
    alternatives: int = 0
    schema: dict[str, Any] | None = None
    effort: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a number that is out of its range."""
        expect_at_least({"max_new_tokens": 1, "temperature": 0, "top_p": 0, "top_k": 0, "beams": 1}, vars(self))
        if self.top_p > 1:
            raise UsageError(f"top_p: expected at most 1, got {self.top_p}")

    @property
    def method(self) -> str:
        """The record's `decoding_method`."""
        if self.beams > 1:
            return f"{'diverse-beam' if self.diverse else 'beam'}({self.beams})"
        if self.temperature == 0:
            return "greedy"
        parts = [f"temperature={self.temperature:g}"]
        parts += [f"top_p={self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"top_k={self.top_k}"] if self.top_k else []
        parts += [f"min_p={self.min_p:g}"] if self.min_p else []
        parts += [f"typical_p={self.typical_p:g}"] if self.typical_p < 1 else []
        return "sampling(" + ",".join(parts) + ")"


@dataclass(frozen=True)
class EndpointOptions:
    """How to reach an OpenAI-compatible server, and within which limits. Prices are in $ a million tokens.

    `cache` is an SQLite file; `emit_batch` and `read_batch` (one or several) are files in the OpenAI batch format. `asked` is what errors call
    these options by: the flag that was given, or None where a command was given none.
    """

    base_url: str | None = None
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    api: str = "chat"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    cache: str | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float | None = None
    emit_batch: str | None = None
    read_batch: str | Sequence[str] | None = None
    max_body_bytes: int = 64 << 20
    asked: str | None = "endpoint"

    def __post_init__(self) -> None:
        """Raises UsageError for a number that is out of its range."""
        least = {"concurrency": 1, "retries": 0, "timeout": 0, "requests_per_minute": 1, "tokens_per_minute": 1, "price_in": 0, "price_out": 0}
        expect_at_least({**least, "max_body_bytes": 1}, vars(self))

    @property
    def of_use(self) -> str | None:
        """What errors call these options by where no model has a use for them; None where they are nobody's wish."""
        return None if self == EndpointOptions() else self.asked

    @property
    def batches(self) -> tuple[str, ...]:
        """The files that answers are read from."""
        return (self.read_batch,) if isinstance(self.read_batch, str) else tuple(self.read_batch or ())

    @property
    def only_emits(self) -> bool:
        """Whether requests are written down, and there are no answers at all."""
        return bool(self.emit_batch) and not self.batches

    @property
    def offline(self) -> bool:
        """Whether a batch file stands in for the server."""
        return bool(self.emit_batch or self.batches)

    def share(self, workers: int) -> EndpointOptions:
        """One worker's part of the limits, which are for all of them together.

        Raises:
            UsageError: a batch file is written, which only one process can do.
        """
        if workers == 1:
            return self
        if self.emit_batch:
            raise UsageError("--emit-batch: one process writes the file; leave --workers out")
        parts = {name: getattr(self, name) for name in ("concurrency", "requests_per_minute", "tokens_per_minute")}
        whole = {name: max(1, value // workers) for name, value in parts.items() if value is not None}
        return replace(self, **whole, max_cost=None if self.max_cost is None else self.max_cost / workers)


# Each `--decoding` of the paper's appendix: the field of Sampling that its number sets, and the number when none is given.
DECODINGS: dict[str, tuple[str, float]] = {
    "greedy": ("temperature", 0.0),
    "beam": ("beams", 4),
    "diverse-beam": ("beams", 4),
    "top-k": ("top_k", 50),
    "top-p": ("top_p", 0.9),
    "typical": ("typical_p", 0.95),
    "min-p": ("min_p", 0.05),
    "temperature": ("temperature", 0.7),
}


def decoding_forms() -> list[str]:
    """How `--decoding` names each, with the number that it takes where none is given."""
    return [name if name == "greedy" else f"{name}[:{number:g}]" for name, (_, number) in DECODINGS.items()]


def decoded_by(spec: str, sampling: Sampling) -> Sampling:
    """The sampling of `NAME` or `NAME:NUMBER`, the rest as given; greedy and beams ignore the temperature.

    Raises:
        UsageError: there is no such method, or the method does not take this number.
    """
    name, colon, text = spec.partition(":")
    if name not in DECODINGS:
        raise UsageError(f"--decoding {spec}: expected one of {', '.join(DECODINGS)}{nearest(name, DECODINGS)}")
    field, number = DECODINGS[name]
    if colon:
        try:
            number = float(text)
        except ValueError:
            raise UsageError(f"--decoding {spec}: expected a number behind the colon, got {text!r}") from None
    whole = field in ("beams", "top_k")
    least, most = (2.0, 1e6) if field == "beams" else (1.0, 1e9) if whole else (0.0, 100.0 if field == "temperature" else 1.0)
    if not least <= number <= most or (whole and number != int(number)) or (name == "greedy" and number):
        raise UsageError(f"--decoding {spec}: {number:g} is no number that {name} takes")
    if field != "temperature" and field != "beams" and sampling.temperature == 0:
        raise UsageError(f"--decoding {spec} samples, which --temperature 0 does not; leave one of them out")
    settings: dict[str, Any] = {field: int(number) if whole else number}
    return replace(sampling, **settings, diverse=name == "diverse-beam")
