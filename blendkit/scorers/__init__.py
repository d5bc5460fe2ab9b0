"""The table of scorers. A new one is a file here and a row in SCORERS, or another package's entry point."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError
from blendkit.registry import Registry, Row, options_of
from blendkit.scorers.base import Scorer
from blendkit.specs import split_name

if TYPE_CHECKING:
    from blendkit.generators.options import EndpointOptions

# What a row's `about` would say stands in the scorer's class, with all else that documents show of it.
SCORERS = Registry(
    "blendkit.scorers",
    {
        "bleu": Row("blendkit.scorers.bleu:Bleu"),
        "chrf": Row("blendkit.scorers.bleu:Chrf"),
        "rouge1": Row("blendkit.scorers.rouge:Rouge"),
        "rouge2": Row("blendkit.scorers.rouge:Rouge"),
        "rougeL": Row("blendkit.scorers.rouge:Rouge"),
        "rougeLsum": Row("blendkit.scorers.rouge:Rouge"),
        "exact-match": Row("blendkit.scorers.overlap:ExactMatch"),
        "token-f1": Row("blendkit.scorers.overlap:TokenF1"),
        "bertscore": Row("blendkit.scorers.bertscore:BertScore"),
        "bertscore-precision": Row("blendkit.scorers.bertscore:Precision"),
        "bertscore-recall": Row("blendkit.scorers.bertscore:Recall"),
        "bartscore": Row("blendkit.scorers.bartscore:BartScore"),
        "bartscore-precision": Row("blendkit.scorers.bartscore:Precision"),
        "bartscore-recall": Row("blendkit.scorers.bartscore:Recall"),
        "bartscore-source": Row("blendkit.scorers.bartscore:FromSource"),
        "bleurt": Row("blendkit.scorers.bleurt:Bleurt"),
        "mlm": Row("blendkit.scorers.mlm:MaskedLM"),
        "mlm-norm": Row("blendkit.scorers.mlm:Normalised"),
        "simcls": Row("blendkit.scorers.simcls:SimCLS"),
        "summareranker": Row("blendkit.scorers.summareranker:SummaReranker"),
        "reward": Row("blendkit.scorers.reward:Reward"),
        "perplexity": Row("blendkit.scorers.perplexity:Perplexity"),
        "mbr": Row("blendkit.scorers.mbr:MBR"),
        "cosine": Row("blendkit.scorers.cosine:Cosine"),
        "judge": Row("blendkit.scorers.judge:RubricJudge"),
        "length": Row("blendkit.scorers.baselines:Length"),
        "random": Row("blendkit.scorers.baselines:Random"),
    },
)


def make_scorer(
    spec: str, *, device: str = "auto", dtype: str = "auto", seed: int = 0, bertscore_layer: int | None = None, bertscore_idf: str | None = None,
    bertscore_baseline: str | None = None, tokenize: str | None = None, rubric: str | None = None, verdict_by: str | None = None,
    endpoint: EndpointOptions | None = None,
) -> Scorer:  # fmt: skip
    """The scorer of `[NAME=]METRIC[:MODEL]`, or `[NAME=]METRIC[:TOKENIZER]` of a metric of words.

    `device`, `dtype` and `seed` are for those that have a model or draw at random; the others are options, None where they are
    not given (see `BertScore`, and `Tokenized` for `tokenize`, which a tokenizer in `spec` goes before).

    Raises:
        UsageError: there is no such metric (the nearest name is suggested), a model is missing or too much, the metric does
            not have an option, or a tokenizer lacks a package.
        NoInputError: there is no such model, or a tokenizer lacks a file.
    """
    label, name, model = parsed_spec(spec)
    kind = scorer_class(name)
    if model and kind.default_model is None and kind.own_tokenizer is None:
        raise UsageError(f"--metric {spec}: {name} takes no model")
    model = model or kind.default_model or ""
    if kind.default_model == "" and not model:
        raise UsageError(f"--metric {spec}: name a model, {name}:MODEL; {kind.about}")
    if label and kind.lower_is_better != better_when_lower(label):
        better = "lower" if kind.lower_is_better else "higher"
        example = f"{name}-{label}" if kind.lower_is_better else f"my-{name}"
        raise UsageError(f"--metric {spec}: {better} is better for {name}, and a name must say so: {example}={spec.partition('=')[2]}")
    options: dict[str, Any] = {
        "bertscore_layer": bertscore_layer,
        "bertscore_idf": bertscore_idf,
        "bertscore_baseline": bertscore_baseline,
        "tokenize": tokenize,
        "rubric": rubric,
        "verdict_by": verdict_by,
    }
    takes = options_of(kind, model)
    asked = endpoint.of_use if endpoint else None
    SCORERS.check_options({**options, "endpoint": asked}, {name: takes}, {"endpoint": asked})
    given: dict[str, object] = {option: value for option, value in {**options, "endpoint": endpoint}.items() if value is not None}
    given |= {"device": device, "dtype": dtype, "seed": seed, "kind": name} | ({} if kind.default_model is None else {"model": model})
    if kind.own_tokenizer is not None:
        given["tokenize"] = model or tokenize or kind.own_tokenizer
    return kind(label or name, **{option: value for option, value in given.items() if option in takes})


def parsed_spec(spec: str) -> tuple[str, str, str]:
    """Name of the score (or nothing), metric and model (or nothing) of `[NAME=]METRIC[:MODEL]`."""
    label, rest = split_name(spec, "--metric")
    name, _, model = rest.partition(":")
    return label, name, model


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name; its library is imported only when one is made.

    Raises:
        UsageError: there is no such metric.
    """
    kind: type[Scorer] = SCORERS.load_kind(name, "--metric", Scorer)
    return kind


def scorer_options(spec: str) -> Collection[str]:
    """The options of the scorer of `[NAME=]METRIC[:MODEL]`."""
    _, name, model = parsed_spec(spec)
    return options_of(scorer_class(name), model)


@cache
def better_when_lower(name: str) -> bool:
    """Whether a score of this name ranks the lowest first: that of such a metric, and labels that begin with the metric's name and a dash."""
    parts = name.split("-")
    heads = ("-".join(parts[:length]) for length in range(len(parts), 0, -1))
    metric = next((head for head in heads if head in SCORERS), None)
    return metric is not None and scorer_class(metric).lower_is_better


def scorer_rows(own: bool = False) -> list[dict[str, str]]:
    """What `score --list` shows of each scorer, and docs/scorers.md of our own ones."""
    rows = []
    for name in SCORERS.own if own else SCORERS:
        try:
            kind = scorer_class(name)
        except UsageError as error:  # another package's: the list shows what is wrong with it
            rows.append(dict.fromkeys(("needs", "better", "range", "empty text", "model or tokenizer", "source"), "–") | {"metric": name, "what": str(error)})
            continue
        needs = [word for word, wanted in (("reference", kind.needs_reference), ("x", kind.needs_source)) if wanted]
        model = "none" if kind.default_model is None else kind.default_model or "must be named"
        model = kind.own_tokenizer or model
        rows.append(
            {
                "metric": name,
                "what": kind.about,
                "needs": ", ".join(needs) or "nothing",
                "better": "lower" if kind.lower_is_better else "higher",
                "range": kind.bounds,
                "empty text": kind.empty,
                "model or tokenizer": model,
                "source": kind.paper,
            }
        )
    return rows
