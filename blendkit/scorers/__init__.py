"""The table of scorers. A new one is a file here and a line in SCORERS."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from blendkit.errors import UsageError
from blendkit.scorers.base import Scorer

SCORERS = {
    "bleu": "bleu:Bleu",
    "rouge1": "rouge:Rouge",
    "rouge2": "rouge:Rouge",
    "rougeL": "rouge:Rouge",
    "rougeLsum": "rouge:Rouge",
    "bertscore": "bertscore:BertScore",
    "length": "baselines:Length",
    "random": "baselines:Random",
}


def make_scorer(spec: str, **settings: Any) -> Scorer:
    """The scorer of `NAME` or `NAME:MODEL`; of the settings (model, device, dtype, seed) each takes what it knows.

    Raises:
        UsageError: there is no such metric; the nearest name is suggested.
    """
    name, _, model = spec.partition(":")
    if name not in SCORERS:
        near = difflib.get_close_matches(name, SCORERS, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--metric {name}: unknown{hint} (there are {', '.join(SCORERS)})")
    import inspect

    kind = scorer_class(name)
    known = inspect.signature(kind.__init__).parameters
    if model and "model" not in known:
        raise UsageError(f"--metric {spec}: {name} takes no model")
    if model:
        settings["model"] = model
    return kind(name, **{key: value for key, value in settings.items() if key in known})


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name; its library is imported only now."""
    module, _, attribute = SCORERS[name].partition(":")
    found: type[Scorer] = getattr(import_module(f"blendkit.scorers.{module}"), attribute)
    return found
