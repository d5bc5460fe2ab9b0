"""Progress on stderr: a bar on a terminal, one JSON line every few seconds for logs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from blendkit.streams.counts import Counts
from blendkit.terminal_text import count_of

JSON_SECONDS = 5.0


class Progress:
    """`update` may be called as often as one likes; `close` leaves the terminal clean."""

    def __init__(self, command: str, kind: str, total: int | None) -> None:
        """`kind` is auto, bar, json or none; `total` is the input's bytes, None where they are unknown."""
        self._command, self._total = command, total
        self._started = self._last = time.monotonic()
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "none"
        self._kind, self._bar, self._task = kind, None, None
        if kind == "bar":
            self._bar, self._task = _rich_bar(command, total)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *ending: object) -> None:
        self.close()

    def update(self, counts: Counts) -> None:
        """Shows the counts."""
        if self._bar is not None:
            self._bar.update(self._task, completed=counts.input_bytes, note=self._note(counts))
        elif self._kind == "json" and time.monotonic() - self._last >= JSON_SECONDS:
            self._last = time.monotonic()
            elapsed = self._last - self._started
            row: dict[str, Any] = {"command": self._command, "records": counts.records, "tokens": counts.tokens, "seconds": round(elapsed, 1)}
            row["records_per_second"] = round(counts.records / elapsed, 3)
            if self._total and counts.input_bytes:
                row["eta_seconds"] = round(elapsed * (self._total / counts.input_bytes - 1), 1)
            print(json.dumps(row), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self, counts: Counts) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        speed = f", {counts.tokens / elapsed:,.0f} tokens/s" if counts.tokens else ""
        return f"{count_of(counts.records, 'record')}, {counts.records / elapsed:.1f}/s{speed}"


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
