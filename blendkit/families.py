"""Which models are of one family, by their names: a judge may prefer its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated

import msgspec

from blendkit.errors import DataError
from blendkit.untrusted import table_of_file

_OWN = re.compile(r"[^\W\d_]+")


class Families:
    """Name of a model or judge → its family."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """`known` maps names, or the beginnings of names, to families; the longest beginning counts.

        Of any other name the family is its first letters behind its last `/` and `:`, small: `openai:gpt-4o` is of `gpt`.
        """
        self._known = dict(known or {})
        self.of = lru_cache(maxsize=4096)(self._of)

    def told(self, name: str) -> str | None:
        """The family that the mapping says the name is of; None where it says nothing."""
        beginnings = [beginning for beginning in self._known if name.startswith(beginning)]
        return self._known[max(beginnings, key=len)] if beginnings else None

    def _of(self, name: str) -> str:
        if (told := self.told(name)) is not None:
            return told
        own = re.split(r"[/:]", name)[-1]
        letters = _OWN.match(own)
        return letters[0].lower() if letters else own


Name = Annotated[str, msgspec.Meta(min_length=1)]
MAX_BYTES = 1 << 20


def families_of_file(path: str, flag: str = "--families") -> dict[str, str]:
    """What a TOML file, or a JSON file by its ending, says: names, or the beginnings of names, and their families.

    Raises:
        NoInputError: there is no such file.
        DataError: it is no object of names and families, or is empty.
    """
    found: dict[str, str] = table_of_file(path, f"{flag} {path}", Name, Name, MAX_BYTES)
    if not found:
        raise DataError(f'{flag} {path}: expected a name and its family at least, such as "openai:gpt" = "gpt"')
    return found
