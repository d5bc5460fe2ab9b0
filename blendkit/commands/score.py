"""blendkit score"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from blendkit.commands import options
from blendkit.commands.options import with_run_options
from blendkit.errors import UsageError
from blendkit.generators.options import EndpointOptions
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.terminal_text import say

BERTSCORE = "BERTScore"
RUBRIC = "Judges by a rubric (--metric judge:MODEL)"


@with_run_options(endpoint=True, reads={"rubric": "--rubric", "bertscore_idf": "--bertscore-idf", "bertscore_baseline": "--bertscore-baseline"})
def score(
    run: RunOptions,
    endpoint: EndpointOptions,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="[NAME=]METRIC[:MODEL] or [NAME=]METRIC[:TOKENIZER]; may be given several times, all in one pass.")
    ] = None,
    tokenize: Annotated[
        str | None,
        typer.Option(
            help="How BLEU, ROUGE, token F1 and exact match find words: `lang` (any language), `auto` (by the reference's script), or one of sacrebleu's: "
            "13a, intl, zh, ja-mecab, ko-mecab, flores200, char.",
            show_default="each metric's own",
        ),
    ] = None,
    rubric: Annotated[
        str | None,
        typer.Option(help="What `judge` grades by: `default` (correct, complete, clear), or a TOML file.", show_default="default", rich_help_panel=RUBRIC),
    ] = None,
    verdict_by: Annotated[
        str | None,
        typer.Option(
            help="How a grade is read: `json` (structured output, with a reason), `text` (the same form, as text), `likelihood` (the expected grade, without a "
            "reason), or `auto`: likelihood for a local model, else json.",
            show_default="auto",
            rich_help_panel=RUBRIC,
        ),
    ] = None,
    max_unparsed: Annotated[float, options.max_unparsed("grades", RUBRIC)] = 0.2,
    list_metrics: Annotated[bool, typer.Option("--list", help="Show the metrics and what each needs.")] = False,
    bertscore_layer: Annotated[
        int | None,
        typer.Option(min=1, help="Which layer's states to match.", show_default="the bert-score authors' choice, else the last", rich_help_panel=BERTSCORE),
    ] = None,
    bertscore_idf: Annotated[
        str | None, typer.Option(help="Weigh tokens by their rarity in the references of this file of records.", rich_help_panel=BERTSCORE)
    ] = None,
    bertscore_baseline: Annotated[
        str | None,
        typer.Option(help="Rescale: a language that bert-score has a baseline of for the model (en), or a file of that form.", rich_help_panel=BERTSCORE),
    ] = None,
) -> None:
    """Score every candidate, against the reference (`output`) or without one.

    Writes `candidates[].scores`, and `signatures`: what decided each score. A model is a hub id or a directory;
    `--list` shows each metric's default. Two scores of one metric need names: big=bertscore:roberta-large.
    Of a reward model with several outputs one is named: reward:MODEL#helpfulness. A metric of words may name its own
    tokenizer: --metric rouge1:lang --metric bleu:zh.

    Example: blendkit score --metric bleu --metric bertscore --metric mbr:rouge2 < records.jsonl
    """
    if list_metrics:
        from blendkit.scorers import scorer_rows

        rows = scorer_rows()
        columns = ("metric", "needs", "better", "range", "model or tokenizer", "what")
        widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
        for row in [{column: column for column in columns}, *rows]:
            print("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip())
        return
    if not metrics:
        raise UsageError("no --metric given; `blendkit score --list` shows them")

    def make() -> Stage:
        from blendkit.scorers.scoring import Scoring

        stage = Scoring(
            metrics, run.device, run.dtype, run.seed, bertscore_layer=bertscore_layer, bertscore_idf=bertscore_idf,
            bertscore_baseline=bertscore_baseline, tokenize=tokenize, rubric=rubric, verdict_by=verdict_by,
            max_unparsed=max_unparsed, endpoint=endpoint,
        )  # fmt: skip
        if not run.quiet and not run.engine.beside and sys.stderr.isatty():
            for signature in stage.describe()["signatures"]:
                say(signature, "score")
        return stage

    run_stage(make, run)
