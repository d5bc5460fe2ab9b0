"""How a model is asked: how to decode, how to reach a server, and within which limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from blendkit.credentials import Address, hold
from blendkit.errors import UsageError, expect_at_least
from blendkit.generators.extra_body import check_extra_body, secrets_in
from blendkit.generators.headers import VARIABLE, ExtraHeader, merged
from blendkit.generators.limits import Purse
from blendkit.generators.models_file import Entry, load_models
from blendkit.registry import flag_of, nearest


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

    They are a run's; `models_file`, a TOML file, says of each model what is its own (models_file.py), and stands above them.
    `key_env` is the name of the variable that holds the key, or MODEL=NAME for one model; OPENAI_API_KEY without it.
    `extra_header` are NAME:VALUE, and `extra_body` is added to each request. `cache` is an SQLite file; `emit_batch` and
    `read_batch` (one or several) are files in the OpenAI batch format.

    Set by blendkit itself: `asked` is what errors call these options by (the flag that was given, or None where a command was
    given none), `named` the tables of `models_file`, `own` the settings that are one model's own, `purse` what all models of a run
    may spend together.
    """

    base_url: str | None = None
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    max_wait: float = 600.0
    api: str = "chat"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    cache: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    emit_batch: str | None = None
    read_batch: str | Sequence[str] | None = None
    max_body_bytes: int = 64 << 20
    key_env: str | Sequence[str] | None = None
    extra_header: str | Sequence[str | ExtraHeader] | None = None
    extra_body: Mapping[str, Any] | None = None
    models_file: str | None = None
    asked: str | None = "endpoint"
    named: Mapping[str, Entry] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    purse: Purse | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raises UsageError for a number that is out of its range or a header that is none, and as `load_models` does."""
        least = {"concurrency": 1, "retries": 0, "timeout": 0, "max_wait": 0, "requests_per_minute": 1, "tokens_per_minute": 1}
        expect_at_least({**least, "price_in": 0, "price_out": 0, "max_cost": 0, "max_body_bytes": 1}, vars(self))
        if self.models_file and not self.named:
            object.__setattr__(self, "named", load_models(self.models_file))
        if self.extra_header is not None:
            given = [self.extra_header] if isinstance(self.extra_header, str) else self.extra_header
            headers = [header if isinstance(header, ExtraHeader) else ExtraHeader.parsed(header) for header in given]
            object.__setattr__(self, "extra_header", merged((), headers))
        check_extra_body(self.extra_body)
        hold(secrets_in(self.extra_body))

    @classmethod
    def of_flags(cls, **given: Any) -> EndpointOptions:
        """Those that a caller was given as arguments or flags. Errors name the first that is not at its default; where none is, there is nothing to say."""
        defaults = {one.name: one.default for one in fields(cls)}
        return cls(**given, asked=next((flag_of(name) for name, value in given.items() if value != defaults[name]), None))

    @classmethod
    def of_arguments(cls, given: Mapping[str, Any]) -> EndpointOptions:
        """Those among all arguments of a function."""
        return cls.of_flags(**{one.name: given[one.name] for one in fields(cls) if one.name in given})

    @property
    def headers(self) -> tuple[ExtraHeader, ...]:
        """Those that are added to each request."""
        return tuple(header for header in self.extra_header or () if isinstance(header, ExtraHeader))

    @property
    def of_use(self) -> str | None:
        """What errors call these options by where no model has a use for them; None where they are nobody's wish."""
        return None if replace(self, asked=EndpointOptions.asked) == EndpointOptions() else self.asked

    @property
    def beside_tables(self) -> EndpointOptions:
        """What was asked for beside the tables."""
        return replace(self, models_file=None, named={})

    @property
    def own_server(self) -> bool:
        """Whether the address is the model's own, where no key of the run is sent."""
        return "base_url" in self.own

    @property
    def priced(self) -> bool:
        """Whether there are prices; 0 is one."""
        return self.price_in is not None or self.price_out is not None

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

    def key_of(self, *names: str) -> str | None:
        """The variable that `--key-env` names for a model of one of these names, or for all."""
        return next((variable for wanted in (*names, "") for model, variable in self._keys() if model == wanted), None)

    def keyed(self) -> list[str]:
        """The models that `--key-env` names."""
        return [model for model, _ in self._keys() if model]

    def _keys(self) -> list[tuple[str, str]]:
        """Model (or nothing, for all) and variable of each `--key-env`."""
        given = [self.key_env] if isinstance(self.key_env, str) else self.key_env or ()
        return [(model, variable) for model, _, variable in (one.rpartition("=") for one in given)]

    def of(self, settings: Mapping[str, Any], place: str, *names: str) -> EndpointOptions:
        """One model's, whom `--key-env` calls by one of the names: its own `settings` stand above the run's.

        Where the address is its own, no secret of the run's goes there: neither its key nor a header that holds one.
        """
        found = dict(settings)
        elsewhere = "base_url" in found
        if "price_in" in found or "price_out" in found:
            found = {"price_in": None, "price_out": None, **found}
        if self.extra_body:
            run = {key: value for key, value in self.extra_body.items() if not (elsewhere and secrets_in({key: value}))}
            found["extra_body"] = {**run, **found.get("extra_body", {})}
        found["extra_header"] = merged([header for header in self.headers if not (elsewhere and header.secret)], found.get("extra_header", ())) or None
        given = self.key_of(*names)
        if set(names) & set(self.keyed()) or ("key_env" not in found and not elsewhere):
            found["key_env"] = given
        elif "key_env" not in found:
            found["key_env"] = None
        return replace(self, **found, asked=place, own=tuple(settings), models_file=None, named={})

    def secrets(self) -> list[str]:
        """What the variables hold that these options name, of all models."""
        headers = [*self.headers, *(header for table in self.named.values() for header in table.endpoint.get("extra_header", ()))]
        names = [variable for _, variable in self._keys()] + [table.endpoint["key_env"] for table in self.named.values() if "key_env" in table.endpoint]
        names += [header.value.removeprefix(VARIABLE) for header in headers if header.value.startswith(VARIABLE)]
        values = [os.environ.get(name, "").strip() for name in names]
        urls = [table.endpoint["base_url"] for table in self.named.values() if "base_url" in table.endpoint]
        values += [secret for url in urls for secret in Address.parsed(url).secrets]
        return [*values, *(header.value for header in headers if header.secret and not header.value.startswith(VARIABLE))]

    def purses(self) -> tuple[Purse, ...]:
        """What an answer is paid from: the run's purse, and the model's own."""
        run = self.purse or Purse(self.max_cost)
        return (run, Purse(self.max_cost, f"{self.asked}: max_cost")) if "max_cost" in self.own else (run,)

    def share(self, workers: int) -> EndpointOptions:
        """One worker's part of the limits, which are for all of them together.

        Raises:
            UsageError: a batch file is written, which only one process can do.
        """
        if workers == 1:
            return self
        if self.emit_batch:
            raise UsageError("--emit-batch: one process writes the file; leave --workers out")
        named = {name: replace(entry, endpoint=_shared(entry.endpoint, workers)) for name, entry in self.named.items()}
        return replace(self, **{**_shared(vars(self), workers), "named": named})


SHARED_LIMITS = ("concurrency", "requests_per_minute", "tokens_per_minute")


def _shared(settings: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """The settings of a table or a run, with one worker's part of each limit."""
    parts = {name: max(1, settings[name] // workers) for name in SHARED_LIMITS if settings.get(name) is not None}
    if settings.get("max_cost") is not None:
        parts["max_cost"] = settings["max_cost"] / workers
    return {**settings, **parts}


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
