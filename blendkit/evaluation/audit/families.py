"""Which models are of one family, by their names: a judge may prefer its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_OWN = re.compile(r"[^\W\d_]+")


class Families:
    """Name of a model or judge → its family."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """`known` maps names, or the beginnings of names, to families; the longest beginning counts.

        Of any other name the family is its first letters behind its last `/` and `:`, small: `openai:gpt-4o` is of `gpt`.
        """
        self._known = dict(known or {})
        self.of = lru_cache(maxsize=4096)(self._of)

    def _of(self, name: str) -> str:
        beginnings = [beginning for beginning in self._known if name.startswith(beginning)]
        if beginnings:
            return self._known[max(beginnings, key=len)]
        own = re.split(r"[/:]", name)[-1]
        letters = _OWN.match(own)
        return letters[0].lower() if letters else own
