"""Counts of what a run has done so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_counting = threading.Lock()


@dataclass
class Counts:
    """`works` were asked for by the stage, `computed` were run, as equal works run once; `tokens` and `input_bytes` are of those that were run and read."""

    records: int = 0
    skipped: int = 0
    input_bytes: int = 0
    works: int = 0
    computed: int = 0
    tokens: int = 0
    budget_halvings: int = 0

    def add(self, **more: int) -> None:
        """Adds to the counts of these names, under a lock: several threads may work on windows."""
        with _counting:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)
