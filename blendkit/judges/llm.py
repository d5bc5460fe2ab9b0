"""An LLM as judge (GPT-Rank, LLM-Blender section 2.2): two answers in a prompt, one verdict."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from blendkit.errors import RecordError, UsageError
from blendkit.generators.base import Completion, Material, Messages, Prompt, TextModel, Unanswered
from blendkit.generators.factory import chosen, generator_of, text_model, windows_at_once
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.generators.reasoning import check_reasoning
from blendkit.generators.unparsed import QUOTED, why_unread
from blendkit.judges.base import LLM, Juror, Opinion, Opinions, Shown
from blendkit.judges.lists import ListPrompt
from blendkit.judges.prompting import AUTO, WITH_REFERENCE, JudgePrompt, prompts_of
from blendkit.models.loading import batch_budget, choose_device
from blendkit.pipeline.work import Job, Work
from blendkit.records import Record, reference_of, source_text
from blendkit.seeding import seeded
from blendkit.signature import Signature
from blendkit.specs import default_name
from blendkit.terminal_text import count_of
from blendkit.version import VERSION

# How a verdict is read off the model; `auto` is likelihood for a local model, and json where a server has it, else text.
WAYS = ("auto", "text", "json", "likelihood")
ALTERNATIVES = 20
LIST_TOKENS = 128  # of a reply that is an order
WAITING = Opinion("unparsed", reason="there is no answer yet", waiting=True)


class LLMJudge(Juror):
    """`openai:MODEL`, `vllm:MODEL` or a local model.

    By `likelihood`, the verdict is the word that the model finds likeliest, and comes with a probability. A reply in words
    is parsed strictly, asked for once more, and then `unparsed`.
    """

    kind = LLM

    def __init__(
        self, model: str, endpoint: EndpointOptions | None = None, *, name: str | None = None, prompt: str = AUTO, verdict_by: str = "auto",
        max_new_tokens: int | None = None, reasoning_effort: str | None = None, on_truncate: str | None = None, seed: int = 0,
        device: str = "auto", dtype: str = "auto",
    ) -> None:  # fmt: skip
        one = chosen(model, endpoint or EndpointOptions(), name or "")
        endpoint = one.endpoint
        if verdict_by not in WAYS:
            raise UsageError(f"--verdict-by {verdict_by}: expected one of {', '.join(WAYS)}")
        check_reasoning(effort=reasoning_effort)
        # Verdicts are read alike, whichever of them is shown.
        self.prompt, self.free = prompts_of(prompt)
        self.prompt_name = AUTO if self.free is not self.prompt else self.prompt.name
        self.shown_reference, self.shown_none = 0, 0
        self.model: TextModel = text_model(one.spec, endpoint, device, dtype, on_truncate=on_truncate)
        self.name, self.seed = one.name, seed
        self._known_as = {one.name, model, one.spec, default_name(one.spec), generator_of(one.spec)[1]}
        self.local = self.model.local
        if self.prompt.raw and not self.local and endpoint.api == "chat":
            raise UsageError(f"--prompt {self.prompt.name} is a text without a conversation, for models trained on it: add --api completions")
        self.way = self._way(one.spec, verdict_by)
        if self.local and self.way == "text":
            self.batch_tokens = self.model.batch_tokens
        elif self.local and (where := choose_device(device)).type == "cuda":
            # One pass over the prompts, whose activations need room beside their keys and values.
            self.batch_tokens = min(self.model.batch_tokens, batch_budget(where))
        tokens = max_new_tokens or self.prompt.max_new_tokens
        self.sampling = one.sampling(Sampling(max_new_tokens=tokens, temperature=0, stop=tuple(self.prompt.stop), effort=reasoning_effort))
        self.unparsed = self.asked = self.waiting = 0
        # Answers come from a batch; with `only_emits`, there are none yet.
        self._only_emits = endpoint.only_emits and not self.local
        self._asks_again = self.local or not endpoint.offline or bool(endpoint.emit_batch)
        self._counting = threading.Lock()
        self.overlap = windows_at_once([self.model], endpoint)
        self.job = Job(self.name, self._opinions, self.model.budgeted, self.model.close)
        self.listing = Job(self.name, self._orders, self.model.budgeted, self.model.close)
        self.list_sampling = replace(self.sampling, max_new_tokens=max_new_tokens or LIST_TOKENS)
        by = verdict_by if verdict_by == "auto" and not self.local else self.way
        effort = {"effort": self.sampling.effort} if self.sampling.effort else {}
        self.signature = str(Signature(f"judge:{one.spec}", prompt=self.prompt_name, by=by, **effort, v=VERSION))

    def _way(self, spec: str, asked: str) -> str:
        firsts = [word.split()[0].lower() for word in self.prompt.words.values()]
        if self.local and not hasattr(self.model, "likelihoods"):
            if asked not in ("auto", "text"):
                raise UsageError(f"--verdict-by {asked}: {spec} only writes text; --verdict-by text takes its words")
            return "text"
        if self.local:
            if asked == "json":
                raise UsageError("--verdict-by json is for endpoints; a local model's verdict is read by likelihood or text")
            if asked != "text" and getattr(self.model, "seq2seq", False):
                raise UsageError(f"-m {spec} is a sequence-to-sequence model: only causal ones are judged by likelihood; --verdict-by text takes its words")
            return "likelihood" if asked == "auto" else asked
        if self.prompt.lead:
            if asked in ("json", "likelihood"):
                raise UsageError(f"--prompt {self.prompt.name} has the judge reason first, and a server's verdict is then read as text: --verdict-by text")
            return "text"
        if asked == "likelihood" and len(set(firsts)) < len(firsts):
            raise UsageError(
                f"--verdict-by likelihood reads a server's first token, and verdicts of --prompt {self.prompt.name} begin alike; try {WITH_REFERENCE}"
            )
        if self.prompt.raw and asked == "json":
            raise UsageError(f"--prompt {self.prompt.name} has words of its own for a verdict: --verdict-by text or likelihood")
        return ("text" if self.prompt.raw else "json") if asked == "auto" else asked

    def known_as(self) -> set[str]:
        return self._known_as

    def begin(self, record: Record) -> None:
        with self._counting:
            if self._fitting(record).needs_reference:
                self.shown_reference += 1
            else:
                self.shown_none += 1

    def _fitting(self, record: Record) -> JudgePrompt:
        """The prompt for this record: by `auto`, the one without a reference where the record has none that says anything."""
        return self.prompt if (record.get("output") or "").strip() else self.free

    def rounds(self, record: Record, shown: list[Shown]) -> Opinions:
        """One prompt for each order shown."""
        form = self._fitting(record)
        reference = reference_of(record, f"--prompt {form.name}") if form.needs_reference else ""
        source = source_text(record)
        works = []
        for first, second in shown:
            texts = {"request": source, "reference": reference}
            texts |= {"answer_a": record["candidates"][first]["text"], "answer_b": record["candidates"][second]["text"]}
            prompt = self._asking(form, texts, seeded(self.seed, "judge"))
            works.append(Work(self.job, prompt.messages[0]["content"], self.model.length(prompt), (prompt, form, texts)))
        return (yield from self._counted(works))

    def orders(self, record: Record, lists: list[list[int]]) -> Opinions:
        """One order of the answers of each list, indices of candidates, as an opinion whose verdict reads `B > A = C`, or `unparsed`."""
        source = source_text(record)
        works = []
        for shown in lists:
            form = ListPrompt(len(shown), self._fitting(record).needs_reference)
            texts = {"request": source, **({"reference": reference_of(record, f"--prompt {self.prompt_name}")} if form.needs_reference else {})}
            texts |= {letter: record["candidates"][place]["text"] for letter, place in zip(form.letters, shown, strict=True)}
            prompt = Prompt([{"role": "user", "content": form.filled(texts)}], seeded(self.seed, "judge"), quoted=tuple(texts.values()))
            works.append(Work(self.listing, prompt.messages[0]["content"], self.model.length(prompt), (prompt, form)))
        return (yield from self._counted(works))

    def _counted(self, works: list[Work]) -> Opinions:
        opinions: list[Opinion] = yield works
        with self._counting:
            waiting = sum(opinion.waiting for opinion in opinions)
            self.waiting += waiting
            self.asked += len(opinions) - waiting
            self.unparsed += sum(opinion.verdict == "unparsed" for opinion in opinions) - waiting
        return opinions

    def _asking(self, form: JudgePrompt, texts: dict[str, str], seed: int, as_json: bool = False) -> Prompt:
        content = form.filled(texts, as_json)
        written = partial(_raw, form, texts, as_json) if form.raw else None
        return Prompt([{"role": "user", "content": content}], seed, written, quoted=tuple(texts.values()))

    def _opinions(self, payloads: list[tuple[Prompt, JudgePrompt, dict[str, str]]]) -> list[Any]:
        """One opinion a prompt, or its fault."""
        prompts, forms = [prompt for prompt, _, _ in payloads], [form for _, form, _ in payloads]
        if self.way == "likelihood":
            return self._local_likelihoods(prompts) if self.local else self._served_likelihoods(prompts)
        if self.way == "json":
            asking = [self._asking(form, texts, prompt.seed, as_json=True) for prompt, form, texts in payloads]
            return self._by_text(asking, forms, replace(self.sampling, schema=self.prompt.schema()))
        return self._by_text(prompts, forms, self.sampling)

    def _orders(self, payloads: list[tuple[Prompt, ListPrompt]]) -> list[Any]:
        """One order a prompt, or its fault."""
        prompts, forms = zip(*payloads, strict=True)
        return self._by_text([*prompts], forms, self.list_sampling)

    def _by_text(self, prompts: list[Prompt], forms: Sequence[JudgePrompt | ListPrompt], sampling: Sampling) -> list[Any]:
        replies = self.model.complete(prompts, sampling)
        if self._only_emits:
            return [WAITING for _ in replies]
        again = [place for place, reply in enumerate(replies) if isinstance(reply, Completion) and forms[place].parse(reply.text) is None]
        # A format of its own, as in PandaLM, has no second turn.
        if again and not self.prompt.raw:
            seconds = [replace(prompts[place], messages=_second_turn(prompts[place].messages, replies[place], forms[place].again())) for place in again]
            for place, reply in zip(again, self.model.complete(seconds, sampling), strict=True):
                # A batch that is only read may have no second turn; what there is stands.
                if self._asks_again or not isinstance(reply, Unanswered):
                    replies[place] = reply
        return [self._opinion(reply, form, sampling.max_new_tokens) for reply, form in zip(replies, forms, strict=True)]

    def _opinion(self, reply: Completion | Exception, form: JudgePrompt | ListPrompt, limit: int) -> Any:
        if isinstance(reply, Unanswered) and self._asks_again:
            return replace(WAITING, reason=str(reply)[:QUOTED])
        if not isinstance(reply, Completion):
            return reply
        verdict = form.parse(reply.text)
        flags = "--max-new-tokens" + (" or --reasoning-effort" if reply.reasoned else "")
        return Opinion(verdict) if verdict else Opinion("unparsed", reason=why_unread(reply, limit, flags))

    def _local_likelihoods(self, prompts: list[Prompt]) -> list[Any]:
        begun = None
        if self.prompt.lead:
            # The reasoning is the model's own; what it would have ended with is asked for by likelihood.
            reasons = self.model.complete(prompts, replace(self.sampling, stop=(self.prompt.lead,)))
            begun = [f"{reason.text} {self.prompt.lead} " if isinstance(reason, Completion) else "" for reason in reasons]
        verdicts, words = list(self.prompt.words), list(self.prompt.words.values())
        found = self.model.likelihoods(prompts, words, begun)  # type: ignore[attr-defined]
        reasons_given = begun or [""] * len(prompts)
        return [
            values if isinstance(values, Exception) else _weighted(dict(zip(verdicts, values, strict=True)), reason.strip()[:200])
            for values, reason in zip(found, reasons_given, strict=True)
        ]

    def _served_likelihoods(self, prompts: list[Prompt]) -> list[Any]:
        # A few tokens, because some models begin with a line break.
        replies = self.model.complete(prompts, replace(self.sampling, max_new_tokens=4, alternatives=ALTERNATIVES))
        if self._only_emits:
            return [WAITING for _ in replies]
        return [self._weighed(reply) for reply in replies]

    def _weighed(self, reply: Completion | Exception) -> Any:
        if isinstance(reply, Unanswered) and self._asks_again:
            return replace(WAITING, reason=str(reply)[:QUOTED])
        if isinstance(reply, Completion) and not reply.alternatives:
            return RecordError("", f"{self.model.spec} gives no log-probabilities, which --verdict-by likelihood needs; --verdict-by text does without")
        if not isinstance(reply, Completion):
            return reply
        firsts = {word.split()[0].lower(): verdict for verdict, word in self.prompt.words.items()}
        masses: dict[str, float] = {}
        for token, logprob in (reply.alternatives or {}).items():
            verdict = firsts.get(token.strip().lower())
            if verdict:
                masses[verdict] = masses.get(verdict, 0.0) + math.exp(logprob)
        if not any(masses.values()):
            return Opinion("unparsed", reason=why_unread(reply))
        return _weighted({verdict: math.log(mass) for verdict, mass in masses.items() if mass}, "")

    def describe(self) -> dict[str, Any]:
        """The model, how verdicts were read, how many replies could not be, and for how many records the reference was shown."""
        references = {"shown": self.shown_reference, "none": self.shown_none}
        return {**self.model.describe(), "prompt": self.prompt_name, "references": references, "verdict_by": self.way, "unparsed": self.unparsed}

    def warnings(self) -> list[str]:
        """How many verdicts are `unparsed`, and what the server does not have."""
        found = []
        if self.prompt_name == AUTO and self.shown_none:
            were = f"{count_of(self.shown_none, 'record has', 'records have')} no reference and {'was' if self.shown_none == 1 else 'were'} judged without"
            found.append(f"--prompt auto: {were}" + (f", {self.shown_reference:,} with theirs" if self.shown_reference else ""))
        if self.unparsed:
            twice = ", twice" if self._asks_again and not self.prompt.raw and self.way != "likelihood" else ""
            were, they = ("was", "it is") if self.unparsed == 1 else ("were", "they are")
            further = "" if self._asks_again else "; with --emit-batch NEXT they are asked for once more"
            found.append(f"{self.unparsed:,} of {count_of(self.asked, 'reply', 'replies')} {were} no verdict{twice}; {they} recorded as unparsed{further}")
        if self.waiting and not self._only_emits:
            waiting = count_of(self.waiting, "verdict waits", "verdicts wait")
            found.append(f"{waiting} for the next batch; until then {'it is' if self.waiting == 1 else 'they are'} recorded as unparsed")
        return [*found, *self.model.warnings()]


def _weighted(logs: dict[str, float], reason: str) -> Opinion:
    """The likeliest verdict, and the probability that the first answer is better among all verdicts."""
    top = max(logs.values())
    weights = {verdict: math.exp(value - top) for verdict, value in logs.items()}
    whole = sum(weights.values())
    first = weights.get("A", 0.0) + sum(weight for verdict, weight in weights.items() if verdict.startswith("tie")) / 2
    return Opinion(max(logs, key=lambda verdict: logs[verdict]), first / whole, reason or None)


def _raw(prompt: JudgePrompt, texts: dict[str, str], as_json: bool, messages: Messages, *, material: Material) -> str:
    """A prompt that is the whole text: control tokens are its own, never the answers'."""
    return prompt.filled(texts, as_json, material=material)


def _second_turn(messages: Messages, reply: Completion | Exception, again: str) -> Messages:
    said = reply.text if isinstance(reply, Completion) else ""
    if not said.strip():
        # Servers refuse an empty turn, and two of the user in a row.
        return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n\n{again}"}]
    return [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": again}]
