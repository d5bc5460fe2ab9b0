"""The stages that score, compare, rank and sum up what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blendkit.arguments import File, Files, Records, Texts, checked, one, several
from blendkit.records import Record


@checked
def score(
    records: Records,
    metrics: Sequence[str],
    *,
    bertscore_layer: int | None = None,
    bertscore_idf: File | None = None,
    bertscore_baseline: File | None = None,
    tokenize: str | None = None,
    rubric: File | None = None,
    verdict_by: str | None = None,
    max_unparsed: float = 0.2,
    attention: str = "auto",
    self_check: bool = True,
    base_url: str | None = None,
    key_env: Texts | None = None,
    extra_header: Texts | None = None,
    extra_body: Mapping[str, Any] | None = None,
    api: str = "chat",
    concurrency: int = 8,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    retries: int = 5,
    timeout: float = 120.0,
    max_wait: float = 600.0,
    max_body_bytes: int = 64 << 20,
    cache: File | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    emit_batch: File | None = None,
    read_batch: Files | None = None,
    models_file: File | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Adds `scores` to every candidate, and `signatures`, which tell what decided each score.

    Args:
        records: with `candidates`, and with what the metrics need: the reference (`output`) or x.
        metrics: [NAME=]METRIC[:MODEL] or [NAME=]METRIC[:TOKENIZER], all in one pass; `blendkit score --list` shows the names.
        bertscore_layer: which layer's states BERTScore matches, from 1; None is the authors' choice, else the last.
        bertscore_idf: a file of records, by whose references tokens are weighed.
        bertscore_baseline: rescales: a language such as en, or a file of bert-score's form.
        tokenize: how metrics of words find them: `lang`, `auto` or one of sacrebleu's tokenizers; None is each metric's own.
        rubric: what `judge` grades by: the name of a rubric, or a TOML file; None is `default`.
        verdict_by: how `judge` reads a grade: json, text, likelihood or auto; None is auto.
        max_unparsed: the largest share of a judge's grades, 0 to 1, that may be unreadable.
        attention: how packed encoders attend: flex, varlen, batched or per-input; auto takes what the device and the encoder have.
        self_check: on a GPU, holds two inputs of the first batch to the plain form in float32.
        base_url: this and all that follow are as in `generate`.

    Raises:
        UsageError: there is no such metric, two have one name, none has an option, a tokenizer lacks a package, or a share is none.
        NoInputError: there is no such model or file.
        RecordError: a record lacks what a metric needs, or the server cannot answer it.
        EndpointError: the server cannot be reached.
        TooManyUnparsed: after the last record, more than `max_unparsed` of a judge's grades could not be read.

    Example:
        scored = list(blendkit.score(records, ["bleu", "bertscore"]))
        print(scored[0]["candidates"][0]["scores"]["bleu"])
    """
    from blendkit.generators.options import EndpointOptions
    from blendkit.models.attention_forms import attending
    from blendkit.pipeline.runner import apply
    from blendkit.scorers.scoring import Scoring

    endpoint = EndpointOptions.of_arguments(locals())
    with attending(attention, self_check) as how:
        stage = Scoring(
            several(metrics), device, dtype, seed, bertscore_layer=bertscore_layer, bertscore_idf=one(bertscore_idf),
            bertscore_baseline=one(bertscore_baseline), tokenize=tokenize, rubric=one(rubric), verdict_by=verdict_by,
            max_unparsed=max_unparsed, endpoint=endpoint,
        )  # fmt: skip
    stage.attending = how
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@checked
def pair(
    records: Records,
    model: File = "embedded",
    *,
    name: str | None = None,
    schedule: str = "full",
    prefilter: str | None = None,
    on_truncate: str = "warn",
    attention: str = "auto",
    self_check: bool = True,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Adds `comparisons[name]` by PairRanker (LLM-Blender, section 3.2): [i, j, logit] of every pair compared.

    Args:
        records: with x and `candidates`.
        model: [NAME=]SPEC: `embedded`, `smollm2-ranker`, a directory, or a hub id such as llm-blender/PairRM.
        name: the name of these comparisons in the record; None is NAME, or pairrm.
        schedule: which pairs: full, single, bubble[:K], sort, swiss:R or active:B.
        prefilter: METRIC:K compares only the K candidates with the best METRIC.
        on_truncate: a text longer than the model reads is cut (`warn`) or refused (`fail`).
        attention: how packed encoders attend: flex, varlen, batched or per-input; auto takes what the device and the encoder have.
        self_check: on a GPU, holds two inputs of the first batch to the plain form in float32.
        window: this and all that follow are as in `generate`.

    Raises:
        UsageError: an argument is wrong.
        NoInputError: there is no such model.
        RecordError: a record is bad, or a text is too long under `fail`.

    Example:
        compared = list(blendkit.pair(scored))
        print(compared[0]["comparisons"]["pairrm"]["pairs"])
    """
    from blendkit.models.attention_forms import attending
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.pairranker import PairRanker

    with attending(attention, self_check) as how:
        stage = PairRanker(str(model), name, device, dtype, schedule=schedule, prefilter=prefilter, on_truncate=on_truncate, seed=seed)
    stage.attending = how
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@checked
def rank(
    records: Records, by: str | Sequence[str] = ("pairrm",), *, aggregate: str | None = None, reference: str | None = None, top: int = 3,
    name: str | None = None, window: int | None = None,
) -> Iterator[Record]:  # fmt: skip
    """Adds `ranks` (1 is best; ties share the lowest rank) and `top`, the indices of the best, best first.

    Args:
        records: with what is ranked by, which `pair`, `score` or `judge` writes.
        by: a name in `comparisons`, score:NAME, judge:NAME, or oracle:FIELD, a number in each candidate; several names of comparisons
            of the same pairs, or NAME=WEIGHT, have their logits summed, each times its weight.
        aggregate: max-logits, max-wins, copeland, bradley-terry or elo; None is the order that a schedule found, else max-logits.
        reference: ranks by the margin over one candidate: longest, shortest, median-length, first, last, or a model's name.
        top: how many of the best `top` holds.
        name: the name of this ranking in `ranks`; None is made from `by`.
        window: records in flight; None is the stage's own.

    Raises:
        UsageError: an argument is wrong.
        RecordError: a record lacks what is ranked by.

    Example:
        ranked = list(blendkit.rank(compared, top=2))
        print(ranked[0]["candidates"][ranked[0]["top"][0]]["text"])
    """
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.ranking import Ranking

    yield from apply(Ranking(by, aggregate, top, name, reference), records, window=window)


@checked
def evaluate(
    records: Records, *, versus: Texts | None = None, oracle: str | None = None, agreement: str | None = None, baseline: str | None = None,
    ratings: bool = False, length_controlled: str | None = None, aggregations: bool = False, manifests: Sequence[File] | None = None,
    compare: File | None = None, checks: Sequence[str] | None = None, expect: int | None = None, fail_if_worse: File | None = None,
    report: File | None = None, report_records: int = 500, plot: File | None = None, audit: str | None = None, families: File | None = None,
    correct_with: str | None = None, label_next: File | None = None, label_count: int = 100, forms: File | None = None,
    control: str | None = None, frontier: str | None = None, prices: File | None = None, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the rows of Table 2 and Table 3, and of the tables that are asked for, as `blendkit evaluate` writes them.

    Args:
        records: with what earlier stages wrote: scores, ranks, verdicts.
        versus: models, or `model · decoding` or `model#2` where one has several candidates; for each
            a column says in how many % of the examples a method is not worse.
        oracle: the true ranking: `judge:NAME`, `score:NAME` or the NAME of a score; None takes the stream's judge, MixInstruct's first.
        agreement: a field with labels A, B or tie in records of two candidates; adds each score's and ranking's agreement with it.
        baseline: a method, by its name in Table 2 or as GROUP.METHOD, that all others but oracles are tested against (paired, corrected).
        ratings: adds Bradley-Terry and Elo ratings, win rates, the judges' position bias and agreement, and from three judges on how a panel weighs them.
        length_controlled: a model; adds win rates against it at equal length (needs the extra `stats`).
        aggregations: adds each ranker's full comparisons by MaxLogits, MaxWins and one bubble run.
        manifests: files that earlier stages' `--manifest` wrote; adds their time and cost.
        compare: a file of rows of an earlier run, as JSON lines; adds what moved beyond noise.
        checks: such as `rankers.pairrm.gpt_rank < llms.best.gpt_rank`.
        expect: how many records there must be.
        fail_if_worse: as `compare`; besides, no figure may have become worse beyond noise.
        report: a folder; writes one self-contained HTML page into it (needs the extra `plots`).
        report_records: how many records can be looked at in the page.
        plot: a .png, .svg or .pdf that the figures are drawn into (needs the extra `plots`).
        audit: a field with people's labels (A, B or tie of two candidates, or a list of {a, b, verdict}), or `judge:NAME`; holds every judge against it.
        families: a TOML or JSON file, names or beginnings of names → families; of others it is the first letters of the name.
        correct_with: labels as in `audit`; adds the judge's win rates corrected by them, where they are of some pairs drawn at random.
        label_next: a file (.csv, else JSON lines) that gets forms of the pairs that people should label next.
        label_count: how many pairs.
        forms: such a file, filled in; its labels join the records by id, in the field of `correct_with`, of `audit`, or `human`.
        control: `length`, `markdown`, or both with a comma; adds ratings at equal style.
        frontier: a name in `ranks`; adds the quality, by the oracle, of what it puts first of every subset of models, against the price.
        prices: a TOML or JSON file, a table a model with `price_in` and `price_out` in $ a million tokens; else it is `usage.cost` of each candidate.
        seed: of resampling, permutations, bubble runs and the pairs to label.

    Raises:
        DataError: there is no record, a record lacks what an argument asks for, or a file holds something else.
        UsageError: an argument's value is none that there is, or an extra is not installed.
        NoInputError: a file that is read is not there.
        OutputError: the page, the plot or the forms cannot be written.
        CheckFailed: one of `checks`, `expect` and `fail_if_worse` does not hold; all else is done.

    Example:
        rows = blendkit.evaluate(judged)
        print([row["method"] for row in rows if row["table"] == 2])
    """
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.pipeline.runner import apply

    stage = Evaluating(
        versus=several(versus) or (), oracle=oracle, agreement=agreement, baseline=baseline, ratings=ratings, length_controlled=length_controlled,
        aggregations=aggregations, manifests=several(manifests) or (), compare=one(compare), checks=several(checks) or (), expect=expect,
        fail_if_worse=one(fail_if_worse), report=one(report),
        report_records=report_records, plot=one(plot), audit=audit, families=one(families), correct_with=correct_with, label_next=one(label_next),
        label_count=label_count, forms=one(forms), control=control, frontier=frontier, prices=one(prices), seed=seed,
    )  # fmt: skip
    for _ in apply(stage, records):
        pass
    stage.write_page()
    stage.draw()
    stage.write_forms()
    stage.check()
    return stage.rows()
