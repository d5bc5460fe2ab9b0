"""`judge`: verdicts of one judge or a panel, on the pairs that a schedule asks for (GPT-Rank: LLM-Blender, section 2.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from blendkit.aggregate import Settled, settled
from blendkit.errors import UsageError
from blendkit.generators.unparsed import Unparsed
from blendkit.judges.agreement import PanelAgreement
from blendkit.judges.base import ORDERS, PANEL, Juror, Opinion, Shown, as_row, orders_shown
from blendkit.judges.own import OthersOnly
from blendkit.judges.position import PositionBias
from blendkit.judges.stream_panel import StreamPanel
from blendkit.judges.weighing import PanelWeights
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Rounds, together
from blendkit.rankers.schedules import make_schedule
from blendkit.records import Record, candidates_of
from blendkit.seeding import seeded
from blendkit.signature import Signature
from blendkit.streams.lines import Line
from blendkit.terminal_text import shown


class Judging(Stage):
    """Writes `verdicts[name]`, in place of earlier ones, on pairs of all candidates, fused ones included; `signatures` say who gave them.

    `a` and `b` are candidate indices with a < b, and the verdict `A` means that candidate a is better, in whichever
    order the judge saw them (`shown`). Several judges each write their own, and their majority is `panel`'s.
    """

    name = "judge"
    window = 16

    def __init__(
        self, jurors: list[Juror], *, panel: str = "panel", orders: str = "both", schedule: str = "full", seed: int = 0, max_unparsed: float = 0.2,
        passes_records: bool = True, others: OthersOnly | None = None, weights: PanelWeights | None = None,
        whole: StreamPanel | None = None,
    ) -> None:  # fmt: skip
        """No two of the judges, and of them and the `panel`, have one name. A pair that the schedule asks for is shown in `both` orders or one at `random`.

        More than `max_unparsed` (0 to 1) of a judge's verdicts that cannot be read are the run's fault. `passes_records` is
        False where requests are only written down. `others` says which answers are a judge's own, which it is not shown, `weights`
        what each judge of the panel counts, in place of the majority; with `whole`, the panel is settled when the stream ends, and until
        then a schedule goes on by the majority.

        Raises:
            UsageError: `orders`, `schedule` or `max_unparsed` is none.
        """
        if orders not in ORDERS:
            raise UsageError(f"--orders {orders}: expected both or random")
        self.jurors, self.panel, self.orders, self.seed = jurors, panel, orders, seed
        self.schedule_name, self.schedule = schedule, make_schedule(schedule)
        self.overlap = min(juror.overlap for juror in jurors)
        self.batch_tokens = min(juror.batch_tokens for juror in jurors)
        self.unparsed = Unparsed(max_unparsed, "verdict")
        self.passes_records = passes_records
        self.others, self.weights, self.whole = others, weights, whole
        self.bias = {juror.name: PositionBias() for juror in jurors if not juror.indifferent}
        self.agreement = PanelAgreement()

    def rounds(self, record: Record) -> Rounds[None]:
        """The schedule's rounds, all judges side by side; ends by adding the verdicts."""
        n = len(candidates_of(record))
        schedule = self.schedule(n, random.Random(seeded(self.seed, "schedule", record["id"])))
        rows: dict[str, list[dict[str, Any]]] = {juror.name: [] for juror in self.jurors}
        opinions: dict[str, list[tuple[tuple[int, int], Opinion]]] = {juror.name: [] for juror in self.jurors}
        margins: dict[tuple[int, int], float] = {}
        logits: list[float] | None = None
        for juror in self.jurors:
            juror.begin(record)
        while True:
            try:
                asked = next(schedule) if logits is None else schedule.send(logits)
            except StopIteration:
                break
            pairs = list(dict.fromkeys(pair for i, j in asked if (pair := (min(i, j), max(i, j))) not in margins))
            if pairs:
                asking = [(juror, orders) for juror in self.jurors if (orders := self._orders(juror, record, pairs))]
                found = yield from together([juror.rounds(record, orders) for juror, orders in asking])
                for (juror, orders), given in zip(asking, found, strict=True):
                    opinions[juror.name] += zip(orders, given, strict=True)
                    rows[juror.name] += [as_row(opinion, order, juror.indifferent) for order, opinion in zip(orders, given, strict=True)]
                if any(opinion.waiting for given in found for opinion in given):
                    # What the next round asks depends on these.
                    break
                margins |= self._margins(rows, pairs)
            logits = [margins[i, j] if i < j else -margins[j, i] for i, j in asked]
        if self.others:
            judged = {(row["a"], row["b"]) for found in rows.values() for row in found}
            self.others.count(len(margins.keys() - judged))
        self._add(record, rows)
        for name, bias in self.bias.items():
            bias.add((order, opinion.verdict) for order, opinion in opinions[name])
        for name, given in opinions.items():
            self._count(name, [opinion for _, opinion in given])

    def _count(self, judge: str, opinions: list[Opinion]) -> None:
        """Those that wait for a batch do not count."""
        there = [opinion for opinion in opinions if not opinion.waiting]
        self.unparsed.add(judge, len(there), [opinion.reason or "" for opinion in there if opinion.verdict == "unparsed"])

    def _orders(self, juror: Juror, record: Record, pairs: list[Shown]) -> list[Shown]:
        """The pairs that a judge is shown, each in its order or orders."""
        if self.others:
            places = set(self.others.places(juror.name, record))
            pairs = [pair for pair in pairs if places.issuperset(pair)]
        return pairs if juror.indifferent else [order for pair in pairs for order in orders_shown(self.orders, pair, self.seed, record["id"])]

    def _together(self, each: dict[str, dict[Shown, Settled]]) -> dict[Shown, Settled]:
        """What the judges' settled verdicts come to, by judge: each has one vote, or its weight."""
        if self.weights:
            return self.weights.settle(each)
        votes = [{"a": a, "b": b, "verdict": vote.verdict, "probability": vote.probability} for found in each.values() for (a, b), vote in found.items()]
        return settled(votes)

    def _margins(self, rows: dict[str, list[dict[str, Any]]], pairs: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        """How much a beats b by the judges, from -1 to 1, for the schedule to go on from; 0 where nobody says anything."""
        found = self._together({name: settled(given) for name, given in rows.items()})
        return {pair: found[pair].margin if pair in found else 0.0 for pair in pairs}

    def _add(self, record: Record, rows: dict[str, list[dict[str, Any]]]) -> None:
        if len(self.jurors) > 1:
            each = {name: settled(found) for name, found in rows.items()}
            self.agreement.add(each.values())
            if self.whole is None:
                rows = {**rows, self.panel: [vote.row(pair) for pair, vote in self._together(each).items()]}
        record["verdicts"] = {**record.get("verdicts", {}), **rows}
        record["signatures"] = {**record.get("signatures", {}), **self._signed}

    def passing(self, windows: Iterator[list[Line]]) -> Iterator[list[Line]]:
        """Held back until all are there, where the panel is settled over the whole stream."""
        if self.whole is None or not self.passes_records:
            return windows
        return self.whole.passing(windows, [juror.name for juror in self.jurors], self.panel, self._signed_panel)

    @property
    def facts(self) -> dict[str, Any]:
        """What decided all judges' verdicts, for their signatures."""
        return {"orders": self.orders, "sched": self.schedule_name, "seed": self.seed, **(self.others.facts if self.others else {})}

    @cached_property
    def _signed(self) -> dict[str, str]:
        """`judge:NAME` → what decided its verdicts, and what it is, as its last word; a panel's names its judges."""
        signed = {f"judge:{juror.name}": str(Signature(juror.signature, **self.facts, kind=juror.kind)) for juror in self.jurors}
        if len(self.jurors) > 1 and self.whole is None:
            signed[f"judge:{self.panel}"] = self._signed_panel(f"weights:{self.weights.digest}" if self.weights else "")
        return signed

    def _signed_panel(self, how: str) -> str:
        """`how` says what its judges count by; nothing for the majority."""
        return str(Signature("|".join(filter(None, [PANEL, *(f"of:{juror.name}" for juror in self.jurors), how])), **self.facts, kind=PANEL))

    @property
    def signatures(self) -> list[str]:
        """One a judge."""
        return [self._signed[f"judge:{juror.name}"] for juror in self.jurors]

    def account(self) -> Unparsed:
        """How many verdicts could not be read."""
        return self.unparsed

    def describe(self) -> dict[str, Any]:
        """Signatures, models, each judge's position bias, and how far a panel agrees."""
        bias = {name: found.describe() for name, found in self.bias.items()}
        described: dict[str, Any] = {"signatures": self.signatures, "models": {j.name: j.describe() for j in self.jurors}, "position_bias": bias}
        described |= {"panel_weights": self.weights.weights} if self.weights else {}
        described |= self.whole.describe() if self.whole else {}
        described |= self.others.describe() if self.others else {}
        return described | ({"agreement": self.agreement.describe()} if len(self.jurors) > 1 else {})

    def warnings(self) -> list[str]:
        """What the judges say, whether they prefer a place, and how far they agree."""
        several = len(self.jurors) > 1
        found = []
        for juror in self.jurors:
            lines = [*juror.warnings(), *(self.bias[juror.name].message() if juror.name in self.bias else [])]
            found += [f"{shown(juror.name)}: {line}" if several else line for line in lines]
        return [*found, *(self.others.warnings() if self.others else []), *self.agreement.message(), *(self.whole.warnings() if self.whole else [])]
