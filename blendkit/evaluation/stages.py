"""What the earlier stages of a pipe took, from the files that `--manifest` wrote: time, tokens, money, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from blendkit.errors import DataError, NoInputError


def read_stages(paths: list[str]) -> list[dict[str, Any]]:
    """The table `stages`: one row a manifest, in the order given.

    Raises:
        NoInputError: there is no such file.
        DataError: a file is no manifest.
    """
    return [_row(path) for path in paths]


def _row(path: str) -> dict[str, Any]:
    try:
        found = orjson.loads(Path(path).read_bytes())
        counts = found["counts"]
        records, seconds = int(counts["records"]), float(found["seconds"])
        models = found.get("models") or {}
        costs = [model["cost"] for model in models.values() if isinstance(model, dict) and "cost" in model]
        return {
            "table": "stages",
            "method": str(found["command"]),
            "models": ", ".join(models) or None,
            "records": records,
            "seconds": round(seconds, 1),
            "records_per_second": round(records / seconds, 2) if seconds else None,
            "tokens": int(counts.get("tokens", 0)),
            "cost": round(sum(costs), 6) if costs else None,
            "peak_memory_mb": round(found["peak_memory_bytes"]["process"] / 2**20),
        }
    except OSError as error:
        raise NoInputError(f"--manifests {path}: {error.strerror}") from error
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise DataError(f"--manifests {path}: expected a file that --manifest of a blendkit command wrote") from None
