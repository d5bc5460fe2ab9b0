"""Ctrl-C and SIGTERM: what is being written is written to its end, then the command ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from blendkit.errors import Interrupted

_waiting: list[int] = []
_arrived: list[int] = []
_depth = 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    # A second signal ends even a write that hangs because the reader sleeps.
    if _depth and not _waiting:
        _waiting.append(number)
    else:
        raise Interrupted(number)


def catch_signals() -> None:
    """SIGINT and SIGTERM become `Interrupted`; the first one waits for a write in progress."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def raise_if_signalled() -> None:
    """Raises Interrupted when a signal has arrived, in case a C extension has swallowed its first exception."""
    if _arrived:
        raise Interrupted(_arrived[0])


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within it, a first SIGINT or SIGTERM waits until the end."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if _waiting and not _depth:
        raise Interrupted(_waiting.pop())
