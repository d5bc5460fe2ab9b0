"""Stages of a pipe take turns on the CPU: two that compute on the same cores at once are slower than one after the other.

A turn is one batch. A stage has none while it reads or writes, so that a full pipe keeps nobody from computing.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

from blendkit.models.loading import choose_device
from blendkit.pipeline.engines.options import AUTO

# What says how many threads compute.
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Seconds between two tries for a lock: cores are idle until the stage that is next has seen that they are free.
NEXT, BEHIND = 0.002, 0.02
# Seconds between two looks at whoever has the lock, and those after which it is not waited for any longer.
LOOK, PATIENCE = 0.5, 600.0


class Turns:
    """Turns of all processes of one user that may run on the same cores of this machine.

    They are locks of files, which the system opens when a process ends, however it ends. Whoever waits first holds a lock of its
    own, so that a process that has had a turn goes behind it. Where there can be no such files, and where a process that is stopped
    (Ctrl-Z) has the turn, a batch is computed without one.
    """

    def __init__(self, folder: str | None = None) -> None:
        """The files are in `folder`, or where temporary files are."""
        self._now = self._next = -1
        if not hasattr(os, "getuid"):  # Windows has no such locks.
            return
        same = hashlib.sha256(repr(cores()).encode()).hexdigest()[:8]
        with suppress(OSError):
            stem = os.path.join(folder or tempfile.gettempdir(), f"blendkit-turns-{os.getuid()}-{same}")
            self._now, self._next = _opened(stem), _opened(f"{stem}-next")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn, and has it within the context."""
        try:
            try:
                if _locked(self._next, BEHIND):
                    _locked(self._now, NEXT)
            finally:
                _unlock(self._next)
            yield
        finally:
            _unlock(self._now)


def turns_of(device: str, threads: str) -> Callable[[], AbstractContextManager[None]]:
    """What a stage has while it computes a batch: a turn where it computes on the CPU, and no variable leaves it half of its cores or fewer.

    Nothing on other devices, and where `threads` says how many threads it takes.
    """
    if threads != AUTO:
        return nullcontext

    @cache
    def turns() -> Turns | None:
        import torch

        # By itself torch takes a thread for each core that is one, which may be half of those that the system counts.
        few = any(os.environ.get(name) for name in LIMITS) and 2 * torch.get_num_threads() <= len(cores())
        return Turns() if choose_device(device).type == "cpu" and not few else None

    def turn() -> AbstractContextManager[None]:
        found = turns()
        return nullcontext() if found is None else found.turn()

    return turn


def use_threads(number: int) -> None:
    """Has torch compute with so many threads, whether it is loaded yet or not."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)


def cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _opened(path: str) -> int:
    """The file, made where there is none. Raises OSError where it cannot be written, or is not this user's own: the folder may be everybody's."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        os.close(file)
        raise PermissionError(path)
    return file


def _locked(file: int, every: float) -> bool:
    """Locks the file, and writes down who has it; False where it cannot be had, or is not to be waited for."""
    if file < 0:
        return False
    import fcntl

    began = looked = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(every)
        except OSError:
            return False
        else:
            with suppress(OSError):
                os.pwrite(file, b"%-20d" % os.getpid(), 0)
            return True
        if (now := time.monotonic()) - looked > LOOK:
            looked = now
            if now - began > PATIENCE or _stopped(os.pread(file, 20, 0)):
                return False


def _unlock(file: int) -> None:
    if file >= 0:
        import fcntl

        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _stopped(process: bytes) -> bool:
    """Whether a process is stopped, as far as Linux says so."""
    try:
        about = Path(f"/proc/{int(process)}/stat").read_text()
    except (OSError, ValueError):
        return False
    return about.rpartition(")")[2].split()[0] in "Tt"
