"""Table 1 of LLM-Blender for any stream: sources, examples, and how long x and the reference are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from blendkit.errors import DataError
from blendkit.records import Record, source_text


@dataclass
class Share:
    """Sums over the records of one source."""

    examples: int = 0
    read: int = 0
    written: int = 0
    outputs: int = 0
    candidates: int = 0

    def row(self, source: str, unit: str) -> dict[str, Any]:
        """Means a record, of the references over those that have one; `unit` is words or tokens."""
        n = max(1, self.examples)
        means = {f"input_{unit}": round(self.read / n, 1), f"output_{unit}": round(self.written / max(1, self.outputs), 1)}
        return {"source": source, "examples": self.examples, **means, "candidates": round(self.candidates / n, 1)}


def table_1(records: Iterable[Record], tokenizer: str | None = None) -> list[dict[str, Any]]:
    """A row a source, in the order of the stream, and a last one for all; lengths are in words, or in tokens of a named tokenizer.

    Raises:
        DataError: there is no record.
        NoInputError: there is no such tokenizer.
    """
    count = _counter(tokenizer)
    shares: dict[str, Share] = {}
    total = Share()
    for record in records:
        source = str(record.get("source") or record["id"].rpartition("/")[0] or "–")
        read = count(source_text(record))
        written = None if record.get("output") is None else count(record["output"])
        for share in (shares.setdefault(source, Share()), total):
            share.examples += 1
            share.read += read
            share.outputs += written is not None
            share.written += written or 0
            share.candidates += len(record.get("candidates", []))
    if not total.examples:
        raise DataError("no records to count: the input is empty")
    unit = "words" if tokenizer is None else "tokens"
    return [*(share.row(source, unit) for source, share in shares.items()), total.row("all", unit)]


def _counter(tokenizer: str | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: len(text.split())
    from transformers import AutoTokenizer

    from blendkit.models.pretrained import pretrained

    known = pretrained(AutoTokenizer, tokenizer, "tokenizer")
    return lambda text: len(known(text, add_special_tokens=False)["input_ids"])
