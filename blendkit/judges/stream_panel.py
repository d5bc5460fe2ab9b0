"""`judge --panel dawid-skene`: a panel whose judges are weighed by what they say over the whole stream, which is held back until its end."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import orjson

from blendkit.aggregate import Settled
from blendkit.errors import Interrupted, temporary_files
from blendkit.judges.dawid_skene import DawidSkene, VoteCounts, dawid_skene, settle
from blendkit.records import Record
from blendkit.streams.lines import Line
from blendkit.streams.resume import HELD_BYTES
from blendkit.terminal_text import count_of, shown


class StreamPanel:
    """Keeps judged records in a temporary file; when the stream ends, fits Dawid and Skene's model and adds the panel's verdicts to each."""

    def __init__(self) -> None:
        self._votes = VoteCounts()
        self._fit: DawidSkene | None = None
        self._records = 0
        self._cut_short = False

    def passing(self, windows: Iterator[list[Line]], judges: list[str], panel: str, signed: Callable[[str], str]) -> Iterator[list[Line]]:
        """The windows with the verdicts of `panel`, after the last has come; `signed` makes its signature of a word on the fit.

        Where a fault ends the stream, what came before it is settled by itself, so that verdicts that were paid for are not lost.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        fault: BaseException | None = None
        with temporary_files(), tempfile.SpooledTemporaryFile(HELD_BYTES) as file:
            try:
                for done in windows:
                    self._hold(done, judges, file)
            except (Exception, Interrupted) as error:
                fault, self._cut_short = error, True
            if self._votes.pairs:
                votes, _, counts = self._votes.table()
                self._fit = dawid_skene(votes, counts)
            signature = signed(f"dawid-skene:{self._digest()}")
            file.seek(0)
            left = self._records
            while left:
                done = pickle.load(file)
                left -= len(done)
                for line in done:
                    self._settle(line.record, judges, panel, signature)
                yield done
        if fault is not None:
            raise fault

    def _hold(self, done: list[Line], judges: list[str], file: IO[bytes]) -> None:
        with temporary_files():
            pickle.dump(done, file)
        for line in done:
            self._votes.add({name: line.record["verdicts"][name] for name in judges})
        self._records += len(done)

    def _settle(self, record: Record, judges: list[str], panel: str, signature: str) -> None:
        own = {name: record["verdicts"][name] for name in judges}
        found = {} if self._fit is None else settle(judges, self._fit, own)
        pairs = dict.fromkeys((row["a"], row["b"]) for rows in own.values() for row in rows)
        record["verdicts"][panel] = [found.get(pair, Settled("unparsed")).row(pair) for pair in pairs]
        record["signatures"][f"judge:{panel}"] = signature

    def _figures(self) -> dict[str, dict[str, float]]:
        """By judge, how often it is right (%) and what its word weighs (logits), as the table `panel` of `evaluate` has them."""
        if self._fit is None:
            return {}
        both = zip(self._votes.judges, self._fit.accuracy.tolist(), self._fit.weights.tolist(), strict=True)
        return {name: {"accuracy": round(100 * accuracy, 4), "weight": round(weight, 4)} for name, accuracy, weight in both}

    def _digest(self) -> str:
        return hashlib.blake2b(orjson.dumps(self._figures()), digest_size=3).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"dawid_skene": {"pairs": self._votes.pairs, "judges": self._figures()}}

    def warnings(self) -> list[str]:
        """What the judges are worth by the fit, in a line."""
        if self._fit is None:
            return []
        of = f"{count_of(self._votes.pairs, 'pair')} of the {count_of(self._records, 'record')}{' before the run was cut short' if self._cut_short else ''}"
        each = ", ".join(f"{shown(name)} {found['accuracy']:.1f} %" for name, found in self._figures().items())
        return [f"the panel is weighed by Dawid and Skene's model over {of}; by it, judges are right on: {each}"]
