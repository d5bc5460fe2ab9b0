"""Who may judge what: nobody judges an answer of their own, or of a relative."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

import orjson

from blendkit.families import Families
from blendkit.judges.base import Juror
from blendkit.records import Record
from blendkit.terminal_text import count_of


class OthersOnly:
    """Counts, too, the pairs that nobody may judge; may be fed from several threads."""

    def __init__(self, jurors: Iterable[Juror], families: Mapping[str, str] | None = None) -> None:
        """`families` maps names, or the beginnings of names, to families; a name that it does not know has no relatives."""
        self._names = {juror.name: juror.known_as() for juror in jurors}
        known = Families(families)
        self._families = {name: {known.told(own) for own in names} - {None} for name, names in self._names.items()}
        self._family = known.told
        self.is_own = lru_cache(maxsize=4096)(self._is_own)
        # What a signature says.
        digest = hashlib.blake2b(orjson.dumps(families, option=orjson.OPT_SORT_KEYS), digest_size=3).hexdigest() if families else None
        self.facts: dict[str, Any] = {"exclude-self": True, "families": digest}
        self.unjudged = self.records = 0
        self._lock = Lock()

    def _is_own(self, judge: str, model: str) -> bool:
        """Whether an answer of this model is the judge's own, or a relative's."""
        return model in self._names[judge] or self._family(model) in self._families[judge]

    def places(self, judge: str, record: Record) -> list[int]:
        """The candidates that the judge is shown."""
        return [place for place, candidate in enumerate(record["candidates"]) if not self.is_own(judge, candidate["model"])]

    def count(self, unjudged: int) -> None:
        """Takes the number of a record's pairs that nobody may judge."""
        if unjudged:
            with self._lock:
                self.unjudged += unjudged
                self.records += 1

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"pairs_nobody_may_judge": self.unjudged}

    def warnings(self) -> list[str]:
        """One line, or none."""
        if not self.unjudged:
            return []
        were = count_of(self.unjudged, "pair was", "pairs were")
        return [f"{were} judged by nobody, in {count_of(self.records, 'record')}: every judge, or a relative of theirs, wrote one of the two answers"]
