"""`--models-file FILE`: a TOML file with a table for each model, which says once what belongs to the model: where it is, its key, price and limits.

[gpt]
model = "openai:gpt-4o-mini"
price_in = 0.15
price_out = 0.6

[llama]
model = "openai:llama3"
base_url = "http://localhost:11434/v1"
key_env = "LLAMA_KEY"
extra_body = {top_k = 40}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from blendkit.credentials import Address
from blendkit.errors import DataError, RecordError, UsageError
from blendkit.generators.extra_body import check_extra_body
from blendkit.generators.headers import ExtraHeader
from blendkit.registry import nearest
from blendkit.untrusted import read_file, toml_value, typed, utf8

MAX_BYTES = 1 << 20

Words = Annotated[str, msgspec.Meta(min_length=1)]
Least1 = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Least0 = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Number = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Server(msgspec.Struct, omit_defaults=True):
    """What is asked where, by which key, and within which limits: fields of EndpointOptions."""

    base_url: Words | None = None
    api: Literal["chat", "completions"] | None = None
    key_env: Words | None = None
    concurrency: Least1 | None = None
    requests_per_minute: Least1 | None = None
    tokens_per_minute: Least1 | None = None
    retries: Least0 | None = None
    timeout: Number | None = None
    max_wait: Number | None = None
    max_body_bytes: Least1 | None = None
    price_in: Number | None = None
    price_out: Number | None = None
    max_cost: Number | None = None
    extra_body: dict[str, Any] | None = None
    extra_header: dict[str, str] | None = None


class _Decoding(msgspec.Struct, omit_defaults=True):
    """How its answers are drawn: fields of Sampling."""

    max_new_tokens: Least1 | None = None
    temperature: Number | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Least0 | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Number | None = None
    stop: list[Words] | None = None
    logprobs: bool | None = None


class _Own(msgspec.Struct, omit_defaults=True):
    model: Words
    system: str | None = None
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = None


@dataclass(frozen=True)
class Entry:
    """A table: `place` is FILE: NAME, for errors; `endpoint` are fields of EndpointOptions, `sampling` fields of Sampling."""

    place: str
    spec: str
    endpoint: Mapping[str, Any]
    sampling: Mapping[str, Any]
    system: str | None = None

    @property
    def effort(self) -> str | None:
        """How much the model shall reason."""
        return self.sampling.get("effort")


def load_models(path: str) -> dict[str, Entry]:
    """The tables of a file by their names, in their order.

    Raises:
        NoInputError: there is no such file.
        DataError: it is of another form; says FILE: TABLE.KEY.
    """
    try:
        tables = toml_value(utf8(read_file(path, f"--models-file {path}", MAX_BYTES)))
        if not tables:
            raise RecordError("", 'expected a table a model, such as [gpt] with model = "openai:gpt-4o-mini"')
        return {name: _entry(f"{path}: {name}", name, table) for name, table in tables.items()}
    except RecordError as error:
        raise DataError(f"{path}: {error}") from None


def _entry(place: str, name: str, table: object) -> Entry:
    if not isinstance(table, dict):
        raise RecordError(name, f"expected a table, [{name}]")
    if not name or "=" in name or not name.isprintable():
        raise RecordError(name or '""', "a model's name is printable, not empty, and has no `=` in it")
    parts = (_Own, _Server, _Decoding)
    fields = {field: part for part in parts for field in part.__struct_fields__}
    for key in table:
        if key in ("api_key", "key"):
            raise RecordError(f"{name}.{key}", "a key is never written into a file; key_env names the environment's variable that holds it")
        if key not in fields:
            raise RecordError(f"{name}.{key}", f"there is no such setting{nearest(key, fields)}")
    try:
        _check_finite(table)
        own, server, decoding = (typed({key: value for key, value in table.items() if fields[key] is part}, part) for part in parts)
    except RecordError as error:
        raise RecordError("", f"{name}.{error}") from None
    assert isinstance(own, _Own)
    endpoint = {key: value for key, value in msgspec.structs.asdict(server).items() if value is not None}
    sampling = {key: tuple(value) if isinstance(value, list) else value for key, value in msgspec.structs.asdict(decoding).items() if value is not None}
    if own.reasoning_effort is not None:
        sampling["effort"] = own.reasoning_effort
    try:
        if "base_url" in endpoint:
            Address.parsed(endpoint["base_url"], f"{name}.base_url:")
        if "extra_header" in endpoint:
            endpoint["extra_header"] = [ExtraHeader.checked(header, value, f"{name}.extra_header") for header, value in endpoint["extra_header"].items()]
        check_extra_body(endpoint.get("extra_body"), f"{name}.extra_body")
    except UsageError as error:
        raise RecordError("", str(error)) from None
    return Entry(place, own.model, endpoint, sampling, own.system)


def _check_finite(table: Mapping[str, Any]) -> None:
    """TOML has nan and inf, which no limit and no price is."""
    for key, value in table.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(key, f"expected a finite number, got {value}")
