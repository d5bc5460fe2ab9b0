"""Turns records into training examples: candidates with labels by Q functions or by people, and the pairs to learn from."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from blendkit.errors import RecordError, UsageError
from blendkit.records import Record, generated_only, source_text

Pair = tuple[int, int]
# A person's preference counts as this difference of labels in log-odds, which is to be 88 % sure.
HUMAN = 2.0
VERDICTS = {"A": (HUMAN, 0.0), "B": (0.0, HUMAN), "tie": (0.0, 0.0)}


@dataclass(frozen=True)
class Example:
    """One instruction: x, its candidates' texts, and a label for each candidate and task, higher is better, [N][T].

    `id` is the record's, or x where it has none; it seeds random choices, and two examples may share it. `set` is the part of
    a mixture that it belongs to.
    """

    id: str
    source: str
    candidates: list[str]
    labels: list[list[float]]
    reference: str | None = None
    set: str = ""

    def first(self) -> list[float]:
        """The labels of the first task."""
        return [label[0] for label in self.labels]

    def sampled(self, count: int, rng: random.Random) -> tuple[list[int], Example]:
        """At most `count` of the candidates, in a random order: their places, and the example with these alone."""
        places = rng.sample(range(len(self.candidates)), min(count, len(self.candidates)))
        return places, replace(self, candidates=[self.candidates[place] for place in places], labels=[self.labels[place] for place in places])


@dataclass(frozen=True)
class Labels:
    """Says where labels come from: `candidates[].scores` of `names` (each a task), and people's A, B or tie in the field `human`.

    `log_odds`: the scores are probabilities, and are compared as log-odds. `with_reference` puts the reference into the pool,
    as good as the best candidate and `margin` more. `mix` is the field that names a record's set.
    """

    names: tuple[str, ...]
    human: str | None = None
    log_odds: bool = False
    with_reference: bool = False
    margin: float = 0.0
    mix: str | None = None

    def read(self, records: Iterable[Record]) -> list[Example]:
        """Gives the examples with at least two labelled candidates.

        Records with the same x and the same id, or without an id, are one example, as a data set may lie in several files. A
        record that people judged stays by itself: its labels compare its two candidates with each other and with no others.

        Raises:
            RecordError: a label of the wrong kind.
        """
        found: dict[tuple[str | None, ...], Example] = {}
        for record in records:
            judged = self.human is not None and self.human in record
            example = self._judged(record) if judged else self._scored(record)
            if example is None:
                continue
            key = (record.get("id"), example.source, *(example.candidates if judged else ()))
            found[key] = _joined(found[key], example) if key in found else example
        return [self._with_reference(example) for example in found.values() if len(example.candidates) > 1]

    def _judged(self, record: Record) -> Example:
        name, texts = str(self.human), [candidate["text"] for candidate in _generated(record)]
        verdict = record[name]
        if not isinstance(verdict, str) or verdict not in VERDICTS or len(texts) != 2:
            raise RecordError(name, f"expected A, B or tie, and two candidates, got {verdict!r} and {len(texts)}")
        source = source_text(record)
        labels = [[value] * len(self.names) for value in VERDICTS[verdict]]
        return Example(record.get("id", source), source, texts, labels, record.get("output"), self._set(record))

    def _scored(self, record: Record) -> Example | None:
        rows: dict[str, list[float]] = {}
        for candidate in _generated(record):
            scores = candidate.get("scores", {})
            values = [scores.get(name) for name in self.names]
            if all(value is not None for value in values):
                rows[candidate["text"]] = [log_odds(value) if self.log_odds else float(value) for value in values]
        if not rows:
            return None
        source = source_text(record)
        return Example(record.get("id", source), source, list(rows), list(rows.values()), record.get("output"), self._set(record))

    def _set(self, record: Record) -> str:
        if self.mix is None:
            return ""
        found = record.get(self.mix)
        if not isinstance(found, str):
            raise RecordError(self.mix, f"expected the name of a set, a string, as --mix asks for, got {found!r}")
        return found

    def _with_reference(self, example: Example) -> Example:
        if not self.with_reference or not example.reference or example.reference in example.candidates:
            return example
        best = [max(values) + self.margin + 1e-6 for values in zip(*example.labels, strict=True)]
        return replace(example, candidates=[*example.candidates, example.reference], labels=[*example.labels, best])


def _generated(record: Record) -> list[dict[str, Any]]:
    candidates = record.get("candidates", [])
    return [candidates[place] for place in generated_only(candidates)]


def _joined(old: Example, new: Example) -> Example:
    """Makes one example of two; a text that is in both keeps the labels of the first."""
    known = set(old.candidates)
    added = [place for place, text in enumerate(new.candidates) if text not in known]
    texts = old.candidates + [new.candidates[place] for place in added]
    labels = old.labels + [new.labels[place] for place in added]
    return replace(old, candidates=texts, labels=labels, reference=old.reference or new.reference)


def log_odds(probability: float) -> float:
    """Gives log p/(1-p), with p kept within [1e-6, 1 - 1e-6], as published preferences have six digits."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def all_pair(pairs: list[Pair], labels: list[float], count: int, rng: random.Random) -> list[Pair]:
    """Takes every pair."""
    return pairs


