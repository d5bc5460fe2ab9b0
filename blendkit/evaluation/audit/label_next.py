"""Which pairs people should label next: those that the judges are unsure of, or disagree on, more often than others."""

from __future__ import annotations

import heapq
import math
import random
from typing import IO, Any

from blendkit.aggregate import settled
from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation.audit.labels import JUDGE, SIGNS, PairLabel, labels_of
from blendkit.records import Record, source_text
from blendkit.safe_csv import csv_text
from blendkit.seeding import seeded
from blendkit.sources.csv_table import csv_rows
from blendkit.untrusted import typed

# The doubt in a pair that the judges are sure of: no pair may be out of reach, as what they are sure of may be wrong.
LEAST_DOUBT = 0.1
NEEDED = ("id", "a", "b", "verdict")
COLUMNS = ("id", "a", "b", "prompt", "answer_a", "answer_b", "verdict", "weight")


class LabelNext:
    """Draws unlabelled pairs while records stream by; keeps only the records of those drawn so far.

    Where the chance of a pair is proportional to the standard deviation of its label, the corrected interval is narrowest (Neyman 1934; Zrnic
    and Candès 2024). By the judges' mean opinion p it is √(p (1 - p)), whether one is unsure or two disagree. It is a draw and not the
    top of a list, because labels of the most doubtful pairs alone would say something of these pairs only: the draw's `weight` of each pair
    takes the unevenness away again. The draw is sequential Poisson sampling (Ohlsson 1998). It is of one round: draw as many as will be
    labelled; labels that are there already must have been drawn evenly.
    """

    def __init__(self, count: int, labels: str = "human", seed: int = 0) -> None:
        """Draws `count` pairs; `labels` is the field that has them, and will have the new ones.

        Raises:
            UsageError: fewer than one pair is asked for, or a judge's labels.
        """
        if labels.startswith(JUDGE):
            raise UsageError(f"{labels}: expected a field that people's labels can be written to")
        if count < 1:
            raise UsageError(f"expected at least 1 pair to label, got {count}")
        self.count, self.labels, self.seed = count, labels, seed
        self.pairs, self._doubts = 0, 0.0
        # (minus the key, number of the pair, doubt, record, pair): the pair that goes next is first.
        self._drawn: list[tuple[float, int, float, Record, tuple[int, int]]] = []

    def add(self, record: Record, verdicts: dict[str, list[dict[str, Any]]]) -> None:
        """Takes a record and its `verdicts_of`; pairs without a verdict are not drawn.

        Raises:
            RecordError: the labels that are there are none, or were drawn unevenly themselves.
        """
        labels = labels_of(record, self.labels, verdicts)
        if any(weight != 1 for _, weight in labels.values()):
            raise RecordError(
                self.labels, "expected labels of pairs drawn evenly, got some with a weight of their own: a second uneven draw beside them has none"
            )
        opinions: dict[tuple[int, int], list[float]] = {}
        for rows in verdicts.values():
            for pair, verdict in settled(rows).items():
                if verdict.verdict != "unparsed" and pair not in labels:
                    opinions.setdefault(pair, []).append((verdict.margin + 1) / 2)
        for (a, b), shares in opinions.items():
            mean = sum(shares) / len(shares)
            doubt = max(LEAST_DOUBT, math.sqrt(mean * (1 - mean)))
            self.pairs, self._doubts = self.pairs + 1, self._doubts + doubt
            draw = random.Random(seeded(self.seed, "label", record["id"], str(a), str(b)))
            key = draw.random() / doubt
            # Which of both stands first is drawn as well: people prefer places, too.
            pair = (a, b) if draw.random() < 0.5 else (b, a)
            if len(self._drawn) < self.count:
                heapq.heappush(self._drawn, (-key, self.pairs, doubt, record, pair))
            elif -key > self._drawn[0][0]:
                heapq.heapreplace(self._drawn, (-key, self.pairs, doubt, record, pair))

    def forms(self) -> list[Record]:
        """The drawn records in the stream's order, each with its pairs in the labels' field, `verdict` null; a person writes A, B or tie there."""
        found: dict[int, Record] = {}
        even = len(self._drawn) / max(self.pairs, 1)
        for _, _, doubt, record, (a, b) in sorted(self._drawn, key=lambda drawn: drawn[1]):
            chance = min(1.0, len(self._drawn) * doubt / self._doubts)
            form = found.get(id(record))
            if form is None:
                form = found[id(record)] = {**record, self.labels: _as_list(record, self.labels)}
            form[self.labels].append({"a": a, "b": b, "verdict": None, "weight": round(even / chance, 6)})
        return list(found.values())


def _as_list(record: Record, name: str) -> list[dict[str, Any]]:
    """The labels that a record has, as a list of them."""
    earlier = record.get(name)
    if isinstance(earlier, str):
        return [{"a": a, "b": b, "verdict": earlier} for a, b in labels_of(record, name, {})]
    return list(earlier or ())


def forms_as_csv(forms: list[Record], labels: str = "human") -> tuple[str, int]:
    """The pairs of `forms` that no one labelled yet as CSV, a row each, and how many cells were marked as text (see `csv_text`)."""
    rows: list[list[Any]] = [list(COLUMNS)]
    for form in forms:
        texts = [candidate["text"] for candidate in form["candidates"]]
        for label in form[labels]:
            if label["verdict"] is None:
                a, b = label["a"], label["b"]
                rows.append([form["id"], a, b, source_text(form), texts[a], texts[b], "", label.get("weight", 1.0)])
    return csv_text(rows)


def labels_from_csv(name: str, file: IO[bytes]) -> dict[str, list[dict[str, Any]]]:
    """Record id → labels, of a table that people filled in, in a spreadsheet's own form; rows without a verdict are left out. Errors name the file by `name`.

    Raises:
        DataError: a column is missing, a cell holds something else, or the file is no CSV; with the line.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    words = {word.lower(): word for word in SIGNS}
    for row in csv_rows(name, file):
        if isinstance(row.value, RecordError):
            raise DataError(f"{row.place}: {row.value}")
        cells = {column: row.value[column] or "" for column in row.value}
        if missing := [column for column in NEEDED if column not in cells]:
            raise DataError(f"{row.place}: expected the columns {', '.join(COLUMNS)}, but there is no {missing[0]}")
        said = cells["verdict"].strip().lower()
        if not said:
            continue
        if said not in words:
            raise DataError(f"{row.place}: verdict: expected A, B or tie, got {cells['verdict']!r}")
        try:
            label = {"a": int(cells["a"]), "b": int(cells["b"]), "verdict": words[said], "weight": float(cells.get("weight") or 1.0)}
            typed(label, PairLabel)
        except ValueError as error:
            raise DataError(f"{row.place}: expected whole numbers in a and b, and a number in weight: {error}") from error
        except RecordError as error:
            raise DataError(f"{row.place}: {error}") from error
        found.setdefault(cells["id"], []).append(label)
    return found
