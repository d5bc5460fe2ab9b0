"""Everything that decided a number, in one line, as sacrebleu has it: a score without its signature is not a result."""

from __future__ import annotations

from typing import Any


class Signature:
    """`Signature("pairrm", model="x@1a2b", sched="full")` reads `pairrm|model:x@1a2b|sched:full`.

    `words` stand behind the name without a key. True and False read `yes` and `no`, and None leaves its key out.
    """

    def __init__(self, name: str, *words: str, **facts: Any) -> None:
        self.name, self.words = name, words
        self.facts = {key: value for key, value in facts.items() if value is not None}

    def __str__(self) -> str:
        shown = {True: "yes", False: "no"}
        return "|".join([self.name, *self.words, *(f"{key}:{shown[value] if isinstance(value, bool) else value}" for key, value in self.facts.items())])
