"""The stages that ask models for text: candidates, fused answers, verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blendkit.arguments import File, Files, Records, Texts, checked, one, several
from blendkit.records import Record


@checked
def generate(
    records: Records,
    models: Sequence[File] | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    num_return: int = 1,
    decoding: Texts | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    stop: Texts | None = None,
    logprobs: bool = False,
    reasoning_effort: str | None = None,
    keep_reasoning: str = "field",
    trust_remote_code: bool = False,
    on_truncate: str | None = None,
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
    """Appends candidates to every record: one a model, or as many as `num_return` and `decoding` ask for.

    Args:
        records: with `instruction` and `input`, or `messages`.
        models: [NAME=]SPEC: a hub id, a directory, FILE.gguf, openai:MODEL, a preset, PRESET:MODEL, smollm2, or a name in
            `models_file`; None is all names there, or smollm2.
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
        base_url: the server of openai:MODEL; None is OPENAI_BASE_URL, else OpenAI's. A model's own stands behind it: openai:MODEL@URL.
        key_env: the environment's variable with the key, as NAME, or MODEL=NAME for one model; None is OPENAI_API_KEY.
        extra_header: NAME:VALUE, headers of every request; VALUE env:VARIABLE is read from the environment.
        extra_body: fields that are added to every request, above blendkit's own; None as a value leaves one out.
        api: chat, or completions (a plain text, by the preset's format where there is one).
        concurrency: requests at a time.
        requests_per_minute: at most so many requests a minute.
        tokens_per_minute: at most so many tokens a minute, prompt and the most that may be written.
        retries: retries, with backoff and as Retry-After says, before the server counts as gone.
        timeout: seconds to wait for one answer, to its last byte.
        max_wait: seconds that a server may ask to be left alone (Retry-After); longer ends the run.
        max_body_bytes: a longer answer, decompressed, is a bad one.
        cache: an SQLite file that keeps answers, so that no question is paid for twice.
        price_in: $ a million tokens of prompt: adds `cost` to usage.
        price_out: $ a million tokens of answer.
        max_cost: stops before this many $, of all models together, are exceeded.
        emit_batch: asks nothing: writes the requests to this file, in the OpenAI batch format.
        read_batch: takes the answers from these files, the output of such batches.
        models_file: a TOML file with a table [NAME] a model: where it is, its key, price and limits; `models` then may name it.
        window: records in flight; None is the stage's own.
        batch_tokens: padded tokens a batch; None is the stage's own.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16, float16, or int8 (`pair`, and scorers that read an encoder, on a CPU).
        seed: fixes every random choice.

    Raises:
        UsageError: an argument is wrong, or no model has an option.
        NoInputError: there is no such model.
        RecordError: a record is bad, or the server cannot answer it.
        EndpointError: the server cannot be reached.

    Example:
        prompts = [{"instruction": "Name three rivers."}, {"instruction": "Why is the sky blue?"}]
        answered = list(blendkit.generate(prompts, models=["small=smollm2"], max_new_tokens=64, temperature=0.7))
        print(answered[0]["candidates"][0]["text"])
    """
    from blendkit.generators.generating import Generating
    from blendkit.generators.options import EndpointOptions
    from blendkit.pipeline.runner import apply

    endpoint = EndpointOptions.of_arguments(locals())
    stage = Generating(
        several(models), None, endpoint, system, seed, device, dtype, decodings=several(decoding) or (), num_return=num_return,
        trust_remote_code=trust_remote_code, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
        repetition_penalty=repetition_penalty, stop=several(stop), logprobs=logprobs or None,
        reasoning_effort=reasoning_effort, keep_reasoning=keep_reasoning, on_truncate=on_truncate,
    )  # fmt: skip
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@checked
def fuse(
    records: Records,
    model: Files = "consensus",
    *,
    name: str | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    max_length: int | None = None,
    candidate_maxlength: int | None = None,
    layers: int | None = None,
    temperature: float | None = None,
    analysis: bool | None = None,
    show_ranks: bool | None = None,
    show_scores: bool | None = None,
    reasoning_effort: str | None = None,
    keep_reasoning: str | None = None,
    on_truncate: str | None = None,
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
    """Appends one answer made of the `top` candidates, with `sources`, their indices (LLM-Blender, section 4).

    An option that is not None must be one of the fuser that `model` chooses.

    Args:
        records: with `candidates` and `top`, which `rank` writes.
        model: [NAME=]SPEC: `consensus`, a seq2seq checkpoint (GenFuser), or one or several chat models, openai:MODEL or local ones (ChatFuser).
        name: `model` of the fused candidate; None is NAME, or as the model.
        max_new_tokens: tokens to write at most. GenFuser: 512. ChatFuser: 1024.
        num_beams: beams. GenFuser: 4.
        max_length: tokens of the whole input at most. GenFuser: 1024.
        candidate_maxlength: tokens of each candidate at most. GenFuser: 128.
        layers: rounds, each of which reads the answers of the one before (mixture of agents). ChatFuser: 1.
        temperature: 0 is greedy. ChatFuser: 0.
        analysis: first writes where the candidates agree, contradict each other and stand alone (`analysis`), then answers with it in view.
            ChatFuser: False.
        show_ranks: tells the model each candidate's ranks. ChatFuser: False.
        show_scores: tells the model each candidate's scores. ChatFuser: False.
        reasoning_effort: as in `generate`. ChatFuser.
        keep_reasoning: as in `generate`. ChatFuser: field.
        on_truncate: a prompt longer than a local model reads has its longest texts cut (`warn`) or is refused (`fail`). GenFuser cuts as its lengths
            say, or refuses. Both: warn.
        attention: how packed encoders attend: flex, varlen, batched or per-input; auto takes what the device and the encoder have.
        self_check: on a GPU, holds two inputs of the first batch to the plain form in float32.
        base_url: this and all that follow are as in `generate`. ChatFuser, but for the last five.

    Raises:
        UsageError: an argument is wrong, or the fuser does not have it.
        NoInputError: there is no such model.
        RecordError: a record has no `top`, or the server cannot answer it.
        EndpointError: the server cannot be reached.

    Example:
        fused = list(blendkit.fuse(ranked))
        print(fused[0]["candidates"][-1]["text"])
    """
    from blendkit.fusers import make_fuser
    from blendkit.generators.options import EndpointOptions
    from blendkit.models.attention_forms import attending
    from blendkit.pipeline.runner import apply

    endpoint = EndpointOptions.of_arguments(locals())
    with attending(attention, self_check) as how:
        stage = make_fuser(
            several(model), name=name, max_new_tokens=max_new_tokens, num_beams=num_beams, max_length=max_length, candidate_maxlength=candidate_maxlength,
            layers=layers, temperature=temperature, analysis=analysis, show_ranks=show_ranks, show_scores=show_scores, reasoning_effort=reasoning_effort,
            keep_reasoning=keep_reasoning, on_truncate=on_truncate, endpoint=endpoint, device=device, dtype=dtype, seed=seed,
        )  # fmt: skip
    stage.attending = how
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)


@checked
def judge(
    records: Records,
    model: Files = "embedded",
    *,
    name: str | None = None,
    orders: str = "both",
    schedule: str = "full",
    list: int | None = None,
    shuffles: int | None = None,
    exclude_self: bool = False,
    families: File | None = None,
    panel: str | None = None,
    panel_weights: File | None = None,
    prompt: File | None = None,
    verdict_by: str | None = None,
    max_new_tokens: int | None = None,
    max_unparsed: float = 0.2,
    reasoning_effort: str | None = None,
    on_truncate: str | None = None,
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
    """Adds `verdicts`: A, B, tie-good or tie-bad on pairs of candidates (GPT-Rank: LLM-Blender, section 2.2), and `signatures` of them.

    An option that is not None must be one of some judge's.

    Args:
        records: with x, `candidates`, and the reference (`output`) where the judge is shown it.
        model: [NAME=]SPEC: `embedded`, openai:MODEL, or a local causal model; several are a panel.
        name: the judge's name in `verdicts`, or the panel's; None is NAME, or as the model, or `panel`.
        orders: shows each pair in `both` orders, which count alike (probabilities are averaged, verdicts without them count where
            both agree, else as a tie), or in one at `random`.
        schedule: which pairs, as in `pair`.
        list: shows so many shuffled candidates in one call, which are put in order (B > A = C), in place of pairs. LLM.
        shuffles: how often the lists of `list` are drawn; None is 2.
        exclude_self: shows no judge an answer of its own: one whose `model` is the judge's name, or its model's.
        families: with `exclude_self`, nor a relative's: a TOML or JSON file, name or beginning of a name → family.
        panel: what a panel's verdict is: `majority`, `weights` (of `panel_weights`), or `dawid-skene`, which weighs three judges or more by what all
            say over the whole stream: the first record comes after the last was judged, and until then they are in a temporary file. None is
            `weights` with `panel_weights`, else `majority`.
        panel_weights: weighs the judges of a panel by the table `panel` in this file of JSON lines, instead of by the majority.
        prompt: auto (pairwise-with-reference for a record that has a reference, else pairwise), the name of a prompt, or a file. LLM: auto.
        verdict_by: likelihood, json, text or auto. LLM: auto.
        max_new_tokens: tokens of a reply at most. LLM: the prompt's own.
        max_unparsed: the largest share of a judge's verdicts, 0 to 1, that may be unreadable.
        reasoning_effort: as in `generate`. LLM.
        on_truncate: a prompt longer than a local model reads has its longest texts cut (`warn`) or is refused (`fail`). LLM: warn.
        attention: how packed encoders attend: flex, varlen, batched or per-input; auto takes what the device and the encoder have.
        self_check: on a GPU, holds two inputs of the first batch to the plain form in float32.
        base_url: this and all that follow are as in `generate`. LLM, but for the last five.

    Raises:
        UsageError: an argument is wrong, or no judge has it.
        NoInputError: there is no such model or prompt file.
        RecordError: a record lacks what a judge is shown, or the server cannot answer it.
        EndpointError: the server cannot be reached.
        TooManyUnparsed: after the last record, more than `max_unparsed` of a judge's verdicts could not be read.

    Example:
        judged = list(blendkit.judge(fused))
        print(judged[0]["verdicts"]["embedded"][0])
    """
    from blendkit.generators.options import EndpointOptions
    from blendkit.judges import make_judge
    from blendkit.models.attention_forms import attending
    from blendkit.pipeline.runner import apply

    endpoint = EndpointOptions.of_arguments(locals())
    with attending(attention, self_check) as how:
        stage = make_judge(
            several(model), name=name, orders=orders, schedule=schedule, prompt=one(prompt), verdict_by=verdict_by, max_new_tokens=max_new_tokens,
            max_unparsed=max_unparsed, reasoning_effort=reasoning_effort, on_truncate=on_truncate, exclude_self=exclude_self, families=one(families),
            panel=panel, panel_weights=one(panel_weights), list_size=list, shuffles=shuffles, endpoint=endpoint, device=device, dtype=dtype, seed=seed,
        )  # fmt: skip
    stage.attending = how
    yield from apply(stage, records, window=window, batch_tokens=batch_tokens)
