"""Panels whose judges are weighed by what an evaluation has found of each, such as by the model of Dawid and Skene (1979)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import msgspec
import orjson

from blendkit.aggregate import Settled
from blendkit.errors import DataError
from blendkit.terminal_text import listed, shown
from blendkit.untrusted import json_lines, typed

TABLE = "panel"
# Beyond these a judge alone would decide everything, to the last digit of a float.
MOST = 30.0
# A panel that is nearer to neither answer than by so many logits says that they tie.
EVEN = 1e-9


class _WeightRow(msgspec.Struct):
    """What is read of a row of the table `panel`; the last one, of all judges, has no weight."""

    method: str
    weight: float | None = None


class PanelWeights:
    """By how many logits each judge's word for an answer, rather than for the other, moves the panel; a tie moves nothing."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = {judge: max(-MOST, min(MOST, weight)) for judge, weight in sorted(weights.items())}

    @property
    def digest(self) -> str:
        """For signatures."""
        return hashlib.blake2b(orjson.dumps(self.weights), digest_size=3).hexdigest()

    def settle(self, each: Mapping[str, Mapping[tuple[int, int], Settled]]) -> dict[tuple[int, int], Settled]:
        """The weighed verdict on each pair that somebody judged, with the probability that a is better by those who could be read."""
        found: dict[tuple[int, int], Settled] = {}
        for pair in dict.fromkeys(pair for verdicts in each.values() for pair in verdicts):
            read = {judge: vote for judge, verdicts in each.items() if (vote := verdicts.get(pair)) is not None and vote.verdict != "unparsed"}
            if not read:
                found[pair] = Settled("unparsed")
                continue
            logit = math.fsum(self.weights[judge] * vote.sign for judge, vote in read.items())
            word = "tie-good" if abs(logit) < EVEN else "A" if logit > 0 else "B"
            found[pair] = Settled(word, 1 / (1 + math.exp(-logit)))
        return found


def weights_of_file(path: str, judges: Iterable[str], flag: str = "--panel-weights") -> PanelWeights:
    """The weights of these judges, from the table `panel` among JSON lines of tables; other tables may stand beside it.

    Raises:
        NoInputError: there is no such file.
        DataError: a line is no row, or a judge has no weight there.
    """
    place = f"{flag} {path}"
    rows = json_lines(path, place, lambda row: typed(row, _WeightRow) if isinstance(row, dict) and row.get("table") == TABLE else None)
    found = {row.method: row.weight for row in rows if row is not None and row.weight is not None}
    for judge in judges:
        if judge not in found:
            has = f"found {listed(found)}" if found else "it has none"
            raise DataError(f"{place}: expected the table {TABLE} with the weight of {shown(judge)}; {has}")
    return PanelWeights({judge: found[judge] for judge in judges})
