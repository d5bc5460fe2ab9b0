"""Every way a command can end other than well, each with its documented exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from blendkit.terminal_text import shown


class BlendkitError(Exception):
    """A fault that one clear line explains; `exit_code` is what the shell sees."""

    exit_code = 1


class UsageError(BlendkitError):
    """The command was called wrongly (2)."""

    exit_code = 2


class ArgumentError(UsageError, TypeError):
    """A Python function was called with an argument that it does not have, without one that it needs, or with one of another type."""


def got(value: object) -> str:
    """What a value is, for an error that expected something else: its type alone, as the value may be a secret."""
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


class BlendkitWarning(UserWarning):
    """What a person should know of a run that went well, such as texts that were cut. The shell shows it as a line on stderr."""


def require(module: str, extra: str, what: str, package: str | None = None) -> None:
    """Raises UsageError if a library of an extra is not installed: `what` names the flag or the work that needs `package` (else `module`)."""
    if find_spec(module) is None:
        raise UsageError(f"{what} needs {package or module}: pip install 'blendkit[{extra}]'")


def expect_at_least(least: Mapping[str, float], values: Mapping[str, Any]) -> None:
    """Each value, None aside, must be a number of at least its bound.

    Raises:
        UsageError: one is smaller, or no number.
    """
    for name, bound in least.items():
        value = values[name]
        if value is not None and not value >= bound:
            raise UsageError(f"{name}: expected at least {bound:g}, got {value}")


class CheckFailed(BlendkitError):
    """A check of `evaluate` (`--assert`, `--expect`, `--fail-if-worse`) does not hold (3)."""

    exit_code = 3


class DataError(BlendkitError):
    """The stream as a whole is not what it must be (65)."""

    exit_code = 65


class RecordError(DataError):
    """One record is bad; the runner adds the place and asks `--on-error` what to do (65).

    `field` is a path such as `candidates[2].text`; it may be empty. A name in it is escaped.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{shown(field)}: {problem}" if field else problem)

    def __reduce__(self) -> tuple[Any, ...]:
        # The argument of the exception is the whole message, because it is pickled between processes.
        return RecordError, ("", str(self))


class NoInputError(BlendkitError):
    """A file or a model that was named does not exist or cannot be read (66)."""

    exit_code = 66


class EndpointError(BlendkitError):
    """A server could not be reached, or refuses us (69)."""

    exit_code = 69


class SkippedRecords(BlendkitError):
    """All else is done, but `--on-error skip` left some records out (70)."""

    exit_code = 70


class TooManyUnparsed(BlendkitError):
    """All is written, but too many verdicts of a judge could not be read (70). Notes show some of the replies."""

    exit_code = 70


class OutputError(BlendkitError):
    """The output cannot be written (74)."""

    exit_code = 74

    @classmethod
    def of_temporary_files(cls, problem: object) -> OutputError:
        """The error of a temporary file, to which large sets go, that cannot be written."""
        return cls(f"temporary files: {problem}; set TMPDIR to a folder with room")


@contextmanager
def temporary_files() -> Iterator[None]:
    """Within it, what the system says of a temporary file is an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError.of_temporary_files(error.strerror) from error


class OutOfMemory(BlendkitError):
    """Not even one item fits into memory (75)."""

    exit_code = 75


# What torch's allocators (Linux, Windows, CUDA, MPS), cuBLAS, cuDNN and the operating system say in errors that have no type of their own.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine ran out of memory; torch and the operating system say it in several ways."""
    if isinstance(error, BlendkitError):
        return isinstance(error, OutOfMemory)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """What an error says first, in at most 300 characters."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "nothing more")


class WorkerLost(BlendkitError):
    """Workers ended again and again over the same records; most often memory ran out (75)."""

    exit_code = 75


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; what was done is flushed and the exit code is 128 + signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_code = 128 + signal_number
