"""One step of a benchmark: a script in a process of its own with a time limit, whose JSON rows are taken as it prints them.

Processes are forked, so that a step may begin with the libraries loaded, or (`loaded=False`) with a fresh interpreter.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn


def run(words: Sequence[str], limit: float, take: Callable[[dict], None], loaded: bool = True) -> str | None:
    """Runs a script with its arguments for at most `limit` seconds. Gives None, or in one line why it did not end well."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as errors:
        process = os.fork()
        if not process:
            _be(words, loaded, writing, errors.fileno())
        os.close(writing)
        reader = threading.Thread(target=_rows, args=(reading, take), daemon=True)
        reader.start()
        status = None
        try:
            status = _ended(process, limit)
        finally:
            # With what it started itself: a compiler's helpers would go on, and keep the pipe open.
            for kill in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    if kill is os.killpg or status is None:
                        kill(process, signal.SIGKILL)
            if status is None:
                os.waitpid(process, 0)
        reader.join(5)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if status is None:
        return f"not done within {limit:.0f} seconds, and ended"
    if status == 0:
        return None
    ending = f"exit code {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
    return reason(said) or ending


def reason(said: str) -> str:
    """The line of an error output that says what happened: a traceback's exception, or the last line."""
    lines = said.splitlines()
    last_frame = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=-1)
    named = [line for line in lines[last_frame + 1 :] if re.match(r"[A-Za-z_][\w.]*(:|$)", line)] if last_frame >= 0 else []
    found = named[0] if named else next((line for line in reversed(lines) if line.strip()), "")
    return " ".join(found.split())[:300]


def _rows(reading: int, take: Callable[[dict], None]) -> None:
    with open(reading, errors="replace") as stream:
        for line in stream:
            if line.startswith("{"):
                with suppress(json.JSONDecodeError):
                    take(json.loads(line))


def _ended(process: int, limit: float) -> int | None:
    """The exit code, negative for a signal; None when the time is up."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def _be(words: Sequence[str], loaded: bool, writing: int, errors: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(writing, 1)
        os.dup2(errors, 2)
        if not loaded:
            os.execv(sys.executable, [sys.executable, *words])
        sys.stdout = sys.__stdout__ = open(1, "w", buffering=1)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
