"""`judge --list`: verdicts from orders of several answers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from blendkit.errors import UsageError
from blendkit.judges.base import Juror, as_row
from blendkit.judges.judging import Judging
from blendkit.judges.lists import MOST, drawn, verdicts_of
from blendkit.judges.llm import LLMJudge
from blendkit.pipeline.work import Rounds, together
from blendkit.records import Record, candidates_of


class ListJudging(Judging):
    """Writes `verdicts[name]` as `Judging` does, each with the `list` that it comes from; a pair has one for each list that both are in."""

    def __init__(self, jurors: Sequence[Juror], size: int, shuffles: int, **settings: Any) -> None:
        """Lists of `size` answers, drawn `shuffles` times; the settings are those of `Judging`.

        Raises:
            UsageError: a judge reads no lists, or a setting is for pairs.
        """
        if not 2 <= size <= MOST:
            raise UsageError(f"--list {size}: expected 2 to {MOST} answers")
        if shuffles < 1:
            raise UsageError(f"--shuffles {shuffles}: expected at least 1")
        if settings["orders"] != "both" or settings["schedule"] != "full":
            raise UsageError("--list draws its own lists: it goes with neither --orders random nor --schedule")
        self.readers = [juror for juror in jurors if isinstance(juror, LLMJudge)]
        if len(self.readers) < len(jurors):
            raise UsageError(f"--list: {next(juror.name for juror in jurors if not isinstance(juror, LLMJudge))} reads no lists; an LLM does")
        super().__init__([*jurors], **settings)
        self.size, self.shuffles = size, shuffles

    @property
    def facts(self) -> dict[str, Any]:
        return {"list": self.size, "shuffles": self.shuffles, "seed": self.seed, **(self.others.facts if self.others else {})}

    def rounds(self, record: Record) -> Rounds[None]:
        """One round: all lists of all judges."""
        everyone = range(len(candidates_of(record)))
        asking: list[tuple[LLMJudge, list[list[int]]]] = []
        unjudged = set(combinations(everyone, 2))
        for juror in self.readers:
            juror.begin(record)
            places = self.others.places(juror.name, record) if self.others else [*everyone]
            unjudged -= {*combinations(places, 2)}
            asking.append((juror, list(drawn(places, self.size, self.seed, record["id"], self.shuffles))))
        found = yield from together([juror.orders(record, lists) for juror, lists in asking])
        rows: dict[str, list[dict[str, Any]]] = {}
        for (juror, lists), opinions in zip(asking, found, strict=True):
            implied = [(shown, pair, verdict) for shown, order in zip(lists, opinions, strict=True) for pair, verdict in verdicts_of(order, shown)]
            rows[juror.name] = [as_row(verdict, pair) | {"list": [*shown]} for shown, pair, verdict in implied]
            self.bias[juror.name].add((pair, verdict.verdict) for _, pair, verdict in implied)
            self._count(juror.name, opinions)
        if self.others:
            self.others.count(len(unjudged))
        self._add(record, rows)
