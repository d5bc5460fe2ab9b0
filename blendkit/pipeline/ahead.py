"""Records read and planned in a thread while a device computes, and windows of as many of them as fill it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Batches that the first round of a window fills: the last one of a window is a part of a batch.
BATCHES = 8
# Seconds that a record waits for others to fill its window while the device has nothing to do.
PATIENCE = 0.2


def gathered(begin: Callable[[Any], Any], items: Iterable[Any], size: Callable[[Any], int], most: int, enough: int) -> Iterator[list[Any]]:
    """Windows of what `begin` makes of each item, in order: at most `most`, and no more behind a `size` of `enough` in sum.

    One thread reads the items and begins them, up to one window ahead of the windows that are taken. A window that is not full
    is given `PATIENCE` after its first item was there, so that a slow source's items do not wait for those that follow. What goes
    wrong with an item, or with reading it, is raised behind the window of those before it.
    """
    changed = threading.Condition()
    ready: deque[tuple[Any, int]] = deque()
    fault: BaseException | None = None
    ahead = 0
    ended = stopped = False

    def room() -> bool:
        return stopped or (len(ready) < most and ahead < enough)

    def work() -> None:
        nonlocal ahead, ended, fault
        try:
            for item in items:
                begun = begin(item)
                with changed:
                    ready.append((begun, size(begun)))
                    ahead += ready[-1][1]
                    changed.notify_all()
                    changed.wait_for(room)
                    if stopped:
                        return
        except BaseException as error:
            fault = error
        finally:
            with changed:
                ended = True
                changed.notify_all()

    threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        while True:
            window: list[Any] = []
            with changed:
                changed.wait_for(lambda: ready or ended)
                filled, until = 0, time.monotonic() + PATIENCE
                while len(window) < most and filled < enough:
                    if not changed.wait_for(lambda: ready or ended, until - time.monotonic()) or not ready:
                        break
                    begun, length = ready.popleft()
                    window.append(begun)
                    filled += length
                    ahead -= length
                    changed.notify_all()
            if window:
                yield window
            elif fault is not None:
                raise fault
            else:
                return
    finally:
        with changed:
            stopped = True
            changed.notify_all()
