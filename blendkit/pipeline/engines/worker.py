"""The far side of a worker, whatever engine runs it: a question is a method's name and its arguments, an answer a result or an error."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from blendkit.errors import BlendkitError, OutOfMemory, out_of_memory, require
from blendkit.pipeline.engines.pool import About, Outcome, Replica, Said, Slim
from blendkit.streams import collect_seldom
from blendkit.streams.standard_streams import say_warnings

Answer = tuple[bool, Any]


class Served:
    """Makes its stage at the first question, and answers every question with a result or an exception."""

    def __init__(self, pickled: bytes) -> None:
        """`pickled` is the function that makes the stage, by cloudpickle."""
        say_warnings()
        collect_seldom()
        self._pickled = pickled
        self._replica: Replica | None = None

    def answer(self, question: str, arguments: tuple[Any, ...]) -> Answer:
        """(True, the result) or (False, the exception)."""
        try:
            if self._replica is None:
                self._replica = Replica(_unpickled(self._pickled))
            return True, getattr(self._replica, question)(*arguments)
        except BlendkitError as error:
            return False, error
        except Exception as error:
            # An exception of a library may not survive pickling, so only its words are sent.
            words = f"{type(error).__name__}: {error}"
            fault = OutOfMemory(f"not enough memory in a worker: {words}") if out_of_memory(error) else RuntimeError(words)
            fault.add_note(traceback.format_exc())
            return False, fault


class Asking:
    """A worker as the pool sees it: `ask` carries a question there and an answer back."""

    def __init__(self, ask: Callable[[str, tuple[Any, ...]], Answer], end: Callable[[], None]) -> None:
        self._ask, self.end = ask, end

    def about(self) -> About:
        """What the worker's stage is."""
        return self._result("about")  # type: ignore[no-any-return]

    def work(self, window: list[Slim], batch_tokens: int) -> Outcome:
        """The window's outcome."""
        return self._result("work", window, batch_tokens)  # type: ignore[no-any-return]

    def describe(self) -> Said:
        """What the worker's stage says at the end."""
        return self._result("describe")  # type: ignore[no-any-return]

    def _result(self, question: str, *arguments: Any) -> Any:
        fine, result = self._ask(question, arguments)
        if not fine:
            raise result
        return result


def pickled(make: Callable[[], Any]) -> bytes:
    """The function with all that it refers to. Raises UsageError when cloudpickle is not installed."""
    require("cloudpickle", "engines", "work in other processes")
    import cloudpickle

    return bytes(cloudpickle.dumps(make))


def _unpickled(data: bytes) -> Callable[[], Any]:
    import cloudpickle

    return cloudpickle.loads(data)  # type: ignore[no-any-return]
