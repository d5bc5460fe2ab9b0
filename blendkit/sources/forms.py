"""The forms in which neighbours publish answers and preferences: rows into records, and records into rows.

A new form is a function or two here, or in a file beside, and a row in FORMS (blendkit/sources/__init__.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from blendkit.errors import DataError, RecordError
from blendkit.records import Record, candidates_of, generated_only, source_text, validate, verdicts_of, writable
from blendkit.scorers import better_when_lower
from blendkit.seeding import seeded
from blendkit.sources import FORMS
from blendkit.sources.reading import Fields
from blendkit.untrusted import typed

Places = Iterable[tuple[str, Fields]]
Messages = list[dict[str, str]]
# The verdicts of a judge that is a person or a published annotator.
ANNOTATOR = "annotator"


@dataclass(frozen=True)
class Form:
    """`write` gives the rows of a record; None where the form only makes sense to read. `array`: the file is one JSON array."""

    read: Callable[[Places], Iterator[Record]]
    write: Callable[[Record, str], Iterator[Fields]] | None = None
    array: bool = False


# --- conversations and pairs


def x_of(messages: Messages) -> Fields:
    """The record's fields for a conversation that an answer follows: an instruction where it is one question."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return {"instruction": messages[0]["content"], "input": ""}
    return {"messages": [{"role": message["role"], "content": message["content"]} for message in messages]}


def paired(record_id: str, x: Fields, chosen: str, rejected: str, models: tuple[str, str] = ("chosen", "rejected"), **more: Any) -> Record:
    """A record of two candidates with the label `human`; which of them is A is drawn by the id, so that places tell nothing."""
    both = [{"model": models[0], "text": chosen}, {"model": models[1], "text": rejected}]
    first = seeded(0, "place", record_id) % 2 == 0
    return {"id": record_id, **x, "candidates": both if first else both[::-1], "human": "A" if first else "B", **more}


def messages_of(record: Record) -> Messages:
    """x as a conversation."""
    return record.get("messages") or [{"role": "user", "content": source_text(record)}]


