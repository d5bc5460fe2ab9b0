"""Which of a record's candidates is better than which: by people, ranks, verdicts or a score; and the pairs that are taken of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from blendkit.errors import RecordError, UsageError
from blendkit.records import candidates_of, generated_only, verdicts_of
from blendkit.scorers import better_when_lower
from blendkit.seeding import seeded
from blendkit.sources import PAIRS
from blendkit.sources.rows import Fields, Taken
from blendkit.terminal_text import Counted

NET = {"A": 1, "B": -1}


@dataclass(frozen=True)
class PairOptions:
    """How preferences are read: `label` is `human`, `ranks:NAME`, `verdicts:JUDGE` or a score, None whichever of them a record has.

    Of what is so ordered, `pairs` takes the best with the worst, the best with another drawn by the id, or all. A pair
    nearer than `min_margin` is left out: the difference of scores or ranks, or of the shares of verdicts won.
    """

    label: str | None = None
    pairs: str = "best-worst"
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is none."""
        if self.pairs not in PAIRS:
            raise UsageError(f"--pairs {self.pairs}: expected one of {', '.join(PAIRS)}")
        if not self.min_margin >= 0:
            raise UsageError(f"--min-margin {self.min_margin}: expected at least 0")


@dataclass(frozen=True)
class Preference:
    """Two candidates, and how far apart they are; 0 is a tie, in which `better` is the first of the record."""

    better: Fields
    worse: Fields
    margin: float

    @property
    def tie(self) -> bool:
        """Whether neither is better."""
        return self.margin == 0


def label_of(record: Taken, label: str | None) -> str:
    """The label itself, or for None the one that the record has.

    Raises:
        RecordError: it has none, or several.
    """
    if label is not None:
        return label
    if record.fields.get("human") in ("A", "B", "tie"):
        return "human"
    found = [*(f"ranks:{name}" for name in record.fields.get("ranks") or ()), *(f"verdicts:{name}" for name in verdicts_of(record.fields))]
    if len(found) != 1:
        several = f"several: --label takes one of {', '.join(found)}"
        raise RecordError("", f"expected `human`, ranks or verdicts, by which one is better, got {several if found else 'none of them'}")
    return found[0]


def preferences(record: Taken, labels: PairOptions) -> list[Preference]:
    """The pairs to take, ties and all that is nearer than the margin among them; what they come from is used.

    Raises:
        RecordError: the record has no such label, or not for every candidate.
    """
    label = label_of(record, labels.label)
    candidates = candidates_of(record.fields, 2)
    among = generated_only(candidates)
    record.use("candidates")
    kind, _, name = label.partition(":")
    direct: dict[tuple[int, int], float] = {}
    if label == "human":
        values = _by_people(record, among)
    elif kind == "ranks" and name:
        values = _by_ranks(record, among, name)
    elif kind == "verdicts" and name:
        values, direct = _by_verdicts(record, among, name)
    else:
        values = _by_score(record, among, label)
    if len(values) < 2:
        raise RecordError("candidates", f"expected at least 2 that {label} compares, got {len(values)}")
    order = sorted(values, key=lambda index: -values[index])
    if labels.pairs == "all":
        found = direct or {(i, j): values[i] - values[j] for i, j in combinations(values, 2)}
        chosen = [(i, j, margin) if margin >= 0 else (j, i, -margin) for (i, j), margin in found.items()]
    else:
        best, others = order[0], [index for index in order if values[index] < values[order[0]]] or order[-1:]
        other = random.Random(seeded(0, "pair", str(record.fields["id"]))).choice(others) if labels.pairs == "best-random" else others[-1]
        chosen = [(best, other, values[best] - values[other])]
    return [Preference(candidates[i], candidates[j], margin) for i, j, margin in chosen]


def kept(found: list[Preference], labels: PairOptions, left_out: Counter[Counted]) -> Iterator[Preference]:
    """Those far enough apart; the others are counted."""
    for one in found:
        if one.tie:
            left_out["tie was left out", "ties were left out"] += 1
        elif one.margin < labels.min_margin:
            left_out["pair nearer than --min-margin was left out", "pairs nearer than --min-margin were left out"] += 1
        else:
            yield one


def _by_people(record: Taken, among: list[int]) -> dict[int, float]:
    human = record.maybe("human", object)
    if human not in ("A", "B", "tie") or len(among) != 2:
        raise RecordError("human", f"expected A, B or tie, and two candidates, got {human!r} and {len(among)}; --label NAME takes a score, ranks or verdicts")
    return {among[0]: float(human == "A"), among[1]: float(human == "B")}


def _only(record: Taken, field: str, found: Fields, name: str) -> Any:
    """What the label names; all others of its field are counted as dropped."""
    for other in found.keys() - {name}:
        record.drop(f"{field}.{other}")
    return found.get(name)


def _by_ranks(record: Taken, among: list[int], name: str) -> dict[int, float]:
    ranks = _only(record, "ranks", record.maybe("ranks", dict) or {}, name)
    if ranks is None:
        raise RecordError(f"ranks.{name}", "expected a list of ranks, as --label asks for it")
    return {index: -float(ranks[index]) for index in among if index < len(ranks)}


def _by_verdicts(record: Taken, among: list[int], name: str) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Shares of the verdicts won, a tie counting half, and the same of each pair that was judged, as differences."""
    verdicts = _only(record, "verdicts", verdicts_of(record.fields), name)
    record.use("verdicts", "cmp_results")
    if verdicts is None:
        raise RecordError(f"verdicts.{name}", "expected a list of verdicts, as --label asks for it")
    net: dict[tuple[int, int], list[int]] = {}
    for verdict in verdicts:
        a, b = verdict["a"], verdict["b"]
        drop_remarks(record, verdict)
        if verdict["verdict"] != "unparsed" and a in among and b in among and a != b:
            won = NET.get(verdict["verdict"], 0)
            net.setdefault((min(a, b), max(a, b)), []).append(won if a < b else -won)
    shares: dict[int, list[float]] = {}
    for (i, j), wins in net.items():
        shares.setdefault(i, []).extend((1 + won) / 2 for won in wins)
        shares.setdefault(j, []).extend((1 - won) / 2 for won in wins)
    values = {index: sum(shares[index]) / len(shares[index]) for index in sorted(shares)}
    return values, {pair: sum(wins) / len(wins) for pair, wins in net.items()}


def _by_score(record: Taken, among: list[int], label: str) -> dict[int, float]:
    candidates = record.fields["candidates"]
    scores: list[Any] = [(candidates[index].get("scores") or {}).get(label) for index in among]
    if any(score is None for score in scores):
        raise RecordError(f"candidates[].scores.{label}", "expected a number in every candidate, as --label asks for it")
    sign = -1.0 if better_when_lower(label) else 1.0
    return {index: sign * score for index, score in zip(among, scores, strict=True)}


def drop_remarks(record: Taken, verdict: Fields, *used: str) -> None:
    """Counts what a verdict says beside its candidates, who won, what was shown, and what is `used`."""
    for name, value in verdict.items():
        if name not in ("a", "b", "verdict", "shown", *used) and value is not None:
            record.drop(f"verdicts[].{name}")


def drop_unused(record: Taken, used: list[Fields], names: tuple[str, ...]) -> None:
    """Counts the candidates that are not `used`, and of the others the fields that are none of `names`."""
    record.use("candidates")
    for candidate in record.fields.get("candidates") or ():
        if not any(candidate is one for one in used):
            record.drop("candidates")
        else:
            for name, value in candidate.items():
                if name not in names and value is not None:
                    record.drop(f"candidates[].{name}")
