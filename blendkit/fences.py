"""Texts quoted in prompts: data between fences that no text can forge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Letters and signs that show nothing, beside the controls and formats that Unicode names so: fillers, joiners, selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


def as_it_looks(text: str) -> str:
    """The text as a reader may take it: full-width and other spellings of a character as that character, what cannot be seen left out."""
    if text.isascii():
        return _CONTROLS.sub("", text)
    seen = "".join(letter for letter in _BLANK.sub("", text) if letter in "\t\n" or unicodedata.category(letter) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFKC", seen)


def fence_for(texts: Iterable[str]) -> str:
    """A run of `=` longer than any in the texts, or than any that looks like one, so that none of them can end its own quotation."""
    longest = max((len(run) for text in texts for run in re.findall("=+", f"{text}\0{as_it_looks(text)}")), default=0)
    return "=" * max(8, longest + 1)


def quoted(fence: str, parts: Iterable[tuple[str, str]]) -> str:
    """Each (heading, text) behind a fence with its heading; a last fence ends the material."""
    return "\n".join([*(f"{fence} {heading}\n{text}" for heading, text in parts), f"{fence} END"])


def plain_name(name: str) -> str:
    """A name from a record inside a heading: one line, no fence."""
    return " ".join(as_it_looks(" ".join(name.split())).replace("=", "").split())
