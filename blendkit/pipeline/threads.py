"""Work on several windows at a time, for stages that wait for servers: one slow answer must not hold up the next window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any


class _End(Exception):
    """The source has no further item."""


def overlapped(do: Callable[[Any, Callable[[], None]], Any], items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """`do(item, my_turn)` for each item, in `ahead` threads; results in the order of the items.

    Items are read in the threads, one at a time, so that results that are ready do not wait for a slow source; at most
    `ahead` are read and not yet yielded. `my_turn()` returns when all earlier results were taken. An exception from an
    item, or from reading it, is raised in that item's place.
    """
    reading, room, turn = threading.Lock(), threading.Semaphore(ahead), threading.Condition()
    results: dict[int, tuple[Any, BaseException | None]] = {}
    numbers = count()
    current, stopped = 0, False

    def one(number: int, item: Any) -> Any:
        def my_turn() -> None:
            with turn:
                turn.wait_for(lambda: stopped or current >= number)

        return do(item, my_turn)

    def work() -> None:
        while True:
            room.acquire()
            with reading:
                if stopped:
                    return
                number = next(numbers)
                outcome: tuple[Any, BaseException | None] = (None, None)
                item = None
                try:
                    item = next(items)
                except StopIteration:
                    outcome = (None, _End())
                except BaseException as error:
                    outcome = (None, error)
            if outcome[1] is None:
                try:
                    outcome = (one(number, item), None)
                except BaseException as error:
                    outcome = (None, error)
            with turn:
                results[number] = outcome
                turn.notify_all()

    for place in range(ahead):
        threading.Thread(target=work, name=f"window-{place}", daemon=True).start()
    try:
        while True:
            with turn:
                while current not in results:
                    turn.wait()
                result, error = results.pop(current)
            if isinstance(error, _End):
                return
            if error is not None:
                raise error
            yield result
            with turn:
                current += 1
                turn.notify_all()
            room.release()
    finally:
        # No more results are taken: threads that wait for their turn or for room go on and end.
        with turn:
            stopped = True
            turn.notify_all()
        room.release(ahead)
