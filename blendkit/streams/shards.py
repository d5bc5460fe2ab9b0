"""`--shard`: the part of a stream that this process works on, by number or by a scheduler's variables."""

from __future__ import annotations

import os

from blendkit.errors import UsageError
from blendkit.streams.lines import Shard

# A scheduler's variables: this task's number, the number of the first task, how many tasks there are.
SCHEDULERS = {
    "slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    "k8s": ("JOB_COMPLETION_INDEX", "", ""),
}


def shard_of(spec: str) -> Shard:
    """(I, N) of `I/N`, I from 0; of `slurm` or `slurm/N`, inside a job array; of `k8s/N`, inside an indexed job.

    Raises:
        UsageError: there is no such part, or the scheduler's variable is not set.
    """
    number: int | None
    total: int | None
    first, mark, last = spec.partition("/")
    if first in SCHEDULERS:
        task, least, count = SCHEDULERS[first]
        number = _variable(task, spec) - (_variable(least, spec) if least in os.environ else 0)
        total = _number(last) if mark else _variable(count, spec) if count else None
    else:
        number, total = _number(first), _number(last)
    if number is None or not total or not 0 <= number < total:
        raise UsageError(f"--shard {spec}: expected I/N with I from 0 to N - 1, slurm, slurm/N or k8s/N")
    return number, total


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _variable(name: str, spec: str) -> int:
    number = _number(os.environ.get(name, ""))
    if number is None:
        raise UsageError(f"--shard {spec}: the variable {name} holds no number; the scheduler sets it for each task")
    return number
