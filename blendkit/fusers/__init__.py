"""The table of fusers: `consensus` by name, GenFuser for any seq2seq model."""

from __future__ import annotations

from typing import Any

from blendkit.stage import Stage


def make_fuser(model: str, **options: Any) -> Stage:
    """The fuser of a `--model`; of the options each takes its own (see the classes)."""
    if model == "consensus":
        from blendkit.fusers.consensus import Consensus

        return Consensus(**options)
    from blendkit.fusers.genfuser import GenFuser

    return GenFuser(model, **options)
