"""A judge that grades one answer at a time by a rubric (LLM-as-a-judge: Zheng et al. 2023; expected grades: Liu et al. 2023, G-Eval)."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import replace
from functools import cached_property
from typing import Any

import msgspec

from blendkit.errors import RecordError, UsageError
from blendkit.generators.base import Completion, Prompt, TextModel
from blendkit.generators.options import EndpointOptions, Sampling
from blendkit.generators.unparsed import why_unread
from blendkit.models.loading import fingerprint
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Graded, Item, Scorer, Scores
from blendkit.scorers.rubric import DEFAULT, Criterion, Grade, load_rubric
from blendkit.signature import Signature
from blendkit.terminal_text import count_of
from blendkit.version import VERSION

WAYS = ("auto", "json", "text", "likelihood")
ALTERNATIVES = 20
TOKENS = 256
Asked = tuple[Prompt, Criterion]


class RubricJudge(Scorer):
    """The mean of an answer's grades, each from 0, the worst, to 1. One call a criterion and answer.

    A reply gives a short reason and a grade, as structured output where the server has it; by `likelihood`, of local models and where
    asked for, the grade is the expected value by the probabilities of the grades' words, and has no reason.
    """

    about = "an LLM's mean grade by the criteria of --rubric: judge:openai:MODEL or a local causal model"
    paper, bounds = "Zheng et al. 2023, Liu et al. 2023", "0 to 1"
    needs_reference, needs_source = False, True
    default_model = ""
    empty = "the judge's"

    def __init__(
        self, name: str, model: str, rubric: str = DEFAULT, verdict_by: str = "auto", endpoint: EndpointOptions | None = None, device: str = "auto",
        dtype: str = "auto",
    ) -> None:  # fmt: skip
        from blendkit.generators.factory import check_models, chosen, for_run, text_model, windows_at_once

        super().__init__(name)
        if verdict_by not in WAYS:
            raise UsageError(f"--verdict-by {verdict_by}: expected one of {', '.join(WAYS)}")
        self.rubric, self.criteria = load_rubric(rubric)
        endpoint = endpoint or EndpointOptions()
        if endpoint.offline:
            raise UsageError(f"--metric judge:{model}: score asks the server itself, without a batch file")
        check_models([model], endpoint)
        one = chosen(model, endpoint if endpoint.purse else for_run(endpoint, [model]))
        self.model: TextModel = text_model(one.spec, one.endpoint, device, dtype)
        self.spec = one.spec
        self.overlap = windows_at_once([self.model], endpoint)
        can = hasattr(self.model, "likelihoods") and not getattr(self.model, "seq2seq", False) if self.model.local else True
        if verdict_by == "likelihood" and not can:
            raise UsageError(f"--verdict-by likelihood: {one.spec} only writes text")
        self.way = verdict_by if verdict_by != "auto" else "likelihood" if self.model.local and can else "text" if self.model.local else "json"
        if self.model.local and self.way == "json":
            raise UsageError("--verdict-by json is for endpoints; a local model's grade is read by likelihood or text")
        self.sampling = one.sampling(Sampling(max_new_tokens=TOKENS, temperature=0))
        self.asked = self.missed = 0
        self._counting = threading.Lock()
        self.job = Job(f"judge:{one.spec}", self._grades, self.model.budgeted, self.model.close)

    def rounds(self, items: list[Item]) -> Scores:
        """One work a candidate and criterion; a candidate has no score (NaN) where a grade could not be read."""
        works = []
        for item in items:
            for criterion in self.criteria:
                content = criterion.asked(item.source, item.candidate, self.way == "likelihood")
                prompt = Prompt([{"role": "user", "content": content}], quoted=(item.source, item.candidate))
                works.append(Work(self.job, content, self.model.length(prompt), (prompt, criterion)))
        grades: list[Grade] = yield works
        with self._counting:
            self.asked += len(grades)
            self.missed += sum(math.isnan(grade.value) for grade in grades)
        count = len(self.criteria)
        return [self._graded(grades[start : start + count]) for start in range(0, len(grades), count)]

    def _graded(self, grades: list[Grade]) -> Graded:
        shares = [criterion.share(grade.value) for criterion, grade in zip(self.criteria, grades, strict=True)]
        rows = {criterion.name: grade.row() for criterion, grade in zip(self.criteria, grades, strict=True)}
        return Graded(sum(shares) / len(shares), rows, [grade.reason for grade in grades if math.isnan(grade.value)])

    def _grades(self, payloads: list[Asked]) -> list[Any]:
        """A grade, or the fault, of each."""
        if self.way != "likelihood":
            return self._by_text(payloads)
        if not self.model.local:
            return self._served_likelihoods(payloads)
        found: list[Any] = [None] * len(payloads)
        for places in _by_scale(payloads):
            criterion = payloads[places[0]][1]
            rows = self.model.likelihoods([payloads[place][0] for place in places], list(criterion.values))  # type: ignore[attr-defined]
            for place, logs in zip(places, rows, strict=True):
                found[place] = logs if isinstance(logs, Exception) else _expected(criterion, dict(zip(criterion.values, logs, strict=True)))
        return found

    def _by_text(self, payloads: list[Asked]) -> list[Any]:
        replies = self._complete(payloads)
        again = [place for place, reply in enumerate(replies) if isinstance(reply, Completion) and payloads[place][1].read(reply.text) is None]
        if again:
            seconds: list[Asked] = []
            for place in again:
                prompt, criterion = payloads[place]
                first = f"{prompt.messages[0]['content']}\n\nYour reply before was not taken. {criterion.again()}"
                seconds.append((replace(prompt, messages=[{"role": "user", "content": first}]), criterion))
            for place, reply in zip(again, self._complete(seconds), strict=True):
                replies[place] = reply
        return [
            (criterion.read(reply.text) or Grade(math.nan, why_unread(reply, TOKENS))) if isinstance(reply, Completion) else reply
            for reply, (_, criterion) in zip(replies, payloads, strict=True)
        ]

    def _complete(self, payloads: list[Asked]) -> list[Completion | Exception]:
        """The replies, in order; a schema is a setting of a call, so that with one each scale is asked for by itself."""
        if self.way != "json":
            return self.model.complete([prompt for prompt, _ in payloads], self.sampling)
        found: list[Any] = [None] * len(payloads)
        for places in _by_scale(payloads):
            sampling = replace(self.sampling, schema=payloads[places[0]][1].schema())
            for place, reply in zip(places, self.model.complete([payloads[place][0] for place in places], sampling), strict=True):
                found[place] = reply
        return found

    def _served_likelihoods(self, payloads: list[Asked]) -> list[Any]:
        # A few tokens, because some models begin with a line break.
        replies = self.model.complete([prompt for prompt, _ in payloads], replace(self.sampling, max_new_tokens=4, alternatives=ALTERNATIVES))
        found: list[Any] = []
        for reply, (_, criterion) in zip(replies, payloads, strict=True):
            if not isinstance(reply, Completion):
                found.append(reply)
            elif not reply.alternatives:
                found.append(RecordError("", f"{self.spec} gives no log-probabilities, which --verdict-by likelihood needs; --verdict-by text does without"))
            else:
                masses: dict[str, float] = {}
                for token, logprob in reply.alternatives.items():
                    if (word := token.strip().lower()) in criterion.values:
                        masses[word] = masses.get(word, 0.0) + math.exp(logprob)
                # Servers say -9999 of what is out of the question, which is a mass of 0.
                logs = {word: math.log(mass) for word, mass in masses.items() if mass}
                found.append(_expected(criterion, logs) if logs else Grade(math.nan, why_unread(reply)))
        return found

    @cached_property
    def signature(self) -> str:
        digest = hashlib.blake2b(msgspec.json.encode([msgspec.structs.asdict(one) for one in self.criteria]), digest_size=3).hexdigest()
        model = "@".join([self.spec, *self.models.values()])
        return str(Signature("judge", model=model, rubric=f"{self.rubric}@{digest}", by=self.way, v=VERSION))

    @property
    def models(self) -> dict[str, str]:
        return {self.spec: fingerprint(self.spec)} if self.model.local else {}

    def describe(self) -> dict[str, Any]:
        return {**self.model.describe(), "rubric": self.rubric, "verdict_by": self.way, "grades": self.asked, "unread": self.missed}

    def warnings(self) -> list[str]:
        found = []
        if self.missed:
            replies = count_of(self.asked, "reply", "replies")
            twice = "" if self.way == "likelihood" else ", asked twice"
            found.append(f"{self.missed:,} of {replies} had no grade{twice}; those candidates have no score (null)")
        return [f"{self.name}: {line}" for line in [*found, *self.model.warnings()]]


def _by_scale(payloads: list[Asked]) -> list[list[int]]:
    """Places of the payloads whose grades are the same words."""
    places: dict[str, list[int]] = {}
    for place, (_, criterion) in enumerate(payloads):
        places.setdefault(criterion.scale, []).append(place)
    return list(places.values())


def _expected(criterion: Criterion, logs: dict[str, float]) -> Grade:
    """The expected value of the grade, by the log-probabilities of its words."""
    top = max(logs.values())
    weights = {word: math.exp(log - top) for word, log in logs.items()}
    return Grade(sum(weight * criterion.values[word] for word, weight in weights.items()) / sum(weights.values()))