def preferred(record: Record, label: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(better, worse) candidate by the label `human`, or by the score of that name; None for a tie.

    Raises:
        RecordError: neither is there.
    """
    candidates = [candidates_of(record, 2)[index] for index in generated_only(record["candidates"])]
    if label == "human":
        if record.get("human") not in ("A", "B", "tie") or len(candidates) != 2:
            raise RecordError(
                "human", f"expected A, B or tie, and two candidates, got {record.get('human')!r} and {len(candidates)}; --label NAME takes a score"
            )
        return None if record["human"] == "tie" else (candidates[0], candidates[1]) if record["human"] == "A" else (candidates[1], candidates[0])
    scores = [candidate.get("scores", {}).get(label) for candidate in candidates]
    if any(score is None for score in scores):
        raise RecordError(f"candidates[].scores.{label}", "expected a number in every candidate, as --label asks for it")
    order = sorted(range(len(scores)), key=lambda index: scores[index], reverse=not better_when_lower(label))
    return None if scores[order[0]] == scores[order[-1]] else (candidates[order[0]], candidates[order[-1]])


def _answer(messages: Messages) -> tuple[Messages, str]:
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("a conversation that does not end with the assistant")
    return messages[:-1], messages[-1]["content"]


def read_binarized(places: Places) -> Iterator[Record]:
    """UltraFeedback binarized, and what TRL reads: prompt, chosen and rejected, as conversations or as texts."""
    for number, (_, row) in enumerate(read_each(places), 1):
        scores: dict[str, Any] = {"chosen": row.get("score_chosen"), "rejected": row.get("score_rejected")}
        if isinstance(row["chosen"], str):
            record = paired(_id(row, "prompt_id", number), {"instruction": row["prompt"], "input": ""}, row["chosen"], row["rejected"])
        else:
            before, chosen = _answer(row["chosen"])
            record = paired(_id(row, "prompt_id", number), x_of(before), chosen, _answer(row["rejected"])[1])
        for candidate in record["candidates"]:
            if scores[candidate["model"]] is not None:
                candidate["scores"] = {"overall": float(scores[candidate["model"]])}
        yield record


def write_binarized(record: Record, label: str) -> Iterator[Fields]:
    """One row, none for a tie."""
    both = preferred(record, label)
    if both:
        conversations = [[*messages_of(record), {"role": "assistant", "content": candidate["text"]}] for candidate in both]
        yield {"prompt": source_text(record), "prompt_id": record["id"], "chosen": conversations[0], "rejected": conversations[1]}


def read_ultrafeedback(places: Places) -> Iterator[Record]:
    """UltraFeedback as published: an instruction and four completions with overall scores (and aspects' ratings)."""
    for number, (_, row) in enumerate(read_each(places), 1):
        candidates = []
        for completion in row["completions"]:
            scores = {"overall": float(completion["overall_score"])} if completion.get("overall_score") is not None else {}
            for aspect, found in (completion.get("annotations") or {}).items():
                rating = str((found or {}).get("Rating", "")) if isinstance(found, dict) else ""
                if rating.replace(".", "", 1).isdigit():
                    scores[aspect] = float(rating)
            candidates.append({"model": completion["model"], "text": completion["response"], "scores": scores})
        yield {"id": _id(row, "id", number), "instruction": row["instruction"], "input": "", "source": row.get("source"), "candidates": candidates}


def write_ultrafeedback(record: Record, label: str) -> Iterator[Fields]:
    """The candidates as completions, with the label as overall score."""
    completions = [
        {"model": candidate["model"], "response": candidate["text"], "overall_score": candidate.get("scores", {}).get(label)}
        for candidate in candidates_of(record)
    ]
    yield {"id": record["id"], "source": record.get("source"), "instruction": source_text(record), "completions": completions}


def read_unifiedfeedback(places: Places) -> Iterator[Record]:
    """Unified-Feedback (llm-blender): two conversations with ratings."""
    for number, (_, row) in enumerate(read_each(places), 1):
        (before, a), (_, b) = _answer(row["conv_A"]), _answer(row["conv_B"])
        ratings = float(row["conv_A_rating"]), float(row["conv_B_rating"])
        human = "tie" if ratings[0] == ratings[1] else "A" if ratings[0] > ratings[1] else "B"
        candidates = [{"model": model, "text": text, "scores": {"rating": rating}} for model, text, rating in zip("AB", (a, b), ratings, strict=True)]
        yield {"id": _id(row, "id", number), **x_of(before), "source": row.get("source"), "candidates": candidates, "human": human}


def write_unifiedfeedback(record: Record, label: str) -> Iterator[Fields]:
    """The better and the worse candidate as conversations rated 1 and 0."""
    both = preferred(record, label)
    if both:
        conversations = [[*messages_of(record), {"role": "assistant", "content": candidate["text"]}] for candidate in both]
        row = {"id": record["id"], "source": record.get("source"), "conv_A": conversations[0], "conv_B": conversations[1]}
        yield {**row, "conv_A_rating": 1.0, "conv_B_rating": 0.0}


def read_rewardbench(places: Places) -> Iterator[Record]:
    """RewardBench: prompt, chosen and rejected texts with their models, and the subset."""
    for number, (_, row) in enumerate(read_each(places), 1):
        models = row.get("chosen_model") or "chosen", row.get("rejected_model") or "rejected"
        x = {"instruction": row["prompt"], "input": ""}
        yield paired(_id(row, "id", number), x, row["chosen"], row["rejected"], models, subset=row.get("subset"))


def write_rewardbench(record: Record, label: str) -> Iterator[Fields]:
    """One row, none for a tie."""
    both = preferred(record, label)
    if both:
        better, worse = both
        row = {"id": record["id"], "subset": record.get("subset"), "prompt": source_text(record), "chosen": better["text"], "rejected": worse["text"]}
        yield {**row, "chosen_model": better["model"], "rejected_model": worse["model"]}


def read_hh(places: Places) -> Iterator[Record]:
    """HH-RLHF: two transcripts of turns that begin with `\\n\\nHuman: ` and `\\n\\nAssistant: `."""
    for number, (_, row) in enumerate(read_each(places), 1):
        (before, chosen), (_, rejected) = _answer(_turns(row["chosen"])), _answer(_turns(row["rejected"]))
        yield paired(f"hh/{number}", x_of(before), chosen, rejected)


def write_hh(record: Record, label: str) -> Iterator[Fields]:
    """One row, none for a tie."""
    both = preferred(record, label)
    if both:
        names = {"user": "Human", "assistant": "Assistant"}
        before = "".join(f"\n\n{names.get(message['role'], 'Human')}: {message['content']}" for message in messages_of(record))
        yield {key: f"{before}\n\nAssistant: {candidate['text']}" for key, candidate in zip(("chosen", "rejected"), both, strict=True)}


def _turns(transcript: str) -> Messages:
    import re

    parts = re.split(r"\n\n(Human|Assistant): ?", transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": text.strip()} for name, text in zip(parts[1::2], parts[2::2], strict=True)]


# --- benchmarks: several models' answers


def read_alpacaeval(places: Places) -> Iterator[Record]:
    """AlpacaEval model_outputs: instruction, output, generator; several models' files of one set become one record an instruction."""
    found: dict[str, Record] = {}
    for _, row in read_each(places):
        # A record is complete only when all rows are read, but a fault must be raised at its row.
        texts = typed({field: row[field] for field in ("instruction", "generator", "output")}, dict[str, str])
        record = found.setdefault(texts["instruction"], {"id": f"alpacaeval/{len(found)}", "instruction": texts["instruction"], "input": "", "candidates": []})
        record["candidates"].append({"model": texts["generator"], "text": texts["output"]})
        record.setdefault("source", row.get("dataset"))
    yield from found.values()


def write_alpacaeval(record: Record, label: str) -> Iterator[Fields]:
    """A row a candidate; its files have one generator each, which a filter by `generator` gives."""
    for candidate in candidates_of(record):
        yield {"dataset": record.get("source"), "instruction": source_text(record), "output": candidate["text"], "generator": candidate["model"]}


def read_alpacaeval_annotations(places: Places) -> Iterator[Record]:
    """AlpacaEval annotations: two outputs and `preference`, 1 for the first, 2 for the second, and between them by probability."""
    for number, (_, row) in enumerate(read_each(places), 1):
        candidates = [{"model": row[f"generator_{side}"], "text": row[f"output_{side}"]} for side in (1, 2)]
        record: Record = {"id": f"annotation/{number}", "instruction": row["instruction"], "input": "", "candidates": candidates}
        preference = row.get("preference")
        if preference is not None:
            # 0 and 1.5 are draws in the published files.
            second = 0.5 if float(preference) == 0 else float(preference) - 1
            verdict = "A" if second < 0.5 else "B" if second > 0.5 else "tie-good"
            record["verdicts"] = {
                row.get("annotator") or ANNOTATOR: [{"a": 0, "b": 1, "verdict": verdict, "shown": [0, 1], "probability": round(1 - second, 6)}]
            }
        yield record


def write_alpacaeval_annotations(record: Record, label: str) -> Iterator[Fields]:
    """A row a verdict of every judge."""
    candidates = candidates_of(record)
    for judge, verdicts in verdicts_of(record).items():
        for verdict in verdicts:
            a, b = candidates[verdict["a"]], candidates[verdict["b"]]
            known = {"A": 1.0, "B": 2.0}.get(verdict["verdict"], 1.5)
            preference = 2 - verdict["probability"] if verdict.get("probability") is not None else known
            # The published files, too, have none where the annotator's answer could not be read.
            unread = verdict["verdict"] == "unparsed"
            row = {"instruction": source_text(record), "output_1": a["text"], "generator_1": a["model"], "output_2": b["text"], "generator_2": b["model"]}
            yield {**row, "annotator": judge, "preference": None if unread else round(preference, 6)}


def read_mtbench(places: Places) -> Iterator[Record]:
    """MT-bench judgments (lmsys/mt_bench_human_judgments): two conversations, the winner, the judge."""
    verdicts = {"model_a": "A", "model_b": "B", "tie": "tie-good", "tie (inconsistent)": "tie-good", "error": "unparsed"}
    for number, (_, row) in enumerate(read_each(places), 1):
        (before, a), (_, b) = _answer(row["conversation_a"]), _answer(row["conversation_b"])
        verdict = verdicts[row["winner"]]
        judge = row["judge"] if isinstance(row.get("judge"), str) else "-".join(map(str, row.get("judge") or [ANNOTATOR]))
        candidates = [{"model": row["model_a"], "text": a}, {"model": row["model_b"], "text": b}]
        human = {"human": verdict if verdict in ("A", "B") else "tie"} if verdict != "unparsed" else {}
        x = {"id": f"mtbench/{row['question_id']}/{row.get('turn', 1)}/{number}", **x_of(before)}
        yield {**x, "candidates": candidates, **human, "verdicts": {judge: [{"a": 0, "b": 1, "verdict": verdict, "shown": [0, 1]}]}}


def write_mtbench(record: Record, label: str) -> Iterator[Fields]:
    """A row a verdict of every judge."""
    candidates, winners = candidates_of(record), {"A": "model_a", "B": "model_b", "unparsed": "error"}
    for judge, verdicts in verdicts_of(record).items():
        for verdict in verdicts:
            a, b = candidates[verdict["a"]], candidates[verdict["b"]]
            talks = [[*messages_of(record), {"role": "assistant", "content": candidate["text"]}] for candidate in (a, b)]
            row = {"question_id": record["id"], "model_a": a["model"], "model_b": b["model"], "winner": winners.get(verdict["verdict"], "tie"), "judge": judge}
            yield {**row, "conversation_a": talks[0], "conversation_b": talks[1], "turn": sum(message["role"] == "user" for message in messages_of(record))}


# --- plain tables

FIXED = ("id", "instruction", "input", "output")


def read_csv(places: Places) -> Iterator[Record]:
    """A table with a column `instruction`, and maybe `id`, `input` and `output` (the reference); every other column is a model's answers."""
    for number, (_, row) in enumerate(read_each(places), 1):
        candidates = [{"model": name, "text": text} for name, text in row.items() if name not in FIXED and text is not None]
        record: Record = {"id": row.get("id") or str(number), "instruction": row["instruction"], "input": row.get("input") or "", "candidates": candidates}
        yield {**record, "output": row["output"]} if row.get("output") is not None else record


def write_csv(record: Record, label: str) -> Iterator[Fields]:
    """One line, a column a model."""
    row = {"id": record["id"], "instruction": source_text(record), "input": "", "output": record.get("output")}
    for index, candidate in enumerate(record.get("candidates", [])):
        if candidate["model"] in row:
            raise RecordError(f"candidates[{index}].model", f"expected a name that no other column has, got {candidate['model']!r}")
        row[candidate["model"]] = candidate["text"]
    yield row


# --- the forms


def read_each(places: Places) -> Iterator[tuple[str, Fields]]:
    """The rows; each is checked to be an object."""
    for place, row in places:
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected an object, got {type(row).__name__}")
        yield place, row


def _id(row: Fields, field: str, number: int) -> str:
    return str(row[field]) if row.get(field) is not None else str(number)


ULTRAFEEDBACK = Form(read_ultrafeedback, write_ultrafeedback)
BINARIZED = Form(read_binarized, write_binarized)
UNIFIEDFEEDBACK = Form(read_unifiedfeedback, write_unifiedfeedback)
REWARDBENCH = Form(read_rewardbench, write_rewardbench)
ALPACAEVAL = Form(read_alpacaeval, write_alpacaeval, array=True)
ALPACAEVAL_ANNOTATIONS = Form(read_alpacaeval_annotations, write_alpacaeval_annotations, array=True)
MTBENCH = Form(read_mtbench, write_mtbench)
HH_RLHF = Form(read_hh, write_hh)
CSV = Form(read_csv, write_csv)


def read_form(name: str, places: Places) -> Iterator[Record]:
    """Rows of a form as records.

    Raises:
        UsageError: there is no such form.
        DataError: a row is not of that form; with its place.
    """
    form: Form = FORMS.load(name, "--from")
    return placed(form.read, places, f"of the form {name} ({FORMS[name].about})")


def placed(read: Callable[[Places], Iterator[Record]], places: Places, what: str) -> Iterator[Record]:
    """The records that `read` makes of the rows; each is one that `blendkit check` takes.

    Raises:
        DataError: a row is not `what`; with its place.
    """
    at = ""

    def noted() -> Iterator[tuple[str, Fields]]:
        nonlocal at
        for place, row in places:
            at = place
            yield place, row

    try:
        for record in read(noted()):
            validate(record)
            writable(record)
            yield record
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, RecordError) as error:
        said = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DataError(f"{at}: not {what}: {said}") from error
