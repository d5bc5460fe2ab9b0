"""How many of a judge's verdicts could not be read, and when that is too many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

from blendkit.errors import BlendkitError, TooManyUnparsed, UsageError
from blendkit.judges.base import Opinion
from blendkit.terminal_text import count_of, excerpt, shown

# So many replies are shown, each to so many characters.
EXAMPLES, SHOWN = 2, 160


@dataclass
class JudgeCount:
    """One judge's verdicts; those that wait for a batch do not count."""

    verdicts: int = 0
    unparsed: int = 0
    replies: list[str] = field(default_factory=list)


class Unparsed:
    """Counts a judge's verdicts, and ends a run of which more than `most` (0 to 1) could not be read. May be fed from several threads."""

    def __init__(self, most: float) -> None:
        """Raises UsageError for a share that is none."""
        if not 0 <= most <= 1:
            raise UsageError(f"--max-unparsed {most:g}: expected a share from 0 to 1, such as 0.2")
        self.most = most
        self.judges: dict[str, JudgeCount] = {}
        self._lock = Lock()

    def __getstate__(self) -> tuple[float, dict[str, JudgeCount]]:
        # Workers send theirs; a lock stays where it is.
        return self.most, self.judges

    def __setstate__(self, state: tuple[float, dict[str, JudgeCount]]) -> None:
        self.most, self.judges = state
        self._lock = Lock()

    def add(self, judge: str, opinions: Iterable[Opinion]) -> None:
        """Takes a judge's opinions on a record."""
        with self._lock:
            count = self.judges.setdefault(judge, JudgeCount())
            for opinion in opinions:
                if opinion.waiting:
                    continue
                count.verdicts += 1
                if opinion.verdict == "unparsed":
                    count.unparsed += 1
                    if len(count.replies) < EXAMPLES:
                        count.replies.append(opinion.reason or "")

    def merge(self, other: Unparsed) -> None:
        """Adds another worker's counts."""
        with self._lock:
            for judge, more in other.judges.items():
                count = self.judges.setdefault(judge, JudgeCount())
                count.verdicts += more.verdicts
                count.unparsed += more.unparsed
                count.replies = [*count.replies, *more.replies][:EXAMPLES]

    def fault(self) -> BlendkitError | None:
        """The error of a run with too many of them, with a line for each judge and reply as its notes; None where all is well."""
        over = {name: count for name, count in self.judges.items() if count.unparsed > self.most * count.verdicts}
        if not over:
            return None
        lines = [
            f"{shown(name)}: {count.unparsed} of {count_of(count.verdicts, 'verdict')} ({count.unparsed / count.verdicts:.0%})" for name, count in over.items()
        ]
        error = TooManyUnparsed(f"{'; '.join(lines)} could not be read, more than --max-unparsed {self.most:g} allows; all records are written")
        for name, count in over.items():
            for reply in count.replies:
                error.add_note(f"a reply of {shown(name)}: {excerpt(reply, SHOWN) or 'nothing'}")
        return error
