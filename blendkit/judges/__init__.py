"""The table of judges: `embedded` by name, an LLM otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError

if TYPE_CHECKING:
    from blendkit.generators.options import EndpointOptions
    from blendkit.judges.base import Juror
    from blendkit.judges.judging import Judging


def make_judge(
    models: str | Sequence[str] = "embedded", *, name: str | None = None, endpoint: EndpointOptions | None = None, orders: str = "both",
    schedule: str = "full", seed: int = 0, device: str = "auto", dtype: str = "auto", **llm: Any,
) -> Judging:  # fmt: skip
    """The stage with one judge or several; `models` are NAME=SPEC or SPEC, and `llm` are LLMJudge's own arguments.

    `name` is that of a single judge, or of the panel.

    Raises:
        UsageError: a flag's value is none, or no judge is given.
        NoInputError: there is no such model or prompt file.
    """
    from blendkit.judges.judging import Judging
    from blendkit.judges.prompting import load_prompt

    if "prompt" in llm:
        load_prompt(llm["prompt"])  # a mistake shows, whoever judges
    specs = [models] if isinstance(models, str) else list(models)
    if not specs:
        raise UsageError("-m: expected at least one judge")
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    jurors: list[Juror] = []
    for spec in specs:
        own, mark, model = spec.partition("=")
        label = own if mark else (name if len(specs) == 1 and name else spec)
        if (model or own) == "embedded":
            from blendkit.judges.embedded import EmbeddedJudge

            jurors.append(EmbeddedJudge(label, **where))
        else:
            from blendkit.generators.options import EndpointOptions
            from blendkit.judges.llm import LLMJudge

            jurors.append(LLMJudge(model if mark else own, endpoint or EndpointOptions(), name=label, seed=seed, **where, **llm))
    return Judging(jurors, panel=name or "panel", orders=orders, schedule=schedule, seed=seed)
