"""Standard input, output and error as a command needs them, whatever the shell made of them."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from blendkit.errors import OutputError


class ReaderGone(Exception):
    """Whoever read our output has had enough (`| head -1`)."""


class _Told(io.FileIO):
    """Standard error: messages that nobody can take change nothing."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class _Written(io.FileIO):
    """Standard output: what cannot be written ends the command."""

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
    """Its number. Raises OutputError when it is closed, before anything is computed that nobody would get."""
    if sys.stdout is None:
        raise fault_of_stdout(OSError(errno.EBADF, ""))
    number = sys.stdout.fileno()
    try:
        # Nothing is written; a number that is only open for reading says so.
        os.write(number, b"")
    except OSError as error:
        raise fault_of_stdout(error) from error
    return number


def make_safe() -> None:
    """To be called first: of closed streams no file takes the number, and a closed or full one is told as what it is.

    A closed standard input stays None in `sys`.
    """
    # The lowest free number is what a file gets. To write into this one fails, as it must for standard output.
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        if number == 2:
            os.dup2(devnull := os.open(os.devnull, os.O_WRONLY), number)
            os.close(devnull)
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = _text(_Written(1, "w", closefd=False), sys.stdout, "strict")
    sys.stderr = _text(_Told(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _text(raw: io.FileIO, like: TextIO | None, errors: str) -> TextIO:
    """As Python makes them: standard error and a terminal get each line at once."""
    by_line = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), like.encoding if like else "utf-8", like.errors if like else errors, line_buffering=by_line)
