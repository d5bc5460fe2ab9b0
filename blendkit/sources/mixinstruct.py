"""MixInstruct (LLM-Blender, section 2.1): instructions and references of four sources, curated, deduplicated and split; Table 1 of the paper.

Candidates are then `blendkit generate`'s, verdicts `blendkit judge`'s.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from blendkit.errors import DataError, UsageError
from blendkit.records import Record
from blendkit.registry import nearest
from blendkit.seeding import seeded
from blendkit.sources.forms import published
from blendkit.sources.reading import rows
from blendkit.sources.rows import Fields, SourceRow
from blendkit.terminal_text import count_of

# Words of an instruction with its input, and of a reference, that are kept.
LONGEST = (512, 1024)
SPLITS = {"train": 100_000, "val": 5_000, "test": 5_000}
HUB = "llm-blender/mix-instruct"


@dataclass(frozen=True)
class Source:
    """Where a source is on the hub, how many of its examples the paper's Table 1 has, and how a row is read (None: left out)."""

    hub: str
    size: int
    read: Callable[[Fields], tuple[str, str, str] | None]


def _alpaca_gpt4(row: Fields) -> tuple[str, str, str]:
    return row["instruction"], row.get("input") or "", row["output"]


def _dolly(row: Fields) -> tuple[str, str, str]:
    return row["instruction"], row.get("context") or "", row["response"]


def _gpt4all_laion(row: Fields) -> tuple[str, str, str] | None:
    # The set mixes several sources; LAION's part says so.
    if "laion" not in str(row.get("source", "laion")).lower():
        return None
    return row["prompt"], "", row["response"]


def _sharegpt(row: Fields) -> tuple[str, str, str] | None:
    turns = row.get("conversations") or row.get("items") or []
    roles = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "assistant": "assistant"}
    said = [(roles.get(str(turn.get("from", turn.get("role"))), ""), turn.get("value", turn.get("content"))) for turn in turns]
    while said and said[0][0] != "user":
        said = said[1:]
    if len(said) < 2 or said[1][0] != "assistant":
        return None
    # Some dumps hold HTML.
    return str(said[0][1]), "", re.sub(r"<[^<>]{1,100}>", "", str(said[1][1]))


# In the order of Table 1.
SOURCES = {
    "alpaca-gpt4": Source("vicgalle/alpaca-gpt4", 22_862, _alpaca_gpt4),
    "dolly-15k": Source("databricks/databricks-dolly-15k", 7_584, _dolly),
    "gpt4all-laion": Source("nomic-ai/gpt4all_prompt_generations", 76_552, _gpt4all_laion),
    "sharegpt": Source("anon8231489123/ShareGPT_Vicuna_unfiltered", 3_002, _sharegpt),
}


def read_source(name: str, given: Iterable[SourceRow]) -> Iterator[Record]:
    """Records of one source, `id` NAME/NUMBER.

    Raises:
        DataError: a row is not of the source's published form.
    """
    if name not in SOURCES:
        raise UsageError(f"source {name}: expected one of {', '.join(SOURCES)}{nearest(name, SOURCES)}")

    def read(row: Fields, number: int) -> Record | None:
        found = SOURCES[name].read(row)
        if found is None:
            return None
        instruction, context, output = (str(part or "").strip() for part in found)
        return {"id": f"{name}/{number}", "instruction": instruction, "input": context, "output": output, "source": name}

    return published(read, given, f"of the published form of {name}")


def curated(records: Iterator[Record], seen: set[str]) -> Iterator[Record]:
    """Leaves out empty and over-long texts, and questions that were `seen` before; letter case and spaces do not count."""
    for record in records:
        question = f"{record['instruction']}\n{record['input']}"
        if not record["instruction"] or not record["output"]:
            continue
        if len(question.split()) > LONGEST[0] or len(record["output"].split()) > LONGEST[1]:
            continue
        key = " ".join(question.lower().split())
        if key not in seen:
            seen.add(key)
            yield record


def shares(total: int) -> dict[str, int]:
    """Examples of each source, in the proportions of Table 1 (by largest remainders)."""
    of_paper = sum(source.size for source in SOURCES.values())
    exact = {name: source.size * total / of_paper for name, source in SOURCES.items()}
    found = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[: total - sum(found.values())]:
        found[name] += 1
    return found


def build(where: dict[str, str], sizes: dict[str, int], seed: int, told: Callable[[str], None] = lambda line: None) -> dict[str, list[Record]]:
    """The splits, each shuffled. `where` is a file or hub id for each source; `sizes` are examples a split.

    Each source gives its share of Table 1, drawn by the seed. A source that has fewer gives all that it has, and `told` says so.
    A question that several sources ask counts for the first of them.

    Raises:
        DataError: there are not enough examples for the splits.
    """
    total = sum(sizes.values())
    wanted = shares(total)
    seen: set[str] = set()
    chosen: list[Record] = []
    for name, source in SOURCES.items():
        found = list(curated(read_source(name, rows(where.get(name, source.hub))), seen))
        random.Random(seeded(seed, "source", name)).shuffle(found)
        if len(found) < wanted[name]:
            told(f"{name} has {count_of(len(found), 'example')} of {wanted[name]:,} that are its share")
        chosen += found[: wanted[name]]
    random.Random(seeded(seed, "splits")).shuffle(chosen)
    if len(chosen) < total:
        raise DataError(f"{count_of(len(chosen), 'example')} for splits of {total:,}: name smaller --sizes")
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = chosen[start : start + size]
        start += size
    return splits


def pulled(split: str, where: str | None = None) -> Iterator[Record]:
    """The public data set as it is, one record a row (candidates, scores, and `cmp_results` of the test split).

    Raises:
        UsageError: there is no such split.
    """
    names = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
    if split not in names:
        raise UsageError(f"mixinstruct:{split}: expected train, val or test")
    yield from published(
        lambda row, number: {key: value for key, value in row.items() if value is not None}, rows(where or HUB, names[split]), "of MixInstruct"
    )
