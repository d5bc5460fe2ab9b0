"""Progress on stderr: a bar on a terminal, one JSON line every few seconds for logs, or nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from blendkit.streams.counts import Counts
from blendkit.terminal_text import count_of

JSON_SECONDS = 5.0


class Progress:
    """`update` may be called as often as one likes; `close` leaves the terminal clean, and the end of the context tells how the run ended."""

    def __init__(self, command: str, kind: str, total: int | None) -> None:
        """`kind` is auto, bar, json or none; `total` is the input's bytes, None where they are unknown."""
        self._command, self._total, self._counts = command, total, Counts()
        self._started = time.monotonic()
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "none"
        self._kind, self._bar, self._task = kind, None, None
        self._ended = threading.Event()
        if kind == "bar":
            self._bar, self._task = _rich_bar(command, total)
        elif kind == "json":
            # A thread of its own: a batch may take minutes, and a log without a line looks like a run that hangs.
            threading.Thread(target=self._tell_now_and_then, daemon=True).start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *ending: object) -> None:
        self.close()
        if self._kind == "json":
            self._tell("done" if kind is None else kind.__name__)

    def update(self, counts: Counts) -> None:
        """Shows the counts."""
        self._counts = counts
        if self._bar is not None:
            self._bar.update(self._task, completed=self._read_bytes(), note=self._note(counts))

    def close(self) -> None:
        """Ends the bar; may be called twice."""
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tell_now_and_then(self) -> None:
        while not self._ended.wait(JSON_SECONDS):
            self._tell(None)

    def _tell(self, ended: str | None) -> None:
        """One JSON line; `ended` as in the manifest, None while the run goes on."""
        counts, elapsed = self._counts, max(time.monotonic() - self._started, 1e-9)
        row: dict[str, Any] = {"command": self._command, "records": counts.records, "tokens": counts.tokens, "seconds": round(elapsed, 1)}
        row["records_per_second"] = round(counts.records / elapsed, 3)
        read = self._read_bytes()
        if self._total:
            row |= {"input_bytes": round(read), "total_bytes": self._total}
        if ended is None:
            hand = counts.in_hand
            row["in_hand"] = {"records": hand.records, "works": hand.works, "computed": hand.computed}
            if self._total and read:
                row["eta_seconds"] = round(elapsed * max(self._total / read - 1, 0), 1)
        else:
            row["ended"] = ended
        print(json.dumps(row), file=sys.stderr, flush=True)

    def _read_bytes(self) -> float:
        """Bytes of the input that are done; of a window in work, as many as of its works."""
        hand = self._counts.in_hand
        return self._counts.input_bytes + hand.input_bytes * hand.share

    def _note(self, counts: Counts) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        speed = f", {counts.tokens / elapsed:,.0f} tokens/s" if counts.tokens else ""
        hand = counts.in_hand
        working = f", {hand.share:.0%} of the next {hand.records}" if hand.works else ""
        return f"{count_of(counts.records, 'record')}{working}, {counts.records / elapsed:.1f}/s{speed}"


def _rich_bar(command: str, total: int | None) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    # The length of a pipe is unknown, so it gets no bar and no ETA.
    columns += [BarColumn(), TimeRemainingColumn()] if total else [TimeElapsedColumn()]
    bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task(command, total=total, note="starting")
