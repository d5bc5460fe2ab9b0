"""The records that the page shows one by one, made small enough for one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blendkit.aggregate import settled
from blendkit.evaluation.examples import JudgedExample, rank_of
from blendkit.records import Record, source_text, verdicts_of
from blendkit.terminal_text import shown

# Characters of a text that the page shows; a model that never stopped must not make the page too large to open.
SHOWN = 20_000


@dataclass
class Browser:
    """Keeps the first `limit` records."""

    limit: int
    records: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: Record, example: JudgedExample) -> None:
        """Takes a record, unless the page is full."""
        if len(self.records) >= self.limit:
            return
        candidates = []
        for index, candidate in enumerate(record["candidates"]):
            ranks = {name: values[index] for name, values in record.get("ranks", {}).items() if index < len(values)}
            for name, standings in (("oracle", example.oracle), ("judge", example.judge)):
                rank = rank_of(standings, index)
                if rank is not None and not (name == "judge" and example.judge is example.oracle):
                    ranks[name] = rank
            entry = {"model": shown(example.methods[index]), "scores": _named(candidate.get("scores", {})), "ranks": _named(ranks), **_cut(candidate["text"])}
            if candidate.get("sources"):
                entry["sources"] = candidate["sources"]
            candidates.append(entry)
        verdicts = {
            shown(name): [[a, b, found.verdict, found.probability] for (a, b), found in settled(rows).items()] for name, rows in verdicts_of(record).items()
        }
        source = source_text(record) if any(record.get(key) is not None for key in ("instruction", "input", "messages")) else ""
        reference = record.get("output")
        self.records.append(
            {
                "id": shown(record["id"]),
                "source": _cut(source),
                "reference": None if reference is None else _cut(reference),
                "candidates": candidates,
                "verdicts": verdicts,
                "top": record.get("top", []),
            }
        )


def _named(values: dict[str, Any]) -> dict[str, Any]:
    return {shown(name): value for name, value in values.items()}


def _cut(text: str) -> dict[str, Any]:
    return {"text": text[:SHOWN], "characters": len(text)}
