"""Quotes texts in prompts, between fences that no text can forge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Characters that show nothing though Unicode does not class them as controls or formats: fillers, joiners, selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


def as_it_looks(text: str) -> str:
    """The text as a model may read it: compatibility forms become the plain character (NFKC), and invisible characters are left out."""
    if text.isascii():
        return _CONTROLS.sub("", text)
    seen = "".join(letter for letter in _BLANK.sub("", text) if letter in "\t\n" or unicodedata.category(letter) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFKC", seen)


def fence_for(texts: Iterable[str]) -> str:
    """A run of `=` that is longer than any in the texts, look-alikes included, so that no text can end its own quotation."""
    longest = max((len(run) for text in texts for run in re.findall("=+", f"{text}\0{as_it_looks(text)}")), default=0)
    return "=" * max(8, longest + 1)


def quoted(fence: str, parts: Iterable[tuple[str, str]]) -> str:
    """Each (heading, text) behind a fence with its heading; a last fence ends the material."""
    return "\n".join([*(f"{fence} {heading}\n{text}" for heading, text in parts), f"{fence} END"])


def plain_name(name: str) -> str:
    """A name from a record, made safe for a heading: one line without `=`."""
    return " ".join(as_it_looks(" ".join(name.split())).replace("=", "").split())
