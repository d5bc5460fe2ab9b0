"""The table of judges: one by its name, an LLM otherwise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError
from blendkit.registry import Registry, Row, options_of, suggesting
from blendkit.specs import named_twice, one_name, split_name

if TYPE_CHECKING:
    from blendkit.generators.options import EndpointOptions
    from blendkit.judges.base import Juror
    from blendkit.judges.judging import Judging

LLM = "LLM"
# What the verdict of a panel is.
MAJORITY, DAWID_SKENE, WEIGHTS = PANELS = ("majority", "dawid-skene", "weights")
JUDGES = Registry(
    "blendkit.judges",
    {
        "embedded": Row("blendkit.judges.embedded:EmbeddedJudge", "a stand-in by BERTScore against the reference"),
        LLM: Row("blendkit.judges.llm:LLMJudge", form="openai:MODEL, vllm:MODEL, or a local causal model (a directory or a hub id)"),
    },
)


def make_judge(
    model: str | Sequence[str] = "embedded", *, name: str | None = None, orders: str = "both", schedule: str = "full", prompt: str | None = None,
    verdict_by: str | None = None, max_new_tokens: int | None = None, max_unparsed: float = 0.2, reasoning_effort: str | None = None,
    on_truncate: str | None = None, exclude_self: bool = False, families: str | None = None, panel: str | None = None,
    panel_weights: str | None = None, list_size: int | None = None, shuffles: int | None = None, endpoint: EndpointOptions | None = None,
    device: str = "auto", dtype: str = "auto", seed: int = 0,
) -> Judging:  # fmt: skip
    """The stage with one judge or several; the arguments are those of `blendkit.judge`, and None is the judge's own default.

    A judge gets `name` and those of the arguments that its `__init__` names; `model` is what stands behind `NAME:`, or all of it
    for an LLM.

    Raises:
        UsageError: an argument is wrong, no judge is given, or none has an option.
        NoInputError: there is no such model or prompt file.
    """
    from blendkit.families import families_of_file
    from blendkit.generators.factory import check_models, for_run
    from blendkit.judges.base import Juror
    from blendkit.judges.judging import Judging
    from blendkit.judges.listing import ListJudging
    from blendkit.judges.own import OthersOnly
    from blendkit.judges.prompting import AUTO, WITH_REFERENCE, WITHOUT, prompts_of
    from blendkit.judges.stream_panel import StreamPanel
    from blendkit.judges.weighing import weights_of_file

    if prompt is not None:
        prompts_of(prompt)  # a mistake shows, whoever judges
    if list_size is None and shuffles is not None:
        raise UsageError("--shuffles says how often --list draws its lists; give both")
    if list_size is not None and (prompt not in (None, AUTO, WITH_REFERENCE, WITHOUT) or verdict_by not in (None, "auto", "text")):
        raise UsageError(f"--list has its own prompt, and is read as text: it goes with --prompt {AUTO}, {WITH_REFERENCE} or {WITHOUT}, and --verdict-by text")
    if families is not None and not exclude_self:
        raise UsageError("--families says whose answers --exclude-self keeps from a judge; give both")
    _check_panel(panel, panel_weights, 1 if isinstance(model, str) else len(model))
    relatives = None if families is None else families_of_file(families)
    specs = [model] if isinstance(model, str) else list(model)
    if not specs:
        raise UsageError("-m: expected at least one judge")
    named = endpoint.named if endpoint else {}
    parsed = [judge_of(spec, named) for spec in specs]
    kinds = {chosen: JUDGES.load_kind(chosen, "-m", Juror) for _, chosen, _ in parsed}
    takes = {chosen: options_of(kind) for chosen, kind in kinds.items()}
    options: dict[str, Any] = {
        "prompt": prompt,
        "verdict_by": verdict_by,
        "max_new_tokens": max_new_tokens,
        "reasoning_effort": reasoning_effort,
        "on_truncate": on_truncate,
    }
    asked = endpoint.of_use if endpoint else None
    JUDGES.check_options({**options, "endpoint": asked}, takes, {"endpoint": asked})
    if llms := [where for _, chosen, where in parsed if chosen == LLM]:
        check_models(llms, endpoint, on_truncate=on_truncate)
        endpoint = for_run(endpoint, [part for own, _, where in parsed for part in (own, where) if part]) if endpoint else None
    options |= {"verdict_by": "text"} if list_size is not None else {}
    options |= {"endpoint": endpoint, "device": device, "dtype": dtype, "seed": seed}
    jurors: list[Juror] = []
    name = one_name(parsed[0][0] if len(specs) == 1 else "", name, "-m")
    panel_name = (name or "panel") if len(specs) > 1 else None
    for spec, (own, chosen, where) in zip(specs, parsed, strict=True):
        if where and "model" not in takes[chosen]:
            raise UsageError(f"-m {spec}: {chosen} takes no model")
        given = {**options, "model": where or None, "name": own or (name if len(specs) == 1 and name else None if chosen == LLM else spec)}
        with suggesting(where, [*named, *(other for other in JUDGES if other != LLM)]):
            jurors.append(kinds[chosen](**{option: value for option, value in given.items() if option in takes[chosen] and value is not None}))
        if jurors[-1].name in [panel_name, *(juror.name for juror in jurors[:-1])]:
            raise named_twice(jurors[-1].name, spec, "-m")
    weights = None if panel_weights is None else weights_of_file(panel_weights, [juror.name for juror in jurors])
    # Where requests are only written down, there are no verdicts to pass on.
    passes = not (endpoint and endpoint.only_emits)
    settings: dict[str, Any] = {
        "panel": panel_name or "panel", "orders": orders, "schedule": schedule, "seed": seed, "max_unparsed": max_unparsed, "passes_records": passes,
        "others": OthersOnly(jurors, relatives) if exclude_self else None, "weights": weights,
        "whole": StreamPanel() if panel == DAWID_SKENE else None,
    }  # fmt: skip
    return Judging(jurors, **settings) if list_size is None else ListJudging(jurors, list_size, 2 if shuffles is None else shuffles, **settings)


def _check_panel(panel: str | None, panel_weights: str | None, judges: int) -> None:
    from blendkit.judges.dawid_skene import LEAST_JUDGES

    if panel not in (None, *PANELS):
        raise UsageError(f"--panel {panel}: expected {', '.join(PANELS)}")
    if judges == 1 and panel_weights is not None:
        raise UsageError("--panel-weights weighs the judges of a panel, and there is one judge")
    if judges == 1 and panel is not None:
        raise UsageError(f"--panel {panel} says what a panel's verdict is, and there is one judge")
    if panel == WEIGHTS and panel_weights is None:
        raise UsageError(f"--panel {WEIGHTS}: expected --panel-weights FILE with it")
    if panel not in (None, WEIGHTS) and panel_weights is not None:
        raise UsageError(f"--panel-weights goes with --panel {WEIGHTS}, got --panel {panel}")
    if panel == DAWID_SKENE and judges < LEAST_JUDGES:
        raise UsageError(f"--panel {DAWID_SKENE} weighs {LEAST_JUDGES} judges or more, got {judges}: two that differ cannot say which of them is right")


def judge_of(spec: str, named: Collection[str] = ()) -> tuple[str, str, str]:
    """The judge's own name (or nothing), its row, and what model it is given (or nothing), of `[NAME=]MODEL`; MODEL may be one of `named`."""
    own, where = split_name(spec, "-m")
    name, _, model = where.partition(":")
    return (own, name, model) if name in JUDGES and name != LLM and where not in named else (own, LLM, where)
