"""The natural-language tasks of LLM-Blender's appendix as records: summaries (CNN/DailyMail), translations (WMT18 zh-en), sentences (CommonGen)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from blendkit.records import Record
from blendkit.sources import TASKS
from blendkit.sources.forms import published
from blendkit.sources.rows import Fields, SourceRow
from blendkit.untrusted import typed


@dataclass(frozen=True)
class Task:
    """Where it is on the hub, and how a row is read; `joins`: rows of one x are one record, with the references of all."""

    hub: str
    read: Callable[[Fields, int], Record]
    joins: bool = False


def _cnn_dailymail(row: Fields, number: int) -> Record:
    article = {"instruction": "Write a short summary of the article.", "input": row["article"], "output": row["highlights"]}
    return {"id": f"cnn-dailymail/{row['id']}", **article}


def _wmt18(row: Fields, number: int) -> Record:
    pair = row["translation"]
    return {"id": f"wmt18-zh-en/{number}", "instruction": "Translate the Chinese text into English.", "input": pair["zh"], "output": pair["en"]}


def _commongen(row: Fields, number: int) -> Record:
    """The first sentence of a set of concepts is the reference, all are in `references`."""
    concepts, target = ", ".join(typed(row["concepts"], list[str])), typed(row["target"], str)
    fresh = {"id": f"commongen/{row['concept_set_idx']}", "instruction": "Write one sentence that uses all of the given concepts.", "input": concepts}
    return {**fresh, "output": target, "references": [target]}


def _joined(records: Iterable[Record]) -> Iterator[Record]:
    """Records of the same x as one, with the references of all."""
    found: dict[str, Record] = {}
    for record in records:
        first = found.setdefault(record["input"], record)
        if first is not record:
            first["references"] += record["references"]
    yield from found.values()


CNN_DAILYMAIL = Task("abisee/cnn_dailymail:3.0.0", _cnn_dailymail)
WMT18 = Task("wmt/wmt18:zh-en", _wmt18)
COMMONGEN = Task("allenai/common_gen", _commongen, joins=True)


def read_task(name: str, rows: Iterable[SourceRow]) -> Iterator[Record]:
    """Records of a task.

    Raises:
        UsageError: there is no such task.
        DataError: a row is not of the published form.
    """
    task: Task = TASKS.load(name, "task")
    records = published(task.read, rows, f"of the published form of {name}")
    return _joined(records) if task.joins else records
