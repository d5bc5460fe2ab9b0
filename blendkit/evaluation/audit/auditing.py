"""Judges held against people's labels: agreement, places, ties, what sways them beside quality, and whether their probabilities are true.

Accuracy with ties and without is that of Zheng et al. 2023 ("Judging LLM-as-a-Judge", setups S1 and S2), kappa Cohen's (1960).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blendkit.aggregate import Settled, in_order, settled
from blendkit.errors import DataError
from blendkit.evaluation.audit.calibration import calibration
from blendkit.evaluation.audit.labels import JUDGE, SIGNS, Pair, labels_of
from blendkit.evaluation.audit.logistic import logistic
from blendkit.evaluation.audit.resampling import by_record, intervals_of
from blendkit.evaluation.audit.style import STYLE, style_of
from blendkit.evaluation.examples import rounded
from blendkit.evaluation.judges import MOST_JUDGES
from blendkit.evaluation.pairwise import LENGTH
from blendkit.evaluation.tables import AUDITED, NOBODY, Rows
from blendkit.families import Families
from blendkit.judges.position import PositionBias, as_shown
from blendkit.records import Record

Values = NDArray[np.float64]
FIRST, COIN = "first candidate", "coin"
# What may sway a judge, as the regression has it, behind the label itself.
EFFECTS = ("label", "first place", *STYLE, "own family")
WORDS = ("A", "tie", "B")


@dataclass
class _Audited:
    """Numbers of one judge: of each labelled pair (record, label, verdict, probability or NaN), and of each labelled verdict a row for the regression."""

    records: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("b"))
    signs: array[int] = field(default_factory=lambda: array("b"))
    probabilities: array[float] = field(default_factory=lambda: array("d"))
    verdict_records: array[int] = field(default_factory=lambda: array("q"))
    verdict_signs: array[int] = field(default_factory=lambda: array("b"))
    # [verdicts × len(EFFECTS)], a's less b's.
    features: array[float] = field(default_factory=lambda: array("f"))
    bias: PositionBias = field(default_factory=PositionBias)

    def add(self, record: int, label: int, sign: int, probability: float | None = None) -> None:
        self.records.append(record)
        self.labels.append(label)
        self.signs.append(sign)
        self.probabilities.append(math.nan if probability is None else probability)


class JudgeAudit:
    """Takes records with verdicts and labels; keeps numbers of them alone. Pairs without a label, and verdicts that cannot be read, count for nothing."""

    def __init__(self, labels: str = "human", families: Mapping[str, str] | None = None, seed: int = 0) -> None:
        """`labels` is a record's field or `judge:NAME` (see `labels_of`); `families` maps names or their beginnings to families (see `Families`)."""
        self.labels, self.seed = labels, seed
        # Records with labels and without; and those whose pairs were drawn unevenly.
        self.labelled = self.unlabelled = self.uneven = 0
        self._families = Families(families)
        self._judges: dict[str, _Audited] = {}
        self._nobody = {LENGTH: _Audited(), FIRST: _Audited()}
        self._count = 0

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`.

        Raises:
            RecordError: the labels are none.
            DataError: there are too many judges.
        """
        number, self._count = self._count, self._count + 1
        labels = labels_of(record, self.labels, verdicts)
        if not labels:
            self.unlabelled += 1
            return
        self.labelled += 1
        self.uneven += any(weight != 1 for _, weight in labels.values())
        candidates = record["candidates"]
        styles: dict[int, tuple[int, int, int, int]] = {}
        looks: dict[Pair, list[float]] = {}
        for (a, b), (label, _) in labels.items():
            for index in (a, b):
                if index not in styles:
                    styles[index] = style_of(candidates[index]["text"])
            (length_a, *rest_a), (length_b, *rest_b) = styles[a], styles[b]
            markup = [math.log2((1 + one) / (1 + other)) for one, other in zip(rest_a, rest_b, strict=True)]
            looks[a, b] = [math.log2(length_a / length_b), *markup]
            self._nobody[LENGTH].add(number, label, (length_a > length_b) - (length_a < length_b))
            self._nobody[FIRST].add(number, label, 1)
        for name, rows in verdicts.items():
            if name != self.labels.removeprefix(JUDGE) or not self.labels.startswith(JUDGE):
                self._add(name, rows, number, {pair: label for pair, (label, _) in labels.items()}, looks, candidates)

    def _add(
        self, name: str, rows: Rows, number: int, labels: dict[Pair, int], looks: dict[Pair, list[float]], candidates: list[dict[str, Any]]
    ) -> None:  # fmt: skip
        rows = [in_order(row) for row in rows]
        found: dict[Pair, Settled] = settled(row for row in rows if (row["a"], row["b"]) in labels)
        if not found:
            return
        judge = self._judges.get(name)
        if judge is None:
            judge = self._judges[name] = _Audited()
            if len(self._judges) > MOST_JUDGES:
                raise DataError(f"more than {MOST_JUDGES:,} judges, with {name!r}: do records bring names of their own?")
        judge.bias.add(as_shown(row) for row in rows if row.get("shown"))
        tied = {(row["a"], row["b"]) for row in rows if row["verdict"].startswith("tie")}
        for pair, verdict in found.items():
            if verdict.verdict != "unparsed":
                # Where both orders disagree and none of them is a tie, the judge is for the one that is more likely by both, where it says so.
                sign = verdict.sign or (0 if pair in tied else (verdict.margin > 0) - (verdict.margin < 0))
                judge.add(number, labels[pair], sign, verdict.probability)
        own = self._families.of(name)
        for row in rows:
            pair = a, b = row["a"], row["b"]
            if pair in labels and row["verdict"] != "unparsed":
                place = 0.0 if not row.get("shown") else 0.5 if row["shown"][0] == a else -0.5
                family = (self._families.of(candidates[a]["model"]) == own) - (self._families.of(candidates[b]["model"]) == own)
                judge.verdict_records.append(number)
                judge.verdict_signs.append(SIGNS[row["verdict"]])
                judge.features.extend((labels[pair] / 2, place, *looks[pair], family))

    def rows(self) -> Rows:
        """The tables `audit` (a row a judge, and three of nobody's choice, as `kind` says), `confusion`, `effects` and `reliability`.

        `audit`, in %: `accuracy` of three classes, where a pair whose orders disagree is a tie unless probabilities decide it, and
        `accuracy_decided` of pairs that neither calls a tie; `kappa`; `ties`, on how many verdicts the judge says tie, and `label_ties`,
        on how many pairs the labels do; `first_place`: by how many points an answer is preferred more often for being shown first,
        the label held fixed; `consistency`: on how many pairs both orders agree; `brier`, `ece`.
        `effects`: by how much the odds of a verdict for an answer grow where it, and not the other, is shown first or of the judge's own
        family, or where its length, or its headers, list items or bold passages and one, are twice the other's; all at once, the label
        held fixed. Odds that the verdicts do not determine are None.
        Intervals of 95 % are bootstrapped over records, and those of odds ratios hold for verdicts of a record that hang together.
        """
        audit, confusion, effects, reliability = ([] for _ in range(4))  # type: tuple[Rows, Rows, Rows, Rows]
        for name, judge in self._judges.items():
            if not judge.records:
                continue
            row, counts = self._agreement(name, judge)
            self._add_ties(row, judge)
            features = np.array(judge.features, np.float64).reshape(-1, len(EFFECTS))
            self._add_places(row, judge, features)
            records, labels, probabilities = (np.array(column) for column in (judge.records, judge.labels, judge.probabilities))
            there = ~np.isnan(probabilities)
            row["brier"] = row["ece"] = None
            if there.any():
                errors, bins = calibration(records[there], probabilities[there], (labels[there] + 1) / 2, self.seed)
                row["intervals"] |= errors.pop("intervals")
                row |= errors
                reliability += [{"table": "reliability", "method": name, **found} for found in bins]
            audit.append(row)
            confusion += _confusion(name, counts)
            effects += self._effects(name, judge, features)
        audit.sort(key=lambda row: -row["accuracy"])
        if self.labelled:
            audit += [self._agreement(name, nobody, NOBODY)[0] for name, nobody in self._nobody.items()] + [self._coin()]
        return [*audit, *confusion, *effects, *reliability]

    def _agreement(self, name: str, judge: _Audited, kind: str = AUDITED) -> tuple[dict[str, Any], Values]:
        labels, signs = np.array(judge.labels, np.int64), np.array(judge.signs, np.int64)
        cells = np.zeros((len(labels), 9))
        cells[np.arange(len(labels)), 3 * (1 - labels) + 1 - signs] = 1.0
        return self._row(name, np.array(judge.records), cells, kind)

    def _coin(self) -> dict[str, Any]:
        """A coin thrown for every pair, in expectation."""
        longest = self._nobody[LENGTH]
        labels = np.array(longest.labels, np.int64)
        cells = np.zeros((len(labels), 9))
        rows = np.arange(len(labels))
        cells[rows, 3 * (1 - labels)] = cells[rows, 3 * (1 - labels) + 2] = 0.5
        return self._row(COIN, np.array(longest.records), cells, NOBODY)[0]

    def _row(self, name: str, records: NDArray[np.int64], cells: Values, kind: str) -> tuple[dict[str, Any], Values]:
        sums = by_record(records, cells)
        counts = sums.sum(axis=0)
        row: dict[str, Any] = {"table": "audit", "method": name, "kind": kind, "pairs": len(records)}
        row |= {key: rounded(float(value)) for key, value in agreement_of(counts).items()}
        bounds = intervals_of(sums, agreement_of, self.seed)
        return {**row, "intervals": _rounded(bounds)}, counts

    def _add_ties(self, row: dict[str, Any], judge: _Audited) -> None:
        cells = np.ones((len(judge.verdict_signs), 2))
        cells[:, 0] = np.array(judge.verdict_signs) == 0
        sums = by_record(np.array(judge.verdict_records), cells)
        row["ties"] = rounded(float(_ties(sums.sum(axis=0))["ties"]))
        row["intervals"] |= _rounded(intervals_of(sums, _ties, self.seed))

    def _add_places(self, row: dict[str, Any], judge: _Audited, features: Values) -> None:
        signs = np.array(judge.verdict_signs, np.int64)
        places = np.sign(features[:, 1]).astype(np.int64)
        there = places != 0
        row["first_place"] = row["consistency"] = None
        if there.any():
            labels = np.sign(features[there, 0]).astype(np.int64) * places[there]
            cells = np.zeros((len(labels), 6))
            rows = np.arange(len(labels))
            cells[rows, 2 * (labels + 1)], cells[rows, 2 * (labels + 1) + 1] = 1.0, signs[there] * places[there]
            sums = by_record(np.array(judge.verdict_records)[there], cells)
            row["first_place"] = rounded(float(_first_place(sums.sum(axis=0))["first_place"]))
            row["intervals"] |= _rounded(intervals_of(sums, _first_place, self.seed))
        if judge.bias.agreement is not None and (bounds := judge.bias.interval()) is not None:
            row["consistency"] = rounded(100 * judge.bias.agreement)
            row["intervals"]["consistency"] = [rounded(100 * bound) for bound in bounds]

    @staticmethod
    def _effects(name: str, judge: _Audited, features: Values) -> Rows:
        signs = np.array(judge.verdict_signs, np.float64)
        fit = logistic(features, (signs + 1) / 2, np.array(judge.verdict_records))
        rows: Rows = []
        for place, effect in enumerate(EFFECTS):
            row: dict[str, Any] = {"table": "effects", "method": name, "effect": effect, "verdicts": len(signs), "odds_ratio": None, "intervals": {}}
            if fit.determined[place]:
                row["odds_ratio"] = rounded(math.exp(fit.coefficients[place]))
                row["intervals"] = {"odds_ratio": [rounded(math.exp(bound)) for bound in fit.interval(place)]}
            rows.append(row)
        return rows


def agreement_of(counts: Values) -> dict[str, Values]:
    """Figures of confusion counts [..., 9], label by verdict, each of A, tie and B: all in % but Cohen's kappa; NaN where there is nothing to count."""
    table = counts.reshape(*counts.shape[:-1], 3, 3)
    pairs, right = table.sum(axis=(-1, -2)), np.trace(table, axis1=-2, axis2=-1)
    by_label, by_verdict = table.sum(axis=-1), table.sum(axis=-2)
    decided = table[..., ::2, ::2].sum(axis=(-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = (by_label * by_verdict).sum(axis=-1) / pairs**2
        return {
            "accuracy": 100 * right / pairs,
            "accuracy_decided": 100 * (table[..., 0, 0] + table[..., 2, 2]) / decided,
            "kappa": np.where(chance < 1 - 1e-12, (right / pairs - chance) / (1 - chance), np.nan),
            "label_ties": 100 * by_label[..., 1] / pairs,
        }


def _ties(sums: Values) -> dict[str, Values]:
    return {"ties": 100 * sums[..., 0] / sums[..., 1]}


def _first_place(sums: Values) -> dict[str, Values]:
    """By how many points the first place is preferred, from [..., 6]: for labels for the second, a tie and the first, their number and net verdicts for it.

    Verdicts with the label for either place count alike, so that the label is held fixed.
    """
    counts, net = sums[..., ::2], sums[..., 1::2]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = net / counts
        decided, tied = (mean[..., 0] + mean[..., 2]) / 2, mean[..., 1]
        many, few = counts[..., 0] + counts[..., 2], counts[..., 1]
        # Where the labels have no ties, or nothing but ties, the other kind alone counts.
        share = np.where(few == 0, decided, np.where(many == 0, tied, (many * decided + few * tied) / (many + few)))
    return {"first_place": 100 * share}


def _confusion(name: str, counts: Values) -> Rows:
    table = counts.reshape(3, 3)
    return [
        {"table": "confusion", "method": name, "label": label, **{word: int(count) for word, count in zip(WORDS, row, strict=True)}}
        for label, row in zip(WORDS, table, strict=True)
    ]


def _rounded(bounds: dict[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    return {name: [rounded(low), rounded(high)] for name, (low, high) in bounds.items()}
