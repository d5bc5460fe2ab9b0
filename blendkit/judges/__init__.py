"""The table of judges: `embedded` by name, an LLM otherwise."""

from __future__ import annotations

from typing import Any

from blendkit.judges.base import Judging


def make_judge(model: str, **options: Any) -> Judging:
    """The judge of a `--model`; of the options each takes its own (see the classes)."""
    if model == "embedded":
        from blendkit.judges.embedded import EmbeddedJudge

        return EmbeddedJudge(**options)
    from blendkit.generators.base import EndpointOptions
    from blendkit.judges.llm import LLMJudge

    return LLMJudge(model, options.pop("endpoint", None) or EndpointOptions(), **options)
