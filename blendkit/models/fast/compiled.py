"""torch's compiler: its kernels are kept between runs, and a person is told what a first batch waits for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from blendkit.errors import OutputError
from blendkit.models.packaged import user_caches
from blendkit.terminal_text import say

KEPT = "TORCHINDUCTOR_CACHE_DIR"
# Seconds that a compilation takes before it is worth a word.
SOON = 3.0
# What torch may compile of one function in a process.
KINDS = 64


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is called, for tensors of whatever lengths."""
    keep_kernels()
    _tell()
    # Each width of a head, number type and kind of scores is compiled anew; by itself torch gives up behind the eighth of a process.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    # With `fullgraph` it fails, and is told, where it would otherwise give up in silence and compute step by step: FlexAttention all T×T scores.
    found: Callable[..., Any] = torch.compile(function, dynamic=True, fullgraph=True)
    return found


def keep_kernels() -> None:
    """Lets torch's compiler (and Triton, which it tells) keep what it makes in the user's cache: its own place for that is emptied at a restart.

    A folder that the environment names is left as it is, and so is torch's own where the user's cache cannot be written.
    """
    from torch._inductor.runtime.runtime_utils import default_cache_dir  # type: ignore[attr-defined]

    # Importing it may have put its own place there.
    if os.environ.get(KEPT) not in (None, "", default_cache_dir()):
        return
    try:
        folder = user_caches(os.environ.get("XDG_CACHE_HOME", "")) / "blendkit" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
    except (OutputError, OSError):
        return
    if os.access(folder, os.W_OK):
        os.environ[KEPT] = str(folder)
        # For kernels that are Triton's alone.
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


class Telling:
    """Says that something is compiled, once that has taken a while, and how long it took in all."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        self._began, self._told = 0.0, False

    def start(self, *_: Any) -> None:
        """A compilation begins; others within it do not count."""
        self._began, self._told = time.monotonic(), False
        self._timer = threading.Timer(SOON, self._say)
        self._timer.daemon = True
        self._timer.start()

    def end(self, *_: Any) -> None:
        """It has ended, well or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._told:
            say(f"compiling, once: {time.monotonic() - self._began:.0f} s")

    def _say(self) -> None:
        self._told = True
        kept = os.environ.get(KEPT)
        say(f"compiling kernels for this device, once{f'; later runs find them in {kept}' if kept else ''}")


@cache
def _tell() -> None:
    from torch._dynamo.callback import on_compile_end, on_compile_start

    telling = Telling()
    on_compile_start(telling.start)
    on_compile_end(telling.end)
