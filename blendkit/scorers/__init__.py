"""The table of scorers. A new one is a file here and a line in SCORERS."""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from importlib import import_module
from typing import Any

from blendkit.errors import UsageError
from blendkit.scorers.base import Scorer

SCORERS = {
    "bleu": "bleu:Bleu",
    "chrf": "bleu:Chrf",
    "rouge1": "rouge:Rouge",
    "rouge2": "rouge:Rouge",
    "rougeL": "rouge:Rouge",
    "rougeLsum": "rouge:Rouge",
    "exact-match": "overlap:ExactMatch",
    "token-f1": "overlap:TokenF1",
    "bertscore": "bertscore:BertScore",
    "bertscore-precision": "bertscore:Precision",
    "bertscore-recall": "bertscore:Recall",
    "bartscore": "bartscore:BartScore",
    "bartscore-precision": "bartscore:Precision",
    "bartscore-recall": "bartscore:Recall",
    "bartscore-source": "bartscore:FromSource",
    "bleurt": "bleurt:Bleurt",
    "mlm": "mlm:MaskedLM",
    "mlm-norm": "mlm:Normalised",
    "simcls": "simcls:SimCLS",
    "summareranker": "summareranker:SummaReranker",
    "reward": "reward:Reward",
    "perplexity": "perplexity:Perplexity",
    "mbr": "mbr:MBR",
    "cosine": "cosine:Cosine",
    "length": "baselines:Length",
    "random": "baselines:Random",
}

LOWER_IS_BETTER = ("perplexity",)


def make_scorer(spec: str, **settings: Any) -> Scorer:
    """The scorer of `[LABEL=]NAME[:MODEL]`; of the settings (device, dtype, seed, …) each takes what it knows.

    Raises:
        UsageError: there is no such metric (the nearest name is suggested), or a model is missing or too much.
    """
    label, equals, rest = spec.partition("=")
    if not equals or label.partition(":")[0] in SCORERS:  # a model's path may hold a =
        label, rest = "", spec
    name, _, model = rest.partition(":")
    if name not in SCORERS:
        near = difflib.get_close_matches(name, SCORERS, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--metric {name}: unknown{hint} (there are {', '.join(SCORERS)})")
    kind = scorer_class(name)
    if model and kind.default_model is None:
        raise UsageError(f"--metric {spec}: {name} takes no model")
    model = model or kind.default_model or ""
    if kind.default_model == "" and not model:
        raise UsageError(f"--metric {spec}: name a model, {name}:MODEL; {kind.about}")
    if label and better_when_lower(name) != better_when_lower(label):
        raise UsageError(f"--metric {spec}: lower is better for {name}, and a label must say so: {name}-{label}={rest}")
    known = inspect.signature(kind.__init__).parameters
    taken = dict(settings) if "settings" in known else {key: value for key, value in settings.items() if key in known}
    if kind.default_model is not None:
        taken["model"] = model
    if "kind" in known:
        taken["kind"] = name
    return kind(label or name, **taken)


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name; its library is imported only when one is made."""
    module, _, attribute = SCORERS[name].partition(":")
    found: type[Scorer] = getattr(import_module(f"blendkit.scorers.{module}"), attribute)
    return found


@cache
def better_when_lower(name: str) -> bool:
    """Whether a score of this name ranks the lowest first: `perplexity`, and labels that begin with that."""
    return any(name == metric or name.startswith(f"{metric}-") for metric in LOWER_IS_BETTER)


def scorer_rows() -> list[dict[str, str]]:
    """What `score --list` and docs/scorers.md show of each scorer."""
    rows = []
    for name in SCORERS:
        kind = scorer_class(name)
        needs = [word for word, wanted in (("reference", kind.needs_reference), ("x", kind.needs_source)) if wanted]
        model = "none" if kind.default_model is None else kind.default_model or "must be named"
        better = "lower" if better_when_lower(name) else "higher"
        rows.append(
            {
                "metric": name,
                "what": kind.about,
                "needs": ", ".join(needs) or "nothing",
                "better": better,
                "range": kind.bounds,
                "empty text": kind.empty,
                "model": model,
                "source": kind.paper,
            }
        )
    return rows
