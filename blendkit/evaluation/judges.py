"""The judges of a stream: how decided each is, whether it prefers a place, how far they agree with each other, and what the tables' judge is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blendkit.aggregate import settled
from blendkit.errors import DataError
from blendkit.evaluation.examples import Verdicts
from blendkit.evaluation.tables import JUDGE_RANK
from blendkit.judges.agreement import PanelAgreement
from blendkit.judges.base import LLM, OTHER, PANEL, STAND_IN
from blendkit.judges.position import PositionBias, as_shown
from blendkit.terminal_text import count_of, listed, shown

MOST_JUDGES = 1000
# Members of a panel that its line says more of.
NAMED = 8
# Judges that are known by their names where no signature says what they are; MixInstruct's is ChatGPT.
KNOWN = {"mixinstruct": LLM, "embedded": STAND_IN, "panel": PANEL}
WORDS = {
    LLM: "an LLM",
    STAND_IN: "the offline stand-in, no LLM: not to be reported as GPT-Rank",
    OTHER: "not known to be an LLM",
}


@dataclass
class Seen:
    """What the stream holds of one judge."""

    verdicts: int = 0
    ties: int = 0
    unparsed: int = 0
    kinds: set[str] = field(default_factory=set)
    bias: PositionBias = field(default_factory=PositionBias)

    def add(self, rows: list[dict[str, Any]], kind: str) -> None:
        """Takes its verdicts on a record."""
        self.kinds.add(kind)
        self.verdicts += len(rows)
        for row in rows:
            self.ties += row["verdict"].startswith("tie")
            self.unparsed += row["verdict"] == "unparsed"
        self.bias.add(as_shown(row) for row in rows if row.get("shown"))

    @property
    def kind(self) -> str:
        """What it is in all records; the stand-in where it is that in one of them."""
        return STAND_IN if STAND_IN in self.kinds else next(iter(self.kinds)) if len(self.kinds) == 1 else OTHER

    def orders(self) -> str:
        """What its places and orders say of it."""
        if not self.bias.decided and not self.bias.pairs:
            return "it sees no order" if self.kind == STAND_IN else "nothing tells whether it prefers a place"
        first = f"the first place won {self.bias.first / self.bias.decided:.1%} of {self.bias.decided:,} decided" if self.bias.decided else ""
        both = self.bias.orders() or "no pair was judged in both orders, so their agreement is not known"
        return "; ".join(filter(None, (first, both)))


class Judges:
    """Takes verdicts of each record, those of the tables' judge or of `everyone`; gives the table `judges`, and the row on the tables' judge."""

    def __init__(self, everyone: bool = False) -> None:
        self._everyone = everyone
        self._seen: dict[str, Seen] = {}
        self._members: dict[str, None] = {}
        self._agreement = PanelAgreement()

    def add(self, verdicts: Verdicts, signatures: Mapping[str, str], judge: str | None) -> None:
        """One record's verdicts by judge; `judge` is the tables' own.

        Raises:
            DataError: there are too many judges.
        """
        members = self._members_of(judge, verdicts, signatures) if judge in verdicts else []
        self._members |= dict.fromkeys(members)
        for name in verdicts if self._everyone else [name for name in (judge, *members) if name in verdicts]:
            self._seen.setdefault(name, Seen()).add(verdicts[name], kind_of_judge(name, signatures))
            if len(self._seen) > MOST_JUDGES:
                raise DataError(f"more than {MOST_JUDGES:,} judges, with {name!r}: do records bring names of their own?")
        if self._everyone:
            single = [settled(rows) for name, rows in verdicts.items() if kind_of_judge(name, signatures) != PANEL]
            if len(single) > 1:
                self._agreement.add(single)

    @staticmethod
    def _members_of(judge: str | None, verdicts: Verdicts, signatures: Mapping[str, str]) -> list[str]:
        """The judges of whom `judge` is the panel, as its signature names them; without one, all that stand beside it."""
        if judge is None or kind_of_judge(judge, signatures) != PANEL:
            return []
        signature = signatures.get(f"judge:{judge}")
        return [name for name in verdicts if name != judge and (signature is None or f"|of:{name}|" in signature)]

    def rows(self) -> list[dict[str, Any]]:
        """A row a judge; with several judges, a last one has their Krippendorff's alpha, the panel's majority left out."""
        rows: list[dict[str, Any]] = []
        for name, seen in self._seen.items():
            verdicts, unparsed = seen.verdicts, seen.unparsed
            ties_rate = round(100 * seen.ties / (verdicts - unparsed), 2) if verdicts > unparsed else None
            shares = {"first_place_rate": _percent(seen.bias, "first_place_rate"), "consistency": _percent(seen.bias, "consistency")}
            rows.append({"table": "judges", "method": name, "verdicts": verdicts, "ties": ties_rate, "unparsed": unparsed, **shares})
        described = self._agreement.describe()
        if described["pairs"]:
            rows.append({"table": "judges", "method": "all judges", "verdicts": described["pairs"], "alpha": described["krippendorff_alpha"]})
        return rows

    def worth(self, judge: str | None, is_oracle: bool) -> dict[str, Any] | None:
        """The row `judge`: what the tables' own judge is worth, in figures and in one `line`; None where the stream has no verdict of it.

        Shares are %. `at_chance` is the floor (see `PositionBias`), None where no pair was seen in both orders; a panel is
        below it where half of its judges are. `is_oracle` says that its ranks are the true ranking.
        """
        seen = self._seen.get(judge or "")
        if judge is None or seen is None:
            return None
        members = {name: self._seen[name] for name in self._members}
        kinds = {one.kind for one in members.values()} or {seen.kind}
        kind = next(iter(kinds)) if len(kinds) == 1 and kinds <= {LLM, STAND_IN} else OTHER
        at_chance = _at_chance(members.values()) if members else seen.bias.at_chance
        row: dict[str, Any] = {"table": "judge", "method": judge, "judge": PANEL if members else kind, "column": JUDGE_RANK[kind], "is_oracle": is_oracle}
        row |= {"verdicts": seen.verdicts, "unparsed": seen.unparsed, "first_place_rate": _percent(seen.bias, "first_place_rate")}
        row |= {"pairs_in_both_orders": seen.bias.pairs, "order_agreement": _percent(seen.bias, "consistency")}
        row |= {f"order_agreement_{key}": _percent(seen.bias, f"consistency_{key}") for key in ("low", "high", "by_chance")}
        if members:
            rest = f"; and {len(members) - NAMED:,} more" if len(members) > NAMED else ""
            each = "; ".join(f"{shown(name)} is {WORDS[one.kind].partition(':')[0]}, {one.orders()}" for name, one in list(members.items())[:NAMED])
            what, orders = f"the majority of {listed(members)}", each + rest
        else:
            what, orders = WORDS[seen.kind if seen.kind in WORDS else OTHER], seen.orders()
        line = f"judge:{shown(judge)}, {what}; {count_of(seen.verdicts, 'verdict')}, {seen.unparsed:,} unparsed; {orders}"
        if at_chance:
            whose = "for half of the panel or more, " if members else ""
            line += f": {whose}not above chance, so what is marked (at chance) may tell places or guesses, not answers"
        return {**row, "at_chance": at_chance, "line": line}


def _at_chance(members: Iterable[Seen]) -> bool | None:
    found = [one.bias.at_chance for one in members]
    return None if set(found) == {None} else 2 * found.count(True) >= len(found)


def kind_of_judge(name: str, signatures: Mapping[str, str]) -> str:
    """What a judge is, as the last word of its signature says (`blendkit judge` writes it)."""
    signature = signatures.get(f"judge:{name}")
    if signature is None:
        return KNOWN.get(name, OTHER)
    return next((kind for kind in (LLM, STAND_IN, PANEL) if signature.endswith(f"|kind:{kind}")), OTHER)


def _percent(bias: PositionBias, key: str) -> float | None:
    share = bias.describe()[key]
    return None if share is None else round(100 * share, 2)
