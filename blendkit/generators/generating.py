"""`generate`: candidates by every model, one or several each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from blendkit.errors import UsageError, expect_at_least
from blendkit.generators.base import Completion, Messages, Prompt, TextModel
from blendkit.generators.factory import DEFAULT, check_batch, check_models, chosen, for_run, text_model, tokens_a_batch, windows_at_once
from blendkit.generators.options import EndpointOptions, Sampling, decoded_by
from blendkit.generators.presets import Preset, defaults_of, names_to_suggest, preset_of
from blendkit.generators.reasoning import check_reasoning
from blendkit.generators.recording import Recording
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.records import Record, source_text
from blendkit.registry import suggesting
from blendkit.seeding import seeded
from blendkit.specs import named_twice, split_name
from blendkit.terminal_text import count_of

SEVERAL_LOCAL = 1024  # records a window where each window loads the weights anew


class Generating(Stage):
    """Appends to `candidates`; `models` are NAME=SPEC or SPEC, in the order in which candidates are added, or None: the table's, else the default.

    Each model gives `num_return` candidates by each of `decodings` (NAME or NAME:NUMBER; by `sampling` where there are
    none). Of several local models, one at a time has its weights in memory; one that has several names is loaded once, and
    what is sampled in the same way shares batches.
    """

    name = "generate"
    window = 32

    def __init__(
        self,
        models: Sequence[str] | None = None,
        sampling: Sampling | None = None,
        endpoint: EndpointOptions | None = None,
        system: str | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        *,
        decodings: Sequence[str] = (),
        num_return: int = 1,
        trust_remote_code: bool = False,
        on_truncate: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] | None = None,
        logprobs: bool | None = None,
        reasoning_effort: str | None = None,
        keep_reasoning: str = "field",
    ) -> None:
        """`max_new_tokens` and all behind it stand above `sampling`'s; a model's own defaults give way to both.

        Raises:
            UsageError: a name is given twice, a number is out of its range, or a decoding that a model cannot do.
            NoInputError: there is no such model.
        """
        expect_at_least({"num_return": 1}, {"num_return": num_return})
        check_reasoning(keep_reasoning, reasoning_effort)
        self.recording = Recording(keep_reasoning)
        asked = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "repetition_penalty": repetition_penalty,
            "stop": None if stop is None else tuple(stop), "logprobs": logprobs, "effort": reasoning_effort,
        }  # fmt: skip
        sampling = _asked(sampling or Sampling(), asked)
        # What differs from the defaults was asked for, too.
        given = {name for name, value in asked.items() if value is not None} | {
            name for name, value in vars(sampling).items() if value != vars(Sampling())[name]
        }
        endpoint = endpoint or EndpointOptions()
        specs = models or [*endpoint.named] or ([DEFAULT] if models is None else [])
        parsed = [split_name(model, "-m") for model in specs]
        if not parsed:
            raise UsageError("generate: expected at least one model")
        endpoint = for_run(endpoint, [name or spec for name, spec in parsed])
        found = [chosen(spec, endpoint, name) for name, spec in parsed]
        check_models([preset_of(one.spec)[1] for one in found], endpoint.beside_tables, trust_remote_code, on_truncate)
        self.sampling, self.seed, self.num_return = sampling, seed, num_return
        self.systems = {one.name: system if system is not None or one.table is None else one.table.system for one in found}
        self.models: dict[str, TextModel] = {}
        self.presets: dict[str, Preset | None] = {}
        self.samplings: dict[str, list[Sampling]] = {}
        self.jobs: dict[str, list[Job]] = {}
        here: dict[str, TextModel] = {}
        jobs: dict[tuple[int, tuple[str, ...], str], Job] = {}
        for one, spec_given in zip(found, specs, strict=True):
            name = one.name
            preset, where = preset_of(one.spec)
            if name in self.models:
                raise named_twice(name, spec_given, "-m")
            self.presets[name] = preset
            with suggesting(where, [*endpoint.named, *names_to_suggest()]):
                model = here.get(where) or text_model(where, one.endpoint, device, dtype, trust_remote_code, on_truncate)
            if model.local and not one.endpoint.own:
                here[where] = model
            self.models[name] = model
            base = _with_defaults(sampling, {**defaults_of(preset, where), **(one.table.sampling if one.table else {})}, given)
            self.samplings[name] = [decoded_by(decoding, base) for decoding in decodings] or [base]
            for drawn in self.samplings[name]:
                self._check(name, drawn)
            # Prompts of one batch end at the same texts.
            stops = preset.stop if preset else ()
            self.jobs[name] = [jobs.setdefault((id(model), stops, repr(drawn)), self._job(name, drawn)) for drawn in self.samplings[name]]
        check_batch(self.models.values(), endpoint)
        self.local = [model for model in self._distinct() if model.local]
        self.batch_tokens = tokens_a_batch(self.local, self.batch_tokens)
        if len(self.local) > 1:
            self.window = SEVERAL_LOCAL
        elif self.local:
            self.window = max(self.window, *(model.window for model in self.models.values()))
        else:
            # A window holds enough questions to keep all `concurrency` requests busy.
            self.window = max(16, 4 * max(one.endpoint.concurrency for one in found))
            self.overlap = windows_at_once(self.models.values(), endpoint)
        # Requests that are only written down bring no candidates.
        self.passes_records = not endpoint.only_emits

    def _distinct(self) -> list[TextModel]:
        """The models, those of several names once."""
        return list({id(model): model for model in self.models.values()}.values())

    def _check(self, name: str, sampling: Sampling) -> None:
        local = self.models[name].local
        if not local and (sampling.beams > 1 or sampling.typical_p < 1):
            raise UsageError(f"--decoding {sampling.method}: endpoints have no such method; {name} would need a local model")
        self.models[name].check(sampling)
        if sampling.beams > 1 and not hasattr(self.models[name], "search"):
            raise UsageError(f"--decoding {sampling.method}: {name} has no such method")
        if sampling.beams > 1 and self.num_return > sampling.beams:
            raise UsageError(f"--num-return {self.num_return}: a search with {count_of(sampling.beams, 'beam')} has no more answers than that")
        if self.num_return > 1 and sampling.temperature == 0 and sampling.beams == 1:
            raise UsageError(f"--num-return {self.num_return}: greedy decoding has one answer; sample, or search with beams")

    def _job(self, name: str, sampling: Sampling) -> Job:
        """One model's completions by one sampling, a list a prompt."""
        model = self.models[name]

        def run(prompts: list[Prompt]) -> list[Any]:
            for other in self.local:
                if other is not model:
                    other.put_away()
            if sampling.beams > 1:
                return model.search(prompts, sampling, self.num_return)  # type: ignore[attr-defined,no-any-return]
            return [one if isinstance(one, Exception) else [one] for one in model.complete(prompts, sampling)]

        return Job(name, run, model.budgeted, model.close)

    def plan(self, record: Record) -> list[Work]:
        """One prompt a candidate, or a search. Sampling differs from record to record, so equal prompts stay apart."""
        works = []
        for name, model in self.models.items():
            messages = prompt_messages(record, self.systems[name])
            preset = self.presets[name]
            written = partial(preset.text, instruction=record.get("instruction"), given=record.get("input")) if preset else None
            stop = preset.stop if preset else ()
            for number, (sampling, job) in enumerate(zip(self.samplings[name], self.jobs[name], strict=True)):
                searched = sampling.beams > 1
                for copy in range(1 if searched else self.num_return):
                    drawn = sampling.temperature > 0 and not searched
                    # Where nothing is drawn, equal prompts are one request, whichever records they are of.
                    parts = [name, *([record["id"]] if drawn else []), *([f"{number}.{copy}"] if number or copy else [])]
                    prompt = Prompt(messages, seeded(self.seed, *parts), written, stop)
                    key = (name, record["id"], number, copy) if drawn else (source_text(record), prompt.text())
                    length = model.length(prompt) + sampling.max_new_tokens
                    works.append(Work(job, key, length * sampling.beams, prompt))
        return works

    def finish(self, record: Record, results: list[list[Completion]]) -> None:
        """Appends the candidates."""
        candidates = record.setdefault("candidates", [])
        given = iter(results)
        for name in self.models:
            for sampling in self.samplings[name]:
                found: list[Completion] = []
                while len(found) < self.num_return:
                    found += next(given)
                taken = [self.recording.taken(name, completion) for completion in found] if self.passes_records else found
                candidates += [_candidate(name, sampling, completion) for completion in taken]

    def describe(self) -> dict[str, Any]:
        """Models, sampling and number of answers."""
        models = {name: model.describe() for name, model in self.models.items()}
        return {"models": models, "sampling": vars(self.sampling), "num_return": self.num_return, **self.recording.describe()}

    def warnings(self) -> list[str]:
        """The warnings of the models, and empty answers."""
        return [*(warning for model in self._distinct() for warning in model.warnings()), *self.recording.warnings()]


def _candidate(name: str, sampling: Sampling, completion: Completion) -> dict[str, Any]:
    return {"model": name, "text": completion.text, "decoding_method": sampling.method, **completion.fields()}


def _asked(sampling: Sampling, asked: dict[str, Any]) -> Sampling:
    """The sampling with what was asked for beside it."""
    return replace(sampling, **{name: value for name, value in asked.items() if value is not None})


def _with_defaults(sampling: Sampling, defaults: Mapping[str, Any], given: Collection[str]) -> Sampling:
    """The model's defaults, but for what was asked for."""
    return replace(sampling, **{key: value for key, value in defaults.items() if key not in given})


def prompt_messages(record: Record, system: str | None) -> Messages:
    """The record as a conversation: its `messages`, or x as one user turn."""
    messages: Messages = record.get("messages") or [{"role": "user", "content": source_text(record)}]
    return [{"role": "system", "content": system}, *messages] if system else messages
