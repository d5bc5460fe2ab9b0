"""The list of a model's layers, wherever its kind keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import nn

from blendkit.errors import NoInputError


def layers_of(model: Any) -> Any:
    """The layers of an encoder or a decoder, first to last, an nn.ModuleList.

    Raises:
        NoInputError: it has no list of layers.
    """
    stack, attribute = _stack(model)
    return getattr(stack, attribute)


def with_layers(model: Any, layers: Sequence[Any]) -> Any:
    """The model with other layers; all else are the same objects, and the model stays as it is."""
    found = _shallow(model)
    stack, attribute = _stack(found)
    if stack is not found:
        stack = found.encoder = _shallow(stack)
    setattr(stack, attribute, nn.ModuleList(layers))
    return found


def _shallow(module: nn.Module) -> Any:
    found = copy(module)
    found._modules = dict(module._modules)
    return found


def _stack(model: Any) -> tuple[Any, str]:
    """What holds the list of layers, and its name there."""
    stack = model.encoder if hasattr(model, "encoder") else model
    for attribute in ("layer", "layers", "block"):
        if hasattr(stack, attribute):
            return stack, attribute
    raise NoInputError(f"a {type(model).__name__} has no list of layers to choose from; try another model")
