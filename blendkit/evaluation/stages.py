"""What the earlier stages of a pipe took, from the files that `--manifest` wrote: time, tokens, money, memory."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from blendkit.errors import DataError, RecordError
from blendkit.untrusted import json_value, read_file, typed

# JSON's whole numbers that every reader knows exactly.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class _Counts(msgspec.Struct):
    records: Count
    tokens: Count = 0


class _Memory(msgspec.Struct):
    process: Count


class _Manifest(msgspec.Struct):
    """The fields that the table reads."""

    command: str
    counts: _Counts
    seconds: Amount
    peak_memory_bytes: _Memory
    models: dict[str, Any] | None = None


class _Cost(msgspec.Struct):
    cost: Amount | None = None


def read_stages(paths: list[str]) -> list[dict[str, Any]]:
    """The table `stages`: one row a manifest, in the order given.

    Raises:
        NoInputError: there is no such file.
        DataError: a file is no manifest.
    """
    return [_row(path) for path in paths]


def _row(path: str) -> dict[str, Any]:
    try:
        found = typed(json_value(read_file(path, f"--manifests {path}")), _Manifest)
        models = found.models or {}
        costs = [cost for model in models.values() if isinstance(model, dict) and (cost := typed(model, _Cost).cost) is not None]
    except RecordError as error:
        raise DataError(f"--manifests {path}: expected a file that --manifest of a blendkit command wrote: {error}") from error
    records, seconds = found.counts.records, found.seconds
    return {
        "table": "stages",
        "method": found.command,
        "models": ", ".join(models) or None,
        "records": records,
        "seconds": round(seconds, 1),
        "records_per_second": round(records / seconds, 2) if seconds else None,
        "tokens": found.counts.tokens,
        "cost": round(sum(costs), 6) if costs else None,
        "peak_memory_mb": round(found.peak_memory_bytes.process / 2**20),
    }
