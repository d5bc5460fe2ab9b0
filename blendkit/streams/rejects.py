"""Reports the bad lines of a run, in the order of the stream."""

from __future__ import annotations

from blendkit.errors import DataError, SkippedRecords, UsageError
from blendkit.streams.lines import BadLine, Writer
from blendkit.terminal_text import count_of, say


def check_on_error(on_error: str, rejects: str | None) -> None:
    """Raises UsageError for a value that is none, and for a file that nothing would be written to."""
    if rejects and on_error != "skip":
        raise UsageError("--rejects needs --on-error skip")
    if on_error not in ("fail", "skip"):
        raise UsageError(f"--on-error {on_error}: expected fail or skip")


class Rejects:
    """Where bad lines go: `--on-error fail` stops at the first, `skip` passes them to `--rejects FILE`."""

    def __init__(self, command: str, source: str, skip: bool, path: str | None) -> None:
        self.command, self.source, self.skip, self.path, self.count = command, source, skip, path, 0
        # Anew with --resume, too: what was skipped is not in the output, so that it is tried again.
        self._writer = Writer(path) if path else None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *ending: object) -> None:
        if self._writer:
            self._writer.close()

    def take(self, bad: BadLine, place: str | None = None) -> None:
        """Raises DataError under `fail`; otherwise says so, and keeps line and reason. `place` stands for source and line."""
        message = f"{place or f'{self.source}:{bad.number}'}: {bad.error}"
        if not self.skip:
            raise DataError(message)
        self.count += 1
        say(f"skipped {message}", self.command)
        if self._writer:
            self._writer.write([{"line": bad.number, "error": str(bad.error), "record": bad.raw.decode(errors="replace")}])

    def problem(self) -> str | None:
        """How many bad lines there were, and where they are; None where there was none."""
        if not self.count:
            return None
        they_are, them = ("it is", "it") if self.count == 1 else ("they are", "them")
        where = f"{they_are} in {self.path}" if self.path else f"--rejects FILE keeps {them}"
        return f"{count_of(self.count, 'bad record was', 'bad records were')} skipped; {where}"

    def raise_if_any(self) -> None:
        """Raises SkippedRecords, so that a script can see that not all is there."""
        if problem := self.problem():
            raise SkippedRecords(problem)
