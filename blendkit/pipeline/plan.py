"""The settings of a run: how many records are in flight, how large a batch may be, and who hears of bad lines and progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from blendkit.pipeline.work import Job
from blendkit.streams.counts import Counts
from blendkit.streams.lines import BadLine, Line

Window = list[Line | BadLine]


@dataclass
class Plan:
    """How the runner works: records in flight, tokens a batch, and where bad lines go.

    `on_bad` raises (the default: the first bad record ends the run) or takes note and returns. `budgets` are the tokens a
    batch of each job that has run: `batch_tokens` of a budgeted one, until memory runs out.
    """

    window: int = 64
    batch_tokens: int = 8192
    on_bad: Callable[[BadLine], None] | None = None
    tick: Callable[[Counts], None] = lambda counts: None
    # False: nobody else's thread reads the records, whatever the stage allows.
    ahead: bool = True
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    counts: Counts = field(default_factory=Counts)
    budgets: dict[Job, float] = field(default_factory=dict)

    def close(self) -> None:
        """Closes the jobs that have run."""
        for job in self.budgets:
            job.close()
