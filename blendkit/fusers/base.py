"""What all fusers share: the top candidates they read, and how the fused one is appended."""

from __future__ import annotations

from typing import Any

from blendkit.errors import RecordError
from blendkit.records import Record, candidates_of


def top_candidates(record: Record) -> list[int]:
    """Indices of the top candidates, best first.

    Raises:
        RecordError: no candidates, or `rank` has not run.
    """
    candidates_of(record)
    if not record.get("top"):
        raise RecordError("top", "expected the indices of the best candidates; `blendkit rank --top 3` writes them")
    return list(record["top"])


def appended(record: Record, name: str, text: str, sources: list[int], **more: Any) -> None:
    """Appends the fused candidate; an earlier one of the same name is kept."""
    record["candidates"].append({"model": name, "text": text, "sources": sources, **more})
