"""The stages as functions over iterables of records. Models load when the first record is asked for.

What the command line has beyond these arguments is about its stream and its processes: files, resuming, progress, engines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from blendkit.records import Record
from blendkit.registry import nearest
from blendkit.training import api as training

if TYPE_CHECKING:
    from blendkit.generators.options import EndpointOptions, Sampling

Records = Iterable[Record]
P = ParamSpec("P")
T = TypeVar("T")
__all__ = ["evaluate", "fuse", "generate", "judge", "pair", "rank", "score", "train_fuser", "train_ranker"]


def named(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a function say the nearest name where it is given an argument that it does not have."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no argument {name!r}{nearest(repr(name), list(map(repr, known)))}")
        return function(*args, **kwargs)

    return called


train_fuser = named(training.train_fuser)
train_ranker = named(training.train_ranker)


@named
def generate(
    records: Records,
    models: str | Sequence[str] | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    num_return: int = 1,
    decoding: Sequence[str] = (),
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    stop: Sequence[str] = (),
    logprobs: bool = False,
    reasoning_effort: str | None = None,
    keep_reasoning: str = "field",
    trust_remote_code: bool = False,
    on_truncate: str | None = None,
    sampling: Sampling | None = None,
    endpoint: EndpointOptions | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Appends candidates to every record: one a model, or as many as `num_return` and `decoding` ask for.

    Args:
        records: with `instruction` and `input`, or `messages`.
        models: NAME=SPEC or SPEC: a hub id, a directory, FILE.gguf, openai:MODEL, a preset, PRESET:MODEL, smollm2, or a name in
            `endpoint.models`; None is all names there, or smollm2.
        system: a system message before every prompt.
        max_new_tokens: tokens to write at most; None is 512, or the model's own.
        num_return: candidates a model and decoding.
        decoding: greedy, beam[:4], top-p[:0.9], … (`blendkit generate --help`): candidates by each of them.
        temperature: 0 is greedy; None is 0.7, or the model's own.
        top_p: probability mass of nucleus sampling, 0 to 1; None is 1, or the model's own.
        top_k: samples among the K likeliest tokens; None and 0 are all.
        repetition_penalty: above 1 discourages repetition, in local models; None is 1, or the model's own.
        stop: texts at which an answer ends.
        logprobs: adds `scores.logprobs`, the mean log-probability of an answer's tokens, in nats.
        reasoning_effort: how much a model that reasons shall do so: none, low, medium, high, for which it gets 0, 1024, 4096 or 16384
            tokens beside `max_new_tokens`; None leaves it to the model, with 4096 once a reply shows that it reasons.
        keep_reasoning: what a model thought goes into the candidate's `reasoning` (field), before its text (text), or nowhere (none).
        trust_remote_code: runs code that a checkpoint brings (local models).
        on_truncate: a prompt longer than a local model reads is cut (`warn`, as None) or refused (`fail`).
        sampling: all of decoding in one object; the arguments above stand above it.
        endpoint: how to reach the server of openai:MODEL; its `models` is a TOML file with a table a model.
        window: records in flight; None is the stage's own.
        batch_tokens: padded tokens a batch; None is the stage's own.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16 or float16.
        seed: fixes every random choice.

    Raises:
        UsageError: an argument is wrong, or no model has an option.
        NoInputError: there is no such model.
        RecordError: a record is bad, or the server cannot answer it.
        EndpointError: the server cannot be reached.
    """
    from blendkit.generators.generating import Generating
    from blendkit.pipeline.runner import apply

    stage = Generating(
        [models] if isinstance(models, str) else models, sampling, endpoint, system, seed, device, dtype, decodings=decoding, num_return=num_return,
        trust_remote_code=trust_remote_code, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty, stop=stop or None, logprobs=logprobs or None,
        reasoning_effort=reasoning_effort, keep_reasoning=keep_reasoning, on_truncate=on_truncate,
    )  # fmt: skip
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@named
def score(
    records: Records,
    metrics: str | Sequence[str],
    *,
    bertscore_layer: int | None = None,
    bertscore_idf: str | None = None,
    bertscore_baseline: str | None = None,
    tokenize: str | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Adds `scores` to every candidate, and `signatures`, which tell what decided each score.

    Args:
        records: with `candidates`, and with what the metrics need: the reference (`output`) or x.
        metrics: [LABEL=]NAME[:MODEL] or [LABEL=]NAME[:TOKENIZER], all in one pass; `blendkit score --list` shows the names.
        bertscore_layer: which layer's states BERTScore matches, from 1; None is the authors' choice, else the last.
        bertscore_idf: a file of records, by whose references tokens are weighed.
        bertscore_baseline: rescales: a language such as en, or a file of bert-score's form.
        tokenize: how metrics of words find them: `lang`, `auto` or one of sacrebleu's tokenizers; None is each metric's own.
        window: this and all that follow are as in `generate`.

    Raises:
        UsageError: there is no such metric, two have one name, none has an option, or a tokenizer lacks a package.
        NoInputError: there is no such model or file.
        RecordError: a record lacks what a metric needs.
    """
    from blendkit.pipeline.runner import apply
    from blendkit.scorers.scoring import Scoring

    stage = Scoring(
        [metrics] if isinstance(metrics, str) else metrics, device, dtype, seed, bertscore_layer=bertscore_layer, bertscore_idf=bertscore_idf,
        bertscore_baseline=bertscore_baseline, tokenize=tokenize,
    )  # fmt: skip
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@named
def pair(
    records: Records,
    model: str = "embedded",
    *,
    name: str = "pairrm",
    schedule: str = "full",
    prefilter: str | None = None,
    on_truncate: str = "warn",
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Adds `comparisons[name]` by PairRanker (LLM-Blender, section 3.2): [i, j, logit] of every pair compared.

    Args:
        records: with x and `candidates`.
        model: `embedded`, a directory, or a hub id such as llm-blender/PairRM.
        name: the name of these comparisons in the record.
        schedule: which pairs: full, single, bubble[:K], sort, swiss:R or active:B.
        prefilter: METRIC:K compares only the K candidates with the best METRIC.
        on_truncate: a text longer than the model reads is cut (`warn`) or refused (`fail`).
        window: this and all that follow are as in `generate`.

    Raises:
        UsageError: an argument is wrong.
        NoInputError: there is no such model.
        RecordError: a record is bad, or a text is too long under `fail`.
    """
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.pairranker import PairRanker

    stage = PairRanker(model, name, device, dtype, schedule=schedule, prefilter=prefilter, on_truncate=on_truncate, seed=seed)
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@named
def rank(
    records: Records, by: str = "pairrm", *, aggregate: str | None = None, reference: str | None = None, top: int = 3, name: str | None = None,
    window: int | None = None,
) -> Iterator[Record]:  # fmt: skip
    """Adds `ranks` (1 is best; ties share the lowest rank) and `top`, the indices of the best, best first.

    Args:
        records: with what is ranked by, which `pair`, `score` or `judge` writes.
        by: a name in `comparisons`, score:NAME, judge:NAME, or oracle:FIELD, a number in each candidate.
        aggregate: max-logits, max-wins, copeland, bradley-terry or elo; None is the order that a schedule found, else max-logits.
        reference: ranks by the margin over one candidate: longest, shortest, median-length, first, last, or a model's name.
        top: how many of the best `top` holds.
        name: the name of this ranking in `ranks`; None is made from `by`.
        window: records in flight; None is the stage's own.

    Raises:
        UsageError: an argument is wrong.
        RecordError: a record lacks what is ranked by.
    """
    from blendkit.pipeline.runner import apply
    from blendkit.rankers.ranking import Ranking

    yield from apply(Ranking(by, aggregate, top, name, reference), records, window=window)


@named
def fuse(
    records: Records,
    model: str | Sequence[str] = "consensus",
    *,
    name: str | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    max_length: int | None = None,
    candidate_maxlength: int | None = None,
    layers: int | None = None,
    temperature: float | None = None,
    show_ranks: bool | None = None,
    show_scores: bool | None = None,
    reasoning_effort: str | None = None,
    keep_reasoning: str | None = None,
    on_truncate: str | None = None,
    endpoint: EndpointOptions | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Appends one answer made of the `top` candidates, with `sources`, their indices (LLM-Blender, section 4).

    An option that is not None must be one of the fuser that `model` chooses.

    Args:
        records: with `candidates` and `top`, which `rank` writes.
        model: `consensus`, a seq2seq checkpoint (GenFuser), or one or several chat models, openai:MODEL or local ones (ChatFuser).
        name: `model` of the fused candidate; None is as the model.
        max_new_tokens: tokens to write at most. GenFuser: 512. ChatFuser: 1024.
        num_beams: beams. GenFuser: 4.
        max_length: tokens of the whole input at most. GenFuser: 1024.
        candidate_maxlength: tokens of each candidate at most. GenFuser: 128.
        layers: rounds, each of which reads the answers of the one before (mixture of agents). ChatFuser: 1.
        temperature: 0 is greedy. ChatFuser: 0.
        show_ranks: tells the model each candidate's ranks. ChatFuser: False.
        show_scores: tells the model each candidate's scores. ChatFuser: False.
        reasoning_effort: as in `generate`. ChatFuser.
        keep_reasoning: as in `generate`. ChatFuser: field.
        on_truncate: a prompt longer than a local model reads has its longest texts cut (`warn`) or is refused (`fail`). GenFuser cuts as its lengths
            say, or refuses. Both: warn.
        endpoint: how to reach the server of openai:MODEL. ChatFuser.
        window: this and all that follow are as in `generate`.

    Raises:
        UsageError: an argument is wrong, or the fuser does not have it.
        NoInputError: there is no such model.
        RecordError: a record has no `top`, or the server cannot answer it.
        EndpointError: the server cannot be reached.
    """
    from blendkit.fusers import make_fuser
    from blendkit.pipeline.runner import apply

    stage = make_fuser(
        model, name=name, max_new_tokens=max_new_tokens, num_beams=num_beams, max_length=max_length, candidate_maxlength=candidate_maxlength, layers=layers,
        temperature=temperature, show_ranks=show_ranks, show_scores=show_scores, reasoning_effort=reasoning_effort,
        keep_reasoning=keep_reasoning, on_truncate=on_truncate, endpoint=endpoint, device=device, dtype=dtype, seed=seed,
    )  # fmt: skip
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@named
def judge(
    records: Records,
    model: str | Sequence[str] = "embedded",
    *,
    name: str | None = None,
    orders: str = "both",
    schedule: str = "full",
    prompt: str | None = None,
    verdict_by: str | None = None,
    max_new_tokens: int | None = None,
    max_unparsed: float = 0.2,
    reasoning_effort: str | None = None,
    on_truncate: str | None = None,
    endpoint: EndpointOptions | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Iterator[Record]:
    """Adds `verdicts`: A, B, tie-good or tie-bad on pairs of candidates (GPT-Rank: LLM-Blender, section 2.2), and `signatures` of them.

    An option that is not None must be one of some judge's.

    Args:
        records: with x, `candidates`, and the reference (`output`) where the judge is shown it.
        model: [NAME=]MODEL: `embedded`, openai:MODEL, or a local causal model; several are a panel.
        name: the judge's name in `verdicts`, or the panel's; None is as the model, or `panel`.
        orders: shows each pair in `both` orders, which count alike (probabilities are averaged, verdicts without them count where
            both agree, else as a tie), or in one at `random`.
        schedule: which pairs, as in `pair`.
        prompt: the name of a prompt, or a file. LLM: pairwise-with-reference.
        verdict_by: likelihood, json, text or auto. LLM: auto.
        max_new_tokens: tokens of a reply at most. LLM: the prompt's own.
        max_unparsed: the largest share of a judge's verdicts, 0 to 1, that may be unreadable.
        reasoning_effort: as in `generate`. LLM.
        on_truncate: a prompt longer than a local model reads has its longest texts cut (`warn`) or is refused (`fail`). LLM: warn.
        endpoint: how to reach the server of openai:MODEL. LLM.
        window: this and all that follow are as in `generate`.

    Raises:
        UsageError: an argument is wrong, or no judge has it.
        NoInputError: there is no such model or prompt file.
        RecordError: a record lacks what a judge is shown, or the server cannot answer it.
        EndpointError: the server cannot be reached.
        TooManyUnparsed: after the last record, more than `max_unparsed` of a judge's verdicts could not be read.
    """
    from blendkit.judges import make_judge
    from blendkit.pipeline.runner import apply

    stage = make_judge(
        model, name=name, orders=orders, schedule=schedule, prompt=prompt, verdict_by=verdict_by, max_new_tokens=max_new_tokens,
        max_unparsed=max_unparsed, reasoning_effort=reasoning_effort, on_truncate=on_truncate, endpoint=endpoint,
        device=device, dtype=dtype, seed=seed,
    )  # fmt: skip
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@named
def evaluate(
    records: Records, *, versus: Sequence[str] = (), oracle: str | None = None, agreement: str | None = None, baseline: str | None = None,
    ratings: bool = False, length_controlled: str | None = None, aggregations: bool = False, manifests: Sequence[str] = (),
    compare_with: str | None = None, checks: Sequence[str] = (), expect: int | None = None, fail_if_worse: str | None = None,
    report: str | None = None, report_records: int = 500, plot: str | None = None, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Returns the rows of Table 2 and Table 3, and of the tables that are asked for, as `blendkit evaluate` writes them.

    Args:
        records: with what earlier stages wrote: scores, ranks, verdicts.
        versus: models, or `model · decoding` or `model#2` where one has several candidates; for each
            a column says in how many % of the examples a method is not worse.
        oracle: the true ranking: `judge:NAME`, `score:NAME` or the NAME of a score; None takes the stream's judge, MixInstruct's first.
        agreement: a field with labels A, B or tie in records of two candidates; adds each score's and ranking's agreement with it.
        baseline: a method, by its name in Table 2 or as GROUP.METHOD, that all others but oracles are tested against (paired, corrected).
        ratings: adds Bradley-Terry and Elo ratings, win rates, and the judges' position bias and agreement.
        length_controlled: a model; adds win rates against it at equal length (needs the extra `stats`).
        aggregations: adds each ranker's full comparisons by MaxLogits, MaxWins and one bubble run.
        manifests: files that earlier stages' `--manifest` wrote; adds their time and cost.
        compare_with: a file of rows of an earlier run, as JSON lines; adds what moved beyond noise.
        checks: such as `rankers.pairrm.gpt_rank < llms.best.gpt_rank`.
        expect: how many records there must be.
        fail_if_worse: as `compare_with`; besides, no figure may have become worse beyond noise.
        report: a folder; writes one self-contained HTML page into it, with the first `report_records` records (needs the extra `plots`).
        plot: a .png, .svg or .pdf that the figures are drawn into (needs the extra `plots`).
        seed: of resampling, permutations and bubble runs.

    Raises:
        DataError: there is no record, a record lacks what an argument asks for, or a file holds something else.
        UsageError: an argument's value is none that there is, or an extra is not installed.
        NoInputError: a file that is read is not there.
        OutputError: the page or the plot cannot be written.
        CheckFailed: one of `checks`, `expect` and `fail_if_worse` does not hold; all else is done.
    """
    from blendkit.evaluation.evaluating import Evaluating
    from blendkit.pipeline.runner import apply

    stage = Evaluating(
        versus=versus, oracle=oracle, agreement=agreement, baseline=baseline, ratings=ratings, length_controlled=length_controlled,
        aggregations=aggregations, manifests=manifests, compare_with=compare_with, checks=checks, expect=expect,
        fail_if_worse=fail_if_worse, report=report, report_records=report_records, plot=plot, seed=seed,
    )  # fmt: skip
    for _ in apply(stage, records):
        pass
    stage.write_page()
    stage.draw()
    stage.check()
    return stage.rows()
