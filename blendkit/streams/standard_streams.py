"""Standard input, output and error as a command needs them, whatever the shell made of them."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from blendkit.errors import BlendkitWarning, OutputError
from blendkit.terminal_text import say


class ReaderGone(Exception):
    """The reader of our output has closed the pipe, as `| head -1` does."""


class _Told(io.FileIO):
    """Standard error. A message that cannot be written is dropped, and the command goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class _Written(io.FileIO):
    """Standard output. A write that fails ends the command."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise fault_of_stdout(error) from error


def fault_of_stdout(error: OSError) -> Exception:
    """What a failed write to standard output means."""
    if isinstance(error, BrokenPipeError):
        return ReaderGone()
    if error.errno == errno.EBADF:
        return OutputError("standard output is closed: redirect it, or name a file with -o")
    return OutputError(f"<stdout>: cannot write: {error.strerror}")


def need_stdout() -> int:
    """The descriptor of standard output. Raises OutputError when it is closed, before anything is computed in vain."""
    if sys.stdout is None:
        raise fault_of_stdout(OSError(errno.EBADF, ""))
    number = sys.stdout.fileno()
    try:
        # To write nothing fails, too, where the descriptor is open for reading only.
        os.write(number, b"")
    except OSError as error:
        raise fault_of_stdout(error) from error
    return number


def make_safe() -> None:
    """Replaces `sys.stdout` and `sys.stderr` so that a closed or full one gives a clear error; to be called first.

    No file that is opened later gets the descriptor of a closed stream. A closed standard input stays None in `sys`.
    """
    # A file gets the lowest free descriptor. These are open for reading only, so that writing to a closed standard output fails as it must.
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        if number == 2:
            os.dup2(devnull := os.open(os.devnull, os.O_WRONLY), number)
            os.close(devnull)
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = _text(_Written(1, "w", closefd=False), sys.stdout, "strict")
    sys.stderr = _text(_Told(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _text(raw: io.FileIO, like: TextIO | None, errors: str) -> TextIO:
    """A text stream as Python makes it: standard error and a terminal get each line at once."""
    by_line = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), like.encoding if like else "utf-8", like.errors if like else errors, line_buffering=by_line)


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Within it, what libraries print, and processes that they start, goes to standard error; nothing of ours may be written meanwhile."""
    with redirect_stdout(sys.stderr):
        try:
            kept = os.dup(1)
        except OSError:  # closed
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def say_warnings() -> None:
    """From here on, warnings of blendkit's own are lines on stderr, each as often as it comes.

    For our own processes: the command and its workers, not a program that imports blendkit.
    """

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, BlendkitWarning):
            say(str(message))
        else:
            shown_otherwise(message, category, *where, **more)

    shown_otherwise = warnings.showwarning
    warnings.filterwarnings("always", category=BlendkitWarning)
    warnings.showwarning = show
