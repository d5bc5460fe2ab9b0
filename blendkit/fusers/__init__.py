"""The table of fusers: `consensus` by name, GenFuser for any seq2seq model, a chat fuser for every other model that writes."""

from __future__ import annotations

from typing import Any

from blendkit.errors import UsageError
from blendkit.pipeline.stage import Stage


def make_fuser(model: str | list[str], **options: Any) -> Stage:
    """The fuser of one or several `--model`; of the options each takes its own (see the classes).

    Raises:
        UsageError: several models, and not all of them chat models.
        NoInputError: there is no such model.
    """
    models = [model] if isinstance(model, str) else model
    kinds = {_kind(name) for name in models}
    if len(models) > 1 and kinds != {"chat"}:
        raise UsageError("fuse: several models must all be chat models (openai:MODEL, or local ones)")
    kind = kinds.pop()
    if kind == "consensus":
        from blendkit.fusers.consensus import Consensus

        return Consensus(**_known(Consensus, options))
    if kind == "chat":
        from blendkit.fusers.chat import ChatFuser

        return ChatFuser(models, **_known(ChatFuser, options))
    from blendkit.fusers.genfuser import GenFuser

    return GenFuser(models[0], **_known(GenFuser, options))


def _kind(model: str) -> str:
    if model == "consensus":
        return model
    if model.startswith("openai:"):
        return "chat"
    from transformers import AutoConfig

    from blendkit.models.pretrained import pretrained

    return "seq2seq" if pretrained(AutoConfig, model, "model that could fuse", "config.json").is_encoder_decoder else "chat"


def _known(kind: type[Stage], options: dict[str, Any]) -> dict[str, Any]:
    import inspect

    known = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in options.items() if key in known}
