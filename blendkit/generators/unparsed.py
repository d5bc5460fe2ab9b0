"""Replies that could not be read: why not, how many of a judge's there are, and when that is too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from blendkit.errors import BlendkitError, TooManyUnparsed, UsageError
from blendkit.generators.base import Completion
from blendkit.terminal_text import count_of, excerpt, shown

# So many replies are shown, each to so many characters.
EXAMPLES, SHOWN = 2, 160
QUOTED = 200  # characters of a reply that are kept


@dataclass
class JudgeCount:
    """One judge's replies."""

    asked: int = 0
    unparsed: int = 0
    replies: list[str] = field(default_factory=list)


class Unparsed:
    """Counts judges' replies, and ends a run of which more than `most` (0 to 1) could not be read. May be fed from several threads."""

    def __init__(self, most: float, what: str) -> None:
        """`what` a reply is to be, such as `verdict`. Raises UsageError for a share that is none."""
        if not 0 <= most <= 1:
            raise UsageError(f"--max-unparsed {most:g}: expected a share from 0 to 1, such as 0.2")
        self.most, self.what = most, what
        self.judges: dict[str, JudgeCount] = {}
        self._lock = Lock()

    def __getstate__(self) -> tuple[float, str, dict[str, JudgeCount]]:
        # Workers send theirs; a lock stays where it is.
        return self.most, self.what, self.judges

    def __setstate__(self, state: tuple[float, str, dict[str, JudgeCount]]) -> None:
        self.most, self.what, self.judges = state
        self._lock = Lock()

    def add(self, judge: str, asked: int, unread: Sequence[str]) -> None:
        """Takes the number of a judge's replies on a record, and of each that could not be read its beginning, or why there is none."""
        self._add(judge, JudgeCount(asked, len(unread), [*unread]))

    def merge(self, other: Unparsed) -> None:
        """Adds another worker's counts."""
        for judge, more in other.judges.items():
            self._add(judge, more)

    def _add(self, judge: str, more: JudgeCount) -> None:
        with self._lock:
            count = self.judges.setdefault(judge, JudgeCount())
            count.asked += more.asked
            count.unparsed += more.unparsed
            count.replies = [*count.replies, *more.replies][:EXAMPLES]

    def fault(self) -> BlendkitError | None:
        """The error of a run with too many of them, with a line for each judge and reply as its notes; None where all is well."""
        over = {name: count for name, count in self.judges.items() if count.unparsed > self.most * count.asked}
        if not over:
            return None
        lines = [f"{shown(name)}: {count.unparsed} of {count_of(count.asked, self.what)} ({count.unparsed / count.asked:.0%})" for name, count in over.items()]
        error = TooManyUnparsed(f"{'; '.join(lines)} could not be read, more than --max-unparsed {self.most:g} allows; all records are written")
        for name, count in over.items():
            for reply in count.replies:
                error.add_note(f"a reply of {shown(name)}: {excerpt(reply, SHOWN) or 'nothing'}")
        return error


def why_unread(reply: Completion, limit: int | None = None, flags: str = "") -> str:
    """What a person should know of a reply that could not be read: its beginning, or why there is none.

    One that was cut, at `limit` tokens where it does not say, may have been cut too early: `flags` give more room. With None it is short on purpose.
    """
    said = reply.text.strip()
    if limit is not None and reply.finish_reason == "length":
        tokens = (reply.usage or {}).get("completion_tokens", limit)
        cut = f"cut at {count_of(tokens, 'token')}" + (f"; raise {flags}" if flags else "")
        return f"{cut}: {said}"[:QUOTED] if said else f"{cut}: no answer yet"
    return said[:QUOTED] or f"an empty reply (finish_reason {reply.finish_reason})"
