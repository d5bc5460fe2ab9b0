"""`pair`: PairRanker over the pairs of a record's candidates that a schedule asks for (LLM-Blender, section 3.2)."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from blendkit.errors import RecordError, UsageError
from blendkit.models.cuts import check_on_truncate
from blendkit.models.expert import Gate, expert_alone, without_expert
from blendkit.models.fast.proof import wanted
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.loading import EMBEDDED, batch_budget, choose_device, fingerprint, is_lm_ranker
from blendkit.models.number_type import encoder_dtype, quicker_dtype
from blendkit.models.pair_inputs import Cut, PairInputs
from blendkit.models.pairrm import PairRM, load_pairrm
from blendkit.models.pretrained import pretrained
from blendkit.models.unread import UNKNOWN, Unread
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Rounds, Work, together
from blendkit.rankers.conversations import pair_texts
from blendkit.rankers.prefilter import Prefilter
from blendkit.rankers.schedules import make_schedule
from blendkit.records import Record, candidates_of, generated_only
from blendkit.seeding import seeded
from blendkit.signature import Signature
from blendkit.specs import one_name, split_name
from blendkit.terminal_text import count_of
from blendkit.version import VERSION

if TYPE_CHECKING:
    from blendkit.models.lm_ranker import LMInputs, RewardReader

Ids = tuple[int, ...]


@dataclass
class Truncation:
    """Counts of over-long texts and of the tokens that were cut off."""

    sources: int = 0
    sources_cut: int = 0
    source_tokens_cut: int = 0
    candidates: int = 0
    candidates_cut: int = 0
    candidate_tokens_cut: int = 0

    def message(self) -> list[str]:
        """One line for a person, or none when nothing was cut."""
        parts = []
        for what, cut, whole, tokens in (
            ("x", self.sources_cut, self.sources, self.source_tokens_cut),
            ("candidates", self.candidates_cut, self.candidates, self.candidate_tokens_cut),
        ):
            if cut:
                parts.append(f"{cut:,} of {whole:,} {what} ({count_of(tokens, 'token')})")
        return [f"cut to the model's length: {', '.join(parts)}; --on-truncate fail stops instead"] if parts else []


@dataclass
class Routed:
    """Records that a gate saw, those that it gave to the expert alone, and those that both read."""

    records: int = 0
    expert: int = 0
    both: int = 0


@dataclass(frozen=True)
class _Reader:
    """A network that compares, and the jobs that ask it; `reading` where it reads candidates one by one."""

    scorer: PairScorer | RewardReader
    job: Job
    reading: Job | None


class PairRanker(Stage):
    """Writes `comparisons[name]`: logits of pairs of the candidates that LLMs wrote.

    A fused candidate is left out: it is made of the others and does not compete with them. Equal texts are
    compared once, in a record and across those of a window.
    """

    name = "pair"
    window = 8

    def __init__(
        self,
        model: str = EMBEDDED,
        name: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        schedule: str = "full",
        prefilter: str | None = None,
        on_truncate: str = "warn",
        seed: int = 0,
        packed: bool = True,
    ) -> None:
        """`packed=False` runs the encoder as transformers does, for comparison in tests and benchmarks.

        Raises:
            UsageError: a flag has a value that it does not take.
            NoInputError: there is no such model.
        """
        check_on_truncate(on_truncate)
        own, model = split_name(model, "--model")
        name = one_name(own, name, "--model") or "pairrm"
        self.schedule_name, self.schedule, self.seed = schedule, make_schedule(schedule), seed
        self.on_truncate, self.truncation, self.unread = on_truncate, Truncation(), Unread()
        self.device = choose_device(device)
        self.prefilter = Prefilter(prefilter, str(self.device), dtype, seed) if prefilter else None
        self.model_name, self.comparisons_name = model, name
        self.batch_tokens = batch_budget(self.device)
        self.hints: list[str] = []
        self.packed = packed
        self.models = {model: fingerprint(model)}
        self.inputs: PairInputs | LMInputs
        self.expert: _Reader | None = None
        self.gate: Gate | None = None
        if is_lm_ranker(model):
            self.inputs, self.common = self._lm_reader(dtype)
        else:
            self.inputs, self.common, self.expert, self.gate = self._pairrm_readers(dtype)
        self.gating = Job(f"pairrm:{model}, gate", self.gate) if self.gate else None
        self.routed = Routed()
        late = self.common.reading is not None
        if self.device.type != "cpu":
            # A schedule of many small rounds needs many records in flight to fill a batch; engines hand windows out by this number.
            self.window = 32 if late else 8 if schedule in ("full", "single") else 256
            if self.prefilter is None or self.prefilter.plans_ahead:
                self.ahead = 32 if late else 256
        number_type = str(self.dtype).removeprefix("torch.")
        how = {"sched": schedule, "prefilter": prefilter or None, "dtype": number_type}
        known = "+".join(f"{name}@{content}" for name, content in self.models.items())
        self.signature = str(Signature("pairrm", model=known, **how, v=VERSION))

    def _pairrm_readers(self, dtype: str) -> tuple[PairInputs, _Reader, _Reader | None, Gate | None]:
        """A PairRanker, and its expert and gate where it has them."""
        model, packed = self.model_name, self.packed
        network, tokenizer = load_pairrm(model, packed_only=packed and not wanted(self.device))
        # With two paired layers most of the time goes into what is computed once a pair, which products of the model's shape say nothing of.
        measured = packed and (network.config.paired_layers or 0) < 2
        self.dtype = encoder_dtype(dtype, self.device, network.pretrained_model.config, self.hints, measured)
        inputs = PairInputs(tokenizer, network.config)

        def reader(network: PairRM, name: str) -> _Reader:
            return self._reader(PairScorer(network, inputs, self.device, self.dtype, packed), name)

        common = reader(without_expert(network), f"pairrm:{model}")
        if not network.expert:
            return inputs, common, None, None
        return inputs, common, reader(expert_alone(network), f"pairrm:{model}, expert"), Gate(network, tokenizer.pad_token_id, self.device, packed)

    def _lm_reader(self, dtype: str) -> tuple[LMInputs, _Reader]:
        """A ranker on a causal LM, which reads each candidate once, whatever the schedule; `packed` does not concern it."""
        from transformers import AutoConfig

        from blendkit.models.lm_ranker import LMInputs, RewardReader, lm_ranker_config, load_lm_ranker

        lm = lm_ranker_config(self.model_name).model_name
        if dtype == "int8":
            raise UsageError(f"--dtype int8: {self.model_name} stands on a causal LM, which does not run in it; expected auto, float32, bfloat16 or float16")
        self.dtype = quicker_dtype(dtype, self.device, pretrained(AutoConfig, lm, "causal LM"), self.hints)
        network, tokenizer = load_lm_ranker(self.model_name, self.dtype)
        self.models[lm] = network.config.lm
        return LMInputs(tokenizer, network.config), self._reader(RewardReader(network, self.device), f"pairrm:{self.model_name}")

    def rounds(self, record: Record) -> Rounds[None]:
        """The schedule's rounds; ends by adding the comparisons.

        Raises:
            RecordError: the record lacks what is compared, a text is too long under `--on-truncate fail`, or a
                logit is no number (a broken checkpoint).
        """
        candidates = candidates_of(record)
        chosen = generated_only(candidates)
        if self.prefilter:
            chosen = yield from self.prefilter.keep(record, chosen)
        source, ids = self._tokenized(record, chosen)
        readers = [(self.common, 1.0)] if len(ids) < 2 else (yield from self._shares(source, ids))
        read = yield from together([self._read(reader, source, ids) for reader, _ in readers])
        schedule = self.schedule(len(chosen), random.Random(seeded(self.seed, "schedule", record["id"])))
        rows: list[list[Any]] = []
        order: list[int] | None = None
        logits: list[float] | None = None
        while True:
            try:
                pairs = next(schedule) if logits is None else schedule.send(logits)
            except StopIteration as done:
                order = done.value
                break
            parts = yield from together([self._compared(reader, source, ids, pairs, own) for (reader, _), own in zip(readers, read, strict=True)])
            logits = [sum(share * logit for (_, share), logit in zip(readers, own, strict=True)) for own in zip(*parts, strict=True)]
            # The schedule sees the rounded logits, as the record keeps them.
            logits = [self._checked(logit, chosen[i], chosen[j]) for (i, j), logit in zip(pairs, logits, strict=True)]
            rows += [[chosen[i], chosen[j], logit] for (i, j), logit in zip(pairs, logits, strict=True)]
        found: dict[str, Any] = {"pairs": rows, "model": self.model_name, "schedule": self.schedule_name}
        if order is not None:
            found["order"] = [chosen[index] for index in order]
        if self.prefilter:
            found["prefilter"] = self.prefilter.spec
        record.setdefault("comparisons", {})[self.comparisons_name] = found

    def _tokenized(self, record: Record, chosen: list[int]) -> tuple[Ids, list[Ids]]:
        """Ids of x and of the chosen candidates; counts what had to be cut, and what the model does not know."""
        text, texts = pair_texts(record, [record["candidates"][index]["text"] for index in chosen])
        source_cuts: list[Cut] = []
        cuts: list[Cut] = []
        source = self.inputs.source(text, source_cuts)
        ids = self.inputs.candidates(texts, source, cuts)
        if self.on_truncate == "fail" and (source_cuts or cuts):
            self._refuse(source_cuts, cuts, text, texts)
        counted = self.truncation
        counted.sources += 1
        counted.candidates += len(ids)
        counted.sources_cut += len(source_cuts)
        counted.candidates_cut += len(cuts)
        counted.source_tokens_cut += sum(cut.length - cut.budget for cut in source_cuts)
        counted.candidate_tokens_cut += sum(cut.length - cut.budget for cut in cuts)
        self.unread.count([self.inputs.unknown.most(row) for row in (source, *ids)], record["id"])
        return source, ids

    def _refuse(self, source_cuts: list[Cut], cuts: list[Cut], text: str, texts: list[str]) -> None:
        field, cut = ("instruction", source_cuts[0]) if source_cuts else ("candidates", max(cuts, key=lambda cut: cut.length))
        what = "x" if source_cuts else f"{len(cuts)} of {count_of(len(texts), 'text')}; the longest"
        raise RecordError(
            field, f"too long for the model: {what} has {count_of(cut.length, 'token')}, {count_of(cut.budget, 'fits', 'fit')}; --on-truncate warn cuts them"
        )

    def _reader(self, scorer: PairScorer | RewardReader, name: str) -> _Reader:
        # A late-paired ranker reads each candidate once, whatever the schedule asks for. What it has read stays in memory for a window.
        return _Reader(scorer, Job(name, partial(self._logits, scorer)), Job(f"{name}, candidates", scorer.read) if scorer.late else None)

    def _shares(self, source: Ids, ids: list[Ids]) -> Rounds[list[tuple[_Reader, float]]]:
        """Who reads the record, and how much each one's logits count: the ranker alone, or what its gate says."""
        if self.gating is None or self.expert is None:
            return [(self.common, 1.0)]
        # As long as all that the record will be read for, by which windows are filled.
        length = len(source) + sum(map(len, set(ids)))
        (share,) = yield [Work(self.gating, source, length, source, len(source))]
        if not math.isfinite(share):
            raise RecordError("instruction", f"the model's gate gave {share} for it: the checkpoint is broken")
        self.routed.records += 1
        self.routed.expert += share == 1
        self.routed.both += 0 < share < 1
        return [(reader, part) for reader, part in ((self.common, 1 - share), (self.expert, share)) if part]

    def _read(self, reader: _Reader, source: Ids, ids: list[Ids]) -> Rounds[dict[Ids, Any]]:
        """What the model has read of each candidate that is to be compared, where it reads them one by one."""
        job = reader.reading
        if job is None or len(ids) < 2:
            return {}
        texts = list(dict.fromkeys(ids))
        # All as long as the mean: batches are sorted by length, and a record's candidates share the reading of x where they stay together.
        length = len(source) // len(texts) + sum(map(len, texts)) // len(texts)
        return dict(zip(texts, (yield [Work(job, (source, text), length, (source, text)) for text in texts]), strict=True))

    def _compared(self, reader: _Reader, source: Ids, ids: list[Ids], pairs: list[tuple[int, int]], read: dict[Ids, Any]) -> Rounds[list[float]]:
        """Logits of pairs of texts by one network."""
        if not reader.reading:
            return (yield [self._work(reader, source, ids[i], ids[j]) for i, j in pairs])
        # One order of two texts is the other's with its sign changed.
        logits = yield [self._late_work(reader, source, min(ids[i], ids[j]), max(ids[i], ids[j]), read) for i, j in pairs]
        return [logit if ids[i] <= ids[j] else 0.0 - logit for (i, j), logit in zip(pairs, logits, strict=True)]

    def _late_work(self, reader: _Reader, source: Ids, first: Ids, second: Ids, read: dict[Ids, Any]) -> Work:
        return Work(reader.job, (source, first, second), reader.scorer.tokens_of_pair(first, second), (read[first], read[second]))

    def _work(self, reader: _Reader, source: Ids, first: Ids, second: Ids) -> Work:
        return Work(reader.job, (source, first, second), len(source) + len(first) + len(second), (source, first, second))

    def _checked(self, logit: float, i: int, j: int) -> float:
        if not math.isfinite(logit):
            raise RecordError(
                f"comparisons.{self.comparisons_name}",
                f"the model gave {logit} for candidates {i} and {j}: the checkpoint is broken, or --dtype too narrow",
            )
        return round(logit, 6)

    def _logits(self, scorer: PairScorer | RewardReader, payloads: list[Any]) -> list[float]:
        """Logits s_ij of the batch: of (x, candidate, candidate), or of two candidates that were read."""
        if scorer.late:
            return [float(logit) for logit in scorer.compare(payloads)]
        assert isinstance(scorer, PairScorer) and isinstance(self.inputs, PairInputs)
        return [float(logit) for logit in scorer([self.inputs.pair(*ids) for ids in payloads])]

    def describe(self) -> dict[str, Any]:
        """Signature, model, device, number type, what was cut, how many records a gate saw and who read them, and what was hardly read."""
        return {
            "signatures": [self.signature, *([self.prefilter.signature] if self.prefilter else [])],
            "models": self.models,
            "device": str(self.device),
            "dtype": str(self.dtype),
            "truncation": asdict(self.truncation),
            **({"routed": asdict(self.routed)} if self.gate else {}),
            **({"unread": asdict(self.unread)} if self.unread.unread else {}),
        }

    def warnings(self) -> list[str]:
        """A slow number type, what was cut and what was hardly read of the texts that are compared, and the prefilter's own lines."""
        instead = "a ranker of a multilingual backbone can (train ranker --backbone), or a judge (judge -m openai:MODEL)"
        unread = self.unread.message(UNKNOWN.format(self.model_name), instead)
        return [*self.hints, *self.truncation.message(), *unread, *(self.prefilter.warnings() if self.prefilter else [])]