def random_pairs(pairs: list[Pair], labels: list[float], count: int, rng: random.Random) -> list[Pair]:
    """Draws `count` pairs at random."""
    return rng.sample(pairs, min(count, len(pairs)))


def top_bottom(pairs: list[Pair], labels: list[float], count: int, rng: random.Random) -> list[Pair]:
    """Pairs the best with the worst, the second best with the second worst, and so on."""
    order = sorted(range(len(labels)), key=lambda place: -labels[place])
    there = set(pairs)
    return [pair for k in range(min(count, len(order) // 2)) if (pair := (order[k], order[-1 - k])) in there]


def uniform(pairs: list[Pair], labels: list[float], count: int, rng: random.Random) -> list[Pair]:
    """Takes `count` pairs that are evenly spread over the differences in label, from the smallest to the largest."""
    ordered = sorted(pairs, key=lambda pair: labels[pair[0]] - labels[pair[1]])
    if count >= len(ordered):
        return ordered
    return [ordered[round(k * (len(ordered) - 1) / max(1, count - 1))] for k in range(count)]


SUBSAMPLING: dict[str, Callable[[list[Pair], list[float], int, random.Random], list[Pair]]] = {
    "random": random_pairs,
    "all-pair": all_pair,
    "top-bottom": top_bottom,
    "uniform": uniform,
}


@dataclass(frozen=True)
class Pairing:
    """Says which pairs of an example are learnt from: `count` pairs, chosen by `mode` (a name in SUBSAMPLING).

    Labels must be more than `margin` apart; with `ties`, any pair will do.

    `longer` is the share of the pairs, 0 to 1, in which the longer candidate is to be the better one, as far as there are such pairs;
    `longer_in` is the same for the examples of some sets.
    """

    mode: str = "random"
    count: int = 5
    margin: float = 0.0
    ties: bool = False
    longer: float | None = None
    longer_in: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in SUBSAMPLING:
            raise UsageError(f"--subsampling {self.mode}: expected one of {', '.join(SUBSAMPLING)}")
        if self.count < 1:
            raise UsageError(f"--pairs-per-input {self.count}: expected at least 1")

    def of(self, example: Example, rng: random.Random) -> list[Pair]:
        """Gives pairs (better, worse) by the first task; where the two tie, their order means nothing."""
        labels = example.first()
        pairs = [(i, j) if labels[i] >= labels[j] else (j, i) for i, j in combinations(range(len(labels)), 2)]
        if not self.ties:
            pairs = [(i, j) for i, j in pairs if labels[i] - labels[j] > self.margin]
        choose = SUBSAMPLING[self.mode]
        share = self.longer_in.get(example.set, self.longer)
        if share is None:
            return choose(pairs, labels, self.count, rng)
        lengths = [len(text) for text in example.candidates]
        shorter = [pair for pair in pairs if lengths[pair[0]] < lengths[pair[1]]]
        longer = [pair for pair in pairs if lengths[pair[0]] >= lengths[pair[1]]]
        if choose is all_pair:
            return _in_proportion(shorter, longer, share, rng)
        # Rounded, because of numbers such as 5 · (1 - 0.6), which is a little more than 2.
        shorter = choose(shorter, labels, math.ceil(round(self.count * (1 - share), 6)), rng)
        return shorter + choose(longer, labels, self.count - len(shorter), rng)


def _in_proportion(shorter: list[Pair], longer: list[Pair], share: float, rng: random.Random) -> list[Pair]:
    """All pairs, less those of the kind that there are too many of, so that `longer` ones are this share; all where there is one kind only."""
    if not shorter or not longer:
        return shorter + longer
    most_shorter = round(len(longer) * (1 - share) / share) if share else len(shorter)
    most_longer = round(len(shorter) * share / (1 - share)) if share < 1 else len(longer)
    return rng.sample(shorter, min(most_shorter, len(shorter))) + rng.sample(longer, min(most_longer, len(longer)))
