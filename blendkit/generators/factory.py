"""The table of generators: from a name to the model behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blendkit.errors import UsageError
from blendkit.generators.base import TextModel
from blendkit.generators.options import EndpointOptions
from blendkit.registry import Registry, Row, options_of

# Windows in work at a time where servers are waited for.
OVERLAP = 4

GENERATORS = Registry(
    "blendkit.generators",
    {
        "local": Row("blendkit.generators.local:LocalModel", "a model for transformers", form="a hub id, a directory or FILE.gguf"),
        "embedded": Row(
            "blendkit.generators.local:LocalModel",
            "a tiny language model inside the package, for trying the pipe out; its answers make no sense",
            form="embedded:a",
        ),
        "vllm": Row("blendkit.generators.vllm:VllmModel", "a model for vLLM, in this process", form="vllm:MODEL"),
        "openai": Row("blendkit.generators.endpoint:Endpoint", "any OpenAI-compatible server", form="openai:MODEL"),
    },
)
# Where the whole SPEC is the model; elsewhere it is what stands behind `NAME:`.
WHOLE = ("local", "embedded")


def windows_at_once(models: Iterable[TextModel], endpoint: EndpointOptions) -> int:
    """A stage's `overlap`: more than one window where all models are servers that are really asked."""
    return 1 if endpoint.offline or any(model.local for model in models) else OVERLAP


def generator_of(spec: str) -> tuple[str, str]:
    """The row of a SPEC, `local` where none is named, and the model that it is given."""
    name, colon, model = spec.partition(":")
    if not colon or name not in GENERATORS or name == "local":
        return "local", spec
    return name, spec if name in WHOLE else model


def check_models(specs: Iterable[str], endpoint: EndpointOptions | None, trust_remote_code: bool = False, on_truncate: str | None = None) -> None:
    """Options must be of some use to some model.

    Raises:
        UsageError: such as `--base-url: local has no such option; openai has`.
    """
    chosen = {name: options_of(GENERATORS.load_kind(name, "--model", TextModel)) for name, _ in map(generator_of, specs)}
    asked = endpoint.of_use if endpoint else None
    GENERATORS.check_options({"endpoint": asked, "trust_remote_code": trust_remote_code or None, "on_truncate": on_truncate}, chosen, {"endpoint": asked})


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
    name, model = generator_of(spec)
    kind = GENERATORS.load_kind(name, "--model", TextModel)
    options: dict[str, Any] = {"endpoint": endpoint, "device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    if on_truncate is not None:
        options["on_truncate"] = on_truncate
    takes = options_of(kind)
    made: TextModel = kind(model, **{option: value for option, value in options.items() if option in takes})
    return made
