"""What candidates are called: a method's name in tables, and the names by which a flag or `cmp_results` points at one candidate of a record.

Only the record itself decides, as records are read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blendkit.errors import RecordError
from blendkit.terminal_text import count_of, listed

Candidates = Sequence[dict[str, Any]]
# Of many candidates that a message could name, so many are named.
NAMED = 8


def method_names(candidates: Candidates) -> list[str]:
    """Each candidate's method: its model, with what tells it from others of that model in the record.

    Answers of one model by several decodings are `model · decoding`; a fused answer whose fuser has the name of a model that
    answered, too, is `model · fused`. Candidates that agree in all of this, such as several samples, are one method.

    Raises:
        RecordError: a model's own name is that of another model's method.
    """
    models = [candidate["model"] for candidate in candidates]
    if len(set(models)) == len(models):
        return models
    decodings: dict[str, set[str]] = {}
    for candidate in candidates:
        if not candidate.get("sources"):
            decodings.setdefault(candidate["model"], set()).add(_decoding(candidate))
    owners: dict[str, tuple[str, bool]] = {}
    for place, candidate in enumerate(candidates):
        model, fused = candidate["model"], bool(candidate.get("sources"))
        if fused:
            name = _joined(model, "fused") if model in decodings else model
        else:
            name = _joined(model, _decoding(candidate)) if len(decodings[model]) > 1 else model
        if owners.setdefault(name, (model, fused)) != (model, fused):
            raise RecordError(f"candidates[{place}].model", f"expected another name: the tables have {name!r} for a candidate of {owners[name][0]!r}")
        models[place] = name
    return models


def _joined(model: str, what: str) -> str:
    return f"{model} · {what}"


def _decoding(candidate: dict[str, Any]) -> str:
    return candidate.get("decoding_method") or "unnamed"


class Called:
    """The names of a record's candidates: the method, the model, `model · decoding`, and `name#k` for the k-th of those called `name`.

    A name that is a method's means that method alone, and one that is a model's is no number.
    """

    def __init__(self, candidates: Candidates, methods: Sequence[str] | None = None) -> None:
        """`methods` are `method_names(candidates)`, where they are known. Raises RecordError as that does."""
        self.methods = method_names(candidates) if methods is None else methods
        self._places: dict[str, list[int]] = {}
        decoded = [_joined(candidate["model"], _decoding(candidate)) for candidate in candidates]
        for names in (self.methods, [candidate["model"] for candidate in candidates], decoded):
            found: dict[str, list[int]] = {}
            for place, name in enumerate(names):
                found.setdefault(name, []).append(place)
            self._places = found | self._places
        numbered = {f"{name}#{number}": [place] for name, places in self._places.items() for number, place in enumerate(places, 1)}
        self._places = numbered | self._places
        self.lengths = frozenset(map(len, self._places))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def place(self, name: str, what: str, field: str = "candidates") -> int:
        """The candidate of a name that is there.

        Raises:
            RecordError: several candidates have it. The message begins with `what`, and says names of which each is one candidate's.
        """
        places = self._places[name]
        if len(places) > 1:
            own = listed(map(self._own, places), NAMED)
            raise RecordError(field, f"{what}: {count_of(len(places), 'candidate is', 'candidates are')} called so; name one of {own}")
        return places[0]

    def _own(self, place: int) -> str:
        """A name that no other candidate has."""
        alike = self._places[method := self.methods[place]]
        return f"{method}#{alike.index(place) + 1}" if len(alike) > 1 else method


class Divided:
    """Notes the models that have one name in some records and several in others: their rows in a table are of different records."""

    def __init__(self) -> None:
        self._whole: set[str] = set()
        self._parted: set[str] = set()

    def add(self, candidates: Candidates, methods: Sequence[str]) -> None:
        """Takes a record's candidates and their methods."""
        for candidate, method in zip(candidates, methods, strict=True):
            (self._whole if candidate["model"] == method else self._parted).add(candidate["model"])

    def note(self) -> str | None:
        """One line on all of them, if there are some."""
        both = sorted(self._whole & self._parted)
        if not both:
            return None
        what = "a method of one name in some records, and of several (by decoding, or fused) in others; these rows are of different records"
        return f"{listed(both, NAMED)}: {what}"
