"""The table of fusers: one by its name, GenFuser for any seq2seq model, a chat fuser for every other model that writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError
from blendkit.generators.factory import WHOLE, generator_of
from blendkit.pipeline.stage import Stage
from blendkit.registry import Registry, Row, options_of, suggesting
from blendkit.specs import one_name, split_name

if TYPE_CHECKING:
    from blendkit.generators.models_file import Entry
    from blendkit.generators.options import EndpointOptions

FUSERS = Registry(
    "blendkit.fusers",
    {
        "consensus": Row("blendkit.fusers.consensus:Consensus", "puts sentences of the top K together; no generative model"),
        "GenFuser": Row(
            "blendkit.fusers.genfuser:GenFuser", "reads the top K as the paper's does", form="a seq2seq directory or hub id such as llm-blender/gen_fuser_3b"
        ),
        "ChatFuser": Row(
            "blendkit.fusers.chat:ChatFuser", "read the top K as quoted material", form="one or several chat models, openai:MODEL, vllm:MODEL or local ones"
        ),
    },
)
# What a checkpoint can be is read from its config, and not from its name.
BY_CONFIG = ("GenFuser", "ChatFuser")


def make_fuser(
    model: str | Sequence[str] = "consensus", *, name: str | None = None, max_new_tokens: int | None = None, num_beams: int | None = None,
    max_length: int | None = None, candidate_maxlength: int | None = None, layers: int | None = None, temperature: float | None = None,
    analysis: bool | None = None, show_ranks: bool | None = None, show_scores: bool | None = None, reasoning_effort: str | None = None,
    keep_reasoning: str | None = None, on_truncate: str | None = None, endpoint: EndpointOptions | None = None, device: str = "auto", dtype: str = "auto",
    seed: int = 0,
) -> Stage:  # fmt: skip
    """The stage of one or several `--model`; the arguments are those of `blendkit.fuse`, and None is the kind's own default.

    A kind gets those of the arguments that its `__init__` names; `model` (or `models`) is what stands behind `NAME:`, or all of it
    where the kind is found by the model's config.

    Raises:
        UsageError: several models, and not all of them chat models; or an option that the kind does not have.
        NoInputError: there is no such model.
    """
    models = [model] if isinstance(model, str) else list(model)
    if not models:
        raise UsageError("fuse: expected at least one model")
    named = endpoint.named if endpoint else {}
    parsed = [split_name(spec, "--model") for spec in models]
    kinds = {fuser_of(spec, named) for _, spec in parsed}
    if len(models) > 1 and kinds != {"ChatFuser"}:
        raise UsageError("fuse: several models must all be chat models (openai:MODEL, vllm:MODEL, or local ones)")
    chosen = kinds.pop()
    own, spec = parsed[0]
    name = one_name(own if len(models) == 1 else "", name, "--model")
    if chosen != "ChatFuser" and spec in named and endpoint:
        table = named[spec]
        if table.endpoint:
            raise UsageError(f"{table.place}: {next(iter(table.endpoint))} is for a model behind a server, openai:MODEL; {table.spec} is none")
        name, spec, endpoint = name or spec, table.spec, endpoint.beside_tables
    kind = FUSERS.load_kind(chosen, "--model", Stage)
    takes = options_of(kind)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "num_beams": num_beams, "max_length": max_length, "candidate_maxlength": candidate_maxlength, "layers": layers,
        "temperature": temperature, "analysis": analysis, "show_ranks": show_ranks, "show_scores": show_scores, "reasoning_effort": reasoning_effort,
        "keep_reasoning": keep_reasoning, "on_truncate": on_truncate,
    }  # fmt: skip
    asked = endpoint.of_use if endpoint else None
    FUSERS.check_options({**options, "endpoint": asked}, {chosen: takes}, {"endpoint": asked})
    alone = spec if chosen in BY_CONFIG else spec.partition(":")[2] or None
    if alone and not {"model", "models"} & set(takes):
        raise UsageError(f"--model {spec}: {chosen} takes no model")
    options |= {"model": alone, "models": models, "name": name, "endpoint": endpoint, "device": device, "dtype": dtype, "seed": seed}
    fuser: Stage = kind(**{option: value for option, value in options.items() if option in takes and value is not None})
    return fuser


def fuser_of(spec: str, named: Mapping[str, Entry]) -> str:
    """The row of a `--model`, which may be one of the `named` models.

    Raises:
        NoInputError: there is no such model.
    """
    tables = list(named)
    spec = named[spec].spec if spec in named else spec
    name = spec.partition(":")[0]
    if name in FUSERS and name not in BY_CONFIG:
        return name
    if generator_of(spec)[0] not in WHOLE:
        return "ChatFuser"
    from transformers import AutoConfig

    from blendkit.models.pretrained import pretrained

    with suggesting(spec, [*tables, *(name for name in FUSERS if name not in BY_CONFIG)]):
        config = pretrained(AutoConfig, spec, "model that could fuse", "config.json")
    return "GenFuser" if config.is_encoder_decoder else "ChatFuser"
