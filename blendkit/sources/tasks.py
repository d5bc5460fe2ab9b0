"""The natural-language tasks of LLM-Blender's appendix as records: summaries (CNN/DailyMail), translations (WMT18 zh-en), sentences (CommonGen)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blendkit.records import Record
from blendkit.sources import TASKS
from blendkit.sources.forms import Places, placed, read_each
from blendkit.untrusted import typed


@dataclass(frozen=True)
class Task:
    """Where it is on the hub, and how its rows are read."""

    hub: str
    read: Callable[[Places], Iterator[Record]]


def _cnn_dailymail(places: Places) -> Iterator[Record]:
    for _, row in read_each(places):
        article = {"instruction": "Write a short summary of the article.", "input": row["article"], "output": row["highlights"]}
        yield {"id": f"cnn-dailymail/{row['id']}", **article}


def _wmt18(places: Places) -> Iterator[Record]:
    for number, (_, row) in enumerate(read_each(places)):
        pair = row["translation"]
        yield {"id": f"wmt18-zh-en/{number}", "instruction": "Translate the Chinese text into English.", "input": pair["zh"], "output": pair["en"]}


def _commongen(places: Places) -> Iterator[Record]:
    """Sentences of one set of concepts are one record; the first is the reference, all are in `references`."""
    found: dict[str, Record] = {}
    for _, row in read_each(places):
        concepts = ", ".join(typed(row["concepts"], list[str]))
        target = typed(row["target"], str)
        fresh = {"id": f"commongen/{row['concept_set_idx']}", "instruction": "Write one sentence that uses all of the given concepts.", "input": concepts}
        record = found.setdefault(concepts, {**fresh, "output": target, "references": []})
        record["references"].append(target)
    yield from found.values()


CNN_DAILYMAIL = Task("abisee/cnn_dailymail:3.0.0", _cnn_dailymail)
WMT18 = Task("wmt/wmt18:zh-en", _wmt18)
COMMONGEN = Task("allenai/common_gen", _commongen)


def read_task(name: str, places: Places) -> Iterator[Record]:
    """Records of a task.

    Raises:
        UsageError: there is no such task.
        DataError: a row is not of the published form.
    """
    task: Task = TASKS.load(name, "task")
    return placed(task.read, places, f"of the published form of {name}")
