"""The judges of a stream: how decided each is, whether it prefers a place, and how far they agree with each other."""

from __future__ import annotations

from typing import Any

from blendkit.aggregate import settled
from blendkit.errors import DataError
from blendkit.judges.agreement import PanelAgreement
from blendkit.judges.base import SWAPPED, Opinion
from blendkit.judges.position import PositionBias

MOST_JUDGES = 1000
Verdicts = dict[str, list[dict[str, Any]]]


class Judges:
    """Takes all verdicts of each record; gives the table `judges`."""

    def __init__(self) -> None:
        self._bias: dict[str, PositionBias] = {}
        self._counts: dict[str, list[int]] = {}
        self._agreement = PanelAgreement()

    def add(self, verdicts: Verdicts) -> None:
        """One record's verdicts by judge.

        Raises:
            DataError: there are too many judges.
        """
        for name, rows in verdicts.items():
            counts = self._counts.setdefault(name, [0, 0, 0])
            if len(self._counts) > MOST_JUDGES:
                raise DataError(f"more than {MOST_JUDGES:,} judges, with {name!r}: do records bring names of their own?")
            for row in rows:
                counts[0] += 1
                counts[1] += row["verdict"].startswith("tie")
                counts[2] += row["verdict"] == "unparsed"
            self._bias.setdefault(name, PositionBias()).add(((row["shown"][0], row["shown"][1]), _as_shown(row)) for row in rows if row.get("shown"))
        single = [settled(rows) for name, rows in verdicts.items() if name != "panel"]
        if len(single) > 1:
            self._agreement.add(single)

    def rows(self) -> list[dict[str, Any]]:
        """A row a judge; with several judges, a last one has their Krippendorff's alpha, the panel's majority left out."""
        rows: list[dict[str, Any]] = []
        for name, (verdicts, ties, unparsed) in self._counts.items():
            bias = self._bias[name].describe()
            shares = {key: None if bias[key] is None else round(100 * bias[key], 2) for key in ("first_place_rate", "consistency")}
            ties_rate = round(100 * ties / (verdicts - unparsed), 2) if verdicts > unparsed else None
            rows.append({"table": "judges", "method": name, "verdicts": verdicts, "ties": ties_rate, "unparsed": unparsed, **shares})
        described = self._agreement.describe()
        if described["pairs"]:
            rows.append({"table": "judges", "method": "all judges", "verdicts": described["pairs"], "alpha": described["krippendorff_alpha"]})
        return rows


def _as_shown(row: dict[str, Any]) -> Opinion:
    """The verdict on the candidates as they were shown."""
    first, second = row["shown"]
    return Opinion(row["verdict"] if first < second else SWAPPED.get(row["verdict"], row["verdict"]))
