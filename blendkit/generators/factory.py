"""The table of generators: from a name to the model behind it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from blendkit.credentials import Address
from blendkit.errors import UsageError
from blendkit.generators.base import TextModel
from blendkit.generators.limits import Purse
from blendkit.generators.models_file import Entry
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.registry import Registry, Row, nearest, options_of
from blendkit.specs import default_name

# Windows in work at a time where servers are waited for.
OVERLAP = 4

# What `generate` asks where no model is named; its weights are a package (blendkit.models.packaged).
DEFAULT = "smollm2"
GENERATORS = Registry(
    "blendkit.generators",
    {
        "local": Row("blendkit.generators.local:LocalModel", "a model for transformers", form="a hub id, a directory or FILE.gguf"),
        DEFAULT: Row("blendkit.generators.local:LocalModel", "SmolLM2-135M-Instruct from a package: English, often wrong, no network", form=DEFAULT),
        "vllm": Row("blendkit.generators.vllm:VllmModel", "a model for vLLM, in this process", form="vllm:MODEL"),
        "openai": Row("blendkit.generators.endpoint:Endpoint", "any OpenAI-compatible server", form="openai:MODEL"),
    },
)
# Where the whole SPEC is the model; elsewhere it is what stands behind `NAME:`.
WHOLE = ("local", DEFAULT)
# `openai:MODEL@URL`; an @ within a model's name is its own.
_AT_URL = re.compile(r"@(?=https?://)", re.IGNORECASE)


def windows_at_once(models: Iterable[TextModel], endpoint: EndpointOptions) -> int:
    """A stage's `overlap`: more than one window where all models are servers that are really asked."""
    return 1 if endpoint.offline or any(model.local for model in models) else OVERLAP


def tokens_a_batch(models: Iterable[TextModel], otherwise: int) -> int:
    """A stage's `batch_tokens`: as many as all of its local models have room for."""
    return min((model.batch_tokens for model in models if model.local), default=otherwise)


def generator_of(spec: str) -> tuple[str, str]:
    """The row of a SPEC, `local` where none is named, and the model that it is given."""
    name, colon, model = spec.partition(":")
    if not colon or name not in GENERATORS or name == "local":
        return "local", spec
    return name, spec if name in WHOLE else model


@dataclass(frozen=True)
class Chosen:
    """What `-m SPEC` means: the SPEC of the table of generators, and what it is asked with; `name` is how records call the model.

    `table` is what `--models-file` says of it, where the SPEC is a name there.
    """

    name: str
    spec: str
    endpoint: EndpointOptions
    table: Entry | None = None

    def sampling(self, sampling: Sampling) -> Sampling:
        """The sampling with the table's effort, where none was asked for."""
        return replace(sampling, effort=self.table.effort) if self.table and sampling.effort is None else sampling


def chosen(spec: str, endpoint: EndpointOptions, name: str = "") -> Chosen:
    """The model of a SPEC: of a table's name, of `openai:MODEL@URL`, or of any other.

    Raises:
        UsageError: it has two addresses, or one that is none.
    """
    table = endpoint.named.get(spec)
    settings, place, own = (dict(table.endpoint), table.place, table.spec) if table else ({}, "-m", spec)
    shown = spec if table else default_name(spec)
    if parts := _AT_URL.split(own, maxsplit=1)[1:]:
        own, url = _AT_URL.split(own, maxsplit=1)[0], parts[0]
        if "base_url" in settings:
            raise UsageError(f"{place}: two addresses: base_url, and the one behind @ in model")
        settings["base_url"] = url
        public = Address.parsed(url, f"{place} {own}@").name
        shown, place = (spec, place) if table else (f"{own}@{public}", f"-m {own}@{public}")
    names = (name, spec)
    name = name or shown
    if table is None and not settings and not endpoint.keyed():
        # Tables are looked into once: a table's model may have the name of a table.
        return Chosen(name, own, replace(endpoint, models_file=None, named={}))
    one = endpoint.of(settings, place, *names)
    return Chosen(name, own, one if settings else replace(one, asked=endpoint.asked), table)


def for_run(endpoint: EndpointOptions, names: Collection[str]) -> EndpointOptions:
    """The options of one run, whose models, of these names or SPECs, spend from one purse.

    Raises:
        UsageError: `--key-env` names a model that is none of them.
    """
    for name in endpoint.keyed():
        if name not in names:
            raise UsageError(f"--key-env {name}=…: there is no model of this name{nearest(name, names)}")
    return replace(endpoint, purse=Purse(endpoint.max_cost))


def check_batch(models: Iterable[TextModel], endpoint: EndpointOptions) -> None:
    """Raises UsageError where several models would write one batch file, which is for one server."""
    if endpoint.emit_batch and sum(not model.local for model in models) > 1:
        raise UsageError(
            f"--emit-batch {endpoint.emit_batch}: a batch is for one model; write one file a model, and give their outputs together to --read-batch"
        )


def check_models(specs: Iterable[str], endpoint: EndpointOptions | None, trust_remote_code: bool = False, on_truncate: str | None = None) -> None:
    """Options must be of some use to some model.

    Raises:
        UsageError: such as `--base-url: local has no such option; openai has`.
    """
    tables = endpoint.named if endpoint else {}
    rows = {generator_of(tables[spec].spec if spec in tables else spec)[0] for spec in specs}
    takes = {name: options_of(GENERATORS.load_kind(name, "--model", TextModel)) for name in sorted(rows)}
    asked = endpoint.beside_tables.of_use if endpoint else None
    GENERATORS.check_options({"endpoint": asked, "trust_remote_code": trust_remote_code or None, "on_truncate": on_truncate}, takes, {"endpoint": asked})


def text_model(
    spec: str, endpoint: EndpointOptions, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False, on_truncate: str | None = None
) -> TextModel:
    """`openai:MODEL` is an endpoint, `NAME:MODEL` another package's; all else is a hub id or a directory for transformers.

    A model gets those of the options that its `__init__` names.

    Raises:
        UsageError: there is no name, or what another package brings does not work.
        NoInputError: there is no such model.
        EndpointError: no key for the default server.
    """
    if not spec:
        raise UsageError(f"--model: expected {', '.join(GENERATORS.forms())}, got nothing")
    one = chosen(spec, endpoint)
    name, model = generator_of(one.spec)
    kind = GENERATORS.load_kind(name, "--model", TextModel)
    options: dict[str, Any] = {"endpoint": one.endpoint, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    if on_truncate is not None:
        options["on_truncate"] = on_truncate
    takes = options_of(kind)
    if one.endpoint.own and "endpoint" not in takes:
        raise UsageError(f"{one.endpoint.asked}: {one.endpoint.own[0]} is for a model behind a server, openai:MODEL; {one.spec} is none")
    made: TextModel = kind(model, **{option: value for option, value in options.items() if option in takes})
    return made
