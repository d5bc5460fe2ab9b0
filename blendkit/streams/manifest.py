"""What a run did, in one JSON file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from blendkit.credentials import arguments_without_secrets
from blendkit.errors import OutputError
from blendkit.streams.counts import Counts
from blendkit.version import VERSION


class Manifest:
    """`--manifest FILE`: what ran, on what, with which result; written however the run ends."""

    def __init__(self, path: str | None, run: dict[str, Any], counts: Counts, describe: Callable[[], dict[str, Any]]) -> None:
        """`run` is what is known at the start, and `describe` tells at the end what decided the results."""
        self.path, self.run, self.counts, self.describe = path, run, counts, describe
        self._started = time.monotonic()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self.path:
            return
        seconds = time.monotonic() - self._started
        content = {
            "blendkit": VERSION,
            "versions": library_versions(),
            "arguments": arguments_without_secrets(sys.argv[1:]),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **self.run,
            "ended": "done" if kind is None else kind.__name__,
            **self.describe(),
            "counts": self.counts.described(),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }
        try:
            Path(self.path).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        except OSError as failure:
            raise OutputError(f"{self.path}: cannot write: {failure.strerror}") from failure


def library_versions() -> dict[str, str]:
    """Python's version, and those of the libraries that decide results, where they are loaded."""
    loaded = {name: sys.modules.get(name) for name in ("torch", "transformers", "tokenizers", "vllm")}
    return {"python": sys.version.split()[0], **{name: str(getattr(module, "__version__", "")) for name, module in loaded.items() if module is not None}}


def _high_water() -> int:
    """Peak bytes by Linux's own account of this program; what `getrusage` says began with the size of whoever started it. 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def peak_memory() -> dict[str, int]:
    """Peak bytes of this process where the system counts them, and of the CUDA device if one was used."""
    peaks = {}
    try:
        import resource
    except ImportError:  # Windows does not count it.
        pass
    else:
        scale = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = _high_water() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks
