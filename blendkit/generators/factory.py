"""From a name to the model behind it."""

from __future__ import annotations

from collections.abc import Iterable

from blendkit.errors import UsageError
from blendkit.generators.base import TextModel
from blendkit.generators.options import EndpointOptions

# Windows in work at a time where servers are waited for.
OVERLAP = 4


def windows_at_once(models: Iterable[TextModel], endpoint: EndpointOptions) -> int:
    """A stage's `overlap`: more than one window where all models are servers that are really asked."""
    return 1 if endpoint.offline or any(model.local for model in models) else OVERLAP


def text_model(spec: str, endpoint: EndpointOptions, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> TextModel:
    """`openai:MODEL` is an endpoint; all else is a hub id or a directory for transformers."""
    if spec.startswith("openai:"):
        from blendkit.generators.endpoint import Endpoint

        return Endpoint(spec.removeprefix("openai:"), endpoint)
    if not spec:
        raise UsageError("--model: expected a hub id, a directory or openai:MODEL, got nothing")
    from blendkit.generators.local import LocalModel

    return LocalModel(spec, device, dtype, trust_remote_code)
