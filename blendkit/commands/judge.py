"""blendkit judge"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands import options
from blendkit.commands.options import named_forms, with_run_options
from blendkit.generators.options import EndpointOptions
from blendkit.judges import DAWID_SKENE, JUDGES
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.rankers import SCHEDULES

LLM_JUDGES = "LLM judges"


@with_run_options(endpoint=True, reads={"prompt": "--prompt", "families": "--families", "panel_weights": "--panel-weights"})
def judge(
    run: RunOptions,
    endpoint: EndpointOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help=f"[NAME=]SPEC: {named_forms(JUDGES)}. Several are a panel.",
            show_default="embedded",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The judge's name in `verdicts`, or the panel's.", show_default="NAME; as --model; panel")] = None,
    orders: Annotated[
        str,
        typer.Option(
            help="Show each pair in `both` orders, which count alike: probabilities (by likelihood) are averaged, verdicts without them "
            "count where both agree, else as a tie. Or in one order at `random`."
        ),
    ] = "both",
    schedule: Annotated[str, typer.Option(help=f"Which pairs, as in `blendkit pair`: {', '.join(SCHEDULES.forms())}.")] = "full",
    list: Annotated[
        int | None,
        typer.Option(
            help="Show so many shuffled candidates in one call, which are put in order (B > A = C), in place of pairs.", metavar="N", rich_help_panel=LLM_JUDGES
        ),
    ] = None,
    shuffles: Annotated[int | None, typer.Option(help="How often the lists of --list are drawn.", show_default="2", rich_help_panel=LLM_JUDGES)] = None,
    exclude_self: Annotated[
        bool,
        typer.Option("--exclude-self", help="Show no judge an answer of its own: one whose `model` is the judge's name, or its model's."),
    ] = False,
    families: Annotated[
        str | None,
        typer.Option(help="With --exclude-self, nor a relative's: a TOML or JSON file, name or beginning of a name → family.", metavar="FILE"),
    ] = None,
    panel: Annotated[
        str | None,
        typer.Option(
            help="A panel's verdict: `majority`; `weights` of --panel-weights; or `dawid-skene` (three judges or more), which weighs them by what all "
            "say over the whole stream, and so writes nothing before its end: not with --resume, --workers or --engine ray.",
            metavar="majority|dawid-skene|weights",
            show_default="weights with --panel-weights, else majority",
        ),
    ] = None,
    panel_weights: Annotated[
        str | None,
        typer.Option(
            help="Weigh the judges of a panel by the table `panel` in this file of JSON lines, instead of by the majority.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="auto (pairwise-with-reference for a record that has a reference, else pairwise), one of these two, paper, pandalm, auto-j, "
            "prometheus, or a file of your own.",
            show_default="auto",
            rich_help_panel=LLM_JUDGES,
        ),
    ] = None,
    verdict_by: Annotated[
        str | None,
        typer.Option(
            help="How a verdict is read: `likelihood` of the verdict's tokens, `json` (structured output), `text` (parsed strictly), or `auto`: "
            "likelihood for a local model; json where the server has it, otherwise text.",
            show_default="auto",
            rich_help_panel=LLM_JUDGES,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a reply at most.", show_default="the prompt's own", rich_help_panel=LLM_JUDGES)
    ] = None,
    max_unparsed: Annotated[float, options.max_unparsed("verdicts")] = 0.2,
    reasoning_effort: Annotated[str | None, options.reasoning_effort(LLM_JUDGES)] = None,
    on_truncate: Annotated[str | None, options.on_truncate(LLM_JUDGES)] = None,
) -> None:
    """Give a verdict on every pair of candidates, the reference in hand where there is one.

    Writes `verdicts`: A, B, tie-good or tie-bad for candidates a and b (`unparsed` after two replies that are neither; too many
    of them end with 70), and in `signatures` what decided them.
    Several judges each write their own, and what they come to (--panel) is the judge `panel`. The default, `embedded`, is a
    stand-in that needs no network: it prefers the candidate whose BERTScore against the reference is higher, and knows
    nothing else. For results to report as GPT-Rank, name an LLM; a line above the tables of `evaluate` says what the judge is worth.

    Example: blendkit judge -m openai:gpt-4o-mini --orders both --cache verdicts.sqlite < fused.jsonl
    """

    def make() -> Stage:
        from blendkit.judges import make_judge

        return make_judge(
            model or "embedded", name=name, endpoint=endpoint, orders=orders, schedule=schedule, seed=run.seed, device=run.device, dtype=run.dtype,
            prompt=prompt, verdict_by=verdict_by, max_new_tokens=max_new_tokens, reasoning_effort=reasoning_effort, on_truncate=on_truncate,
            max_unparsed=max_unparsed, exclude_self=exclude_self, families=families, panel=panel, panel_weights=panel_weights,
            list_size=list, shuffles=shuffles,
        )  # fmt: skip

    if panel == DAWID_SKENE:
        run.whole_stream = f"--panel {DAWID_SKENE}"
    run_stage(make, run)
