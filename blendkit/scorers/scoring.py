"""`score`: any number of metrics over every candidate, in one pass over the stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from blendkit.errors import RecordError
from blendkit.generators.options import EndpointOptions
from blendkit.generators.unparsed import Unparsed
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Rounds, together
from blendkit.records import Record, candidates_of, reference_of, source_text
from blendkit.scorers import SCORERS, make_scorer, parsed_spec, scorer_options
from blendkit.scorers.base import Graded, Item, Scorer, items_of
from blendkit.specs import named_twice


class Scoring(Stage):
    """Writes `candidates[].scores[metric]` and `signatures`; scores that are there already are replaced.

    `metrics` are `[NAME=]METRIC[:MODEL]`, or `[NAME=]METRIC[:TOKENIZER]`. Works that two metrics share (the encodings of BERTScore's precision and
    recall) are done once.
    """

    name = "score"
    # Encoded texts of a window are kept until its pairs are matched.
    window = 16

    def __init__(
        self, metrics: Sequence[str], device: str = "auto", dtype: str = "auto", seed: int = 0, *, bertscore_layer: int | None = None,
        bertscore_idf: str | None = None, bertscore_baseline: str | None = None, tokenize: str | None = None, rubric: str | None = None,
        verdict_by: str | None = None, max_unparsed: float = 0.2, endpoint: EndpointOptions | None = None,
    ) -> None:  # fmt: skip
        """Each option goes to the metrics that have it. More than `max_unparsed` (0 to 1) of a judge's grades that cannot be read are the run's fault.

        Raises:
            UsageError: there is no such metric, two have one name, no metric has an option, a tokenizer lacks a package, or `max_unparsed` is no share.
            NoInputError: there is no such model, or a tokenizer lacks a file.
        """
        from blendkit.generators.factory import for_run
        from blendkit.models.loading import batch_budget, choose_device

        options: dict[str, Any] = {
            "bertscore_layer": bertscore_layer,
            "bertscore_idf": bertscore_idf,
            "bertscore_baseline": bertscore_baseline,
            "tokenize": tokenize,
            "rubric": rubric,
            "verdict_by": verdict_by,
        }
        takes = {metric: scorer_options(metric) for metric in dict.fromkeys(metrics)}
        asked = endpoint.of_use if endpoint else None
        SCORERS.check_options({**options, "endpoint": asked}, {parsed_spec(metric)[1]: has for metric, has in takes.items()}, {"endpoint": asked})
        judges = [parsed_spec(metric)[2] for metric, has in takes.items() if "endpoint" in has]
        # All judges spend from one purse.
        options["endpoint"] = for_run(endpoint, judges) if endpoint and judges else None
        self.scorers: dict[str, Scorer] = {}
        for metric in metrics:
            has = takes[metric]
            scorer = make_scorer(metric, device=device, dtype=dtype, seed=seed, **{option: value for option, value in options.items() if option in has})
            if scorer.name in self.scorers:
                raise named_twice(scorer.name, metric, "--metric")
            self.scorers[scorer.name] = scorer
        self.unparsed = Unparsed(max_unparsed, "grade")
        self.overlap = min((scorer.overlap for scorer in self.scorers.values()), default=1)
        self.settings = {"device": device, "dtype": dtype}
        # All that records got, in the order in which they came.
        self.signatures = dict.fromkeys(scorer.signature for scorer in self.scorers.values())
        if any(scorer.models for scorer in self.scorers.values()):
            chosen = choose_device(device)
            self.batch_tokens = batch_budget(chosen)
            if chosen.type != "cpu" and all(scorer.plans_ahead for scorer in self.scorers.values()):
                self.ahead = 64

    def rounds(self, record: Record) -> Rounds[None]:
        """All scorers' rounds side by side; then the scores are added.

        Raises:
            RecordError: the record lacks what a metric needs, or a score is no number.
        """
        items = self._items(record)
        found = yield from together([scorer.rounds(items) for scorer in self.scorers.values()])
        for scorer, scores in zip(self.scorers.values(), found, strict=True):
            for index, (candidate, value) in enumerate(zip(record["candidates"], scores, strict=True)):
                if isinstance(value, Graded):
                    candidate.setdefault("rubrics", {})[scorer.name] = value.parts
                    self.unparsed.add(scorer.name, len(value.parts), value.unread)
                    if math.isnan(value):
                        candidate.setdefault("scores", {})[scorer.name] = None
                        continue
                elif scorer.name in (grades := candidate.get("rubrics", {})):
                    # Those of the score that this one replaces.
                    del grades[scorer.name]
                    if not grades:
                        del candidate["rubrics"]
                if not math.isfinite(value):
                    raise RecordError(f"candidates[{index}].scores.{scorer.name}", f"the metric gave {value}: the checkpoint is broken, or --dtype too narrow")
                candidate.setdefault("scores", {})[scorer.name] = round(value, 6)
            signature = scorer.signature_of(items)
            self.signatures[signature] = None
            record.setdefault("signatures", {})[f"score:{scorer.name}"] = signature

    def _items(self, record: Record) -> list[Item]:
        candidates = candidates_of(record)
        wanting = next((name for name, scorer in self.scorers.items() if scorer.needs_reference), None)
        reference = reference_of(record, f"--metric {wanting}") if wanting else ""
        needs_source = any(scorer.needs_source for scorer in self.scorers.values())
        source = source_text(record) if needs_source else ""
        return items_of(record, [candidate["text"] for candidate in candidates], source, reference)

    def account(self) -> Unparsed:
        """How many grades could not be read."""
        return self.unparsed

    def describe(self) -> dict[str, Any]:
        """The scorers' signatures and models, what was cut to a model's length, and what was hardly read."""
        models: dict[str, str] = {}
        for scorer in self.scorers.values():
            models |= scorer.models
        truncation = {name: asdict(scorer.cuts) for name, scorer in self.scorers.items() if scorer.cuts.inputs}
        dtypes = {name: str(dtype) for name, scorer in self.scorers.items() if (dtype := getattr(scorer, "dtype", None))}
        more = {name: described for name, scorer in self.scorers.items() if (described := scorer.describe())}
        unread = {name: asdict(scorer.unread) for name, scorer in self.scorers.items() if scorer.unread.unread}
        return {
            "signatures": list(self.signatures),
            "models": models,
            **(self.settings if models else {}),
            **({"dtypes": dtypes} if dtypes else {}),
            **({"scorers": more} if more else {}),
            **({"truncation": truncation} if truncation else {}),
            **({"unread": unread} if unread else {}),
        }

    def warnings(self) -> list[str]:
        """What the scorers tell, such as what was cut; what several say alike is told once."""
        names: dict[str, list[str]] = {}
        for name, scorer in self.scorers.items():
            for line in scorer.warnings():
                told = line.removeprefix(f"{name}: ")
                names.setdefault(told, []).extend([name] if told != line else [])
        return [f"{', '.join(each)}: {line}" if each else line for line, each in names.items()]
