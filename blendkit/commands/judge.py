"""blendkit judge"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.generators.base import EndpointOptions
from blendkit.running import RunOptions, run_stage
from blendkit.stage import Stage

LLM = "LLM judges"


@with_run_options(endpoint=True)
def judge(
    run: RunOptions,
    endpoint: EndpointOptions,
    model: Annotated[str, typer.Option("-m", "--model", help="`embedded`, openai:MODEL, or a local chat model (a directory or a hub id).")] = "embedded",
    name: Annotated[str | None, typer.Option(help="The judge's name in `verdicts`.", show_default="as --model")] = None,
    orders: Annotated[str, typer.Option(help="Show each pair in `both` orders, or in one at `random`.", rich_help_panel=LLM)] = "both",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply at most.", rich_help_panel=LLM)] = 16,
) -> None:
    """Give a verdict on every pair of candidates, the reference in hand.

    Writes `verdicts`: A, B, tie-good or tie-bad for candidates a and b (`unparsed` after two replies that are neither).
    The default, `embedded`, is a stand-in that needs no network: it prefers the candidate whose BERTScore against the
    reference is higher, and knows nothing else. For results to report, name an LLM.

    Example: blendkit judge -m openai:gpt-4o-mini --orders both < fused.jsonl
    """

    where = {"name": name, "device": run.device, "dtype": run.dtype}
    llm = {"endpoint": endpoint, "orders": orders, "max_new_tokens": max_new_tokens, "seed": run.seed}

    def make() -> Stage:
        from blendkit.judges import make_judge

        return make_judge(model, **where) if model == "embedded" else make_judge(model, **where, **llm)

    run_stage(make, run)
