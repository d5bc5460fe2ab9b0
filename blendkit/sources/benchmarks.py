"""Forms of benchmarks: several models' answers, annotations of two, and battles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from blendkit.errors import RecordError
from blendkit.records import Record, candidates_of, source_text, verdicts_of
from blendkit.sources.conversations import Messages, asked_and_answered, conversation, talk, text_of_x, x_of
from blendkit.sources.forms import Form, Writing, identity, of_x
from blendkit.sources.pairs import own
from blendkit.sources.preferences import drop_remarks, drop_unused
from blendkit.sources.rows import OUR_CANDIDATE_FIELDS, Fields, Taken
from blendkit.untrusted import json_value, kind_of, typed

# The judge of a published annotation that names none.
ANNOTATOR = "annotator"
NUMBER = re.compile(r"-?\d+(\.\d+)?")
NO_TEXTS = (
    "battle has no texts: its record is good for `evaluate --ratings` alone",
    "battles have no texts: their records are good for `evaluate --ratings` alone",
)
LISTED = re.compile(r'\s*\[\s*("|null\b).*\]\s*', re.DOTALL)


def read_ultrafeedback(row: Taken, number: int) -> Record:
    """UltraFeedback as published: an instruction and completions with overall scores and aspects' ratings."""
    candidates = []
    for place, one in enumerate(row.need("completions", list)):
        completion = Taken(one, f"completions[{place}]", row.dropped)
        candidate: Fields = {"model": completion.need("model", str), "text": completion.need("response", str)}
        overall = completion.maybe("overall_score", float)
        scores = {} if overall is None else {"overall": overall}
        annotations = completion.left.get("annotations")
        for aspect, found in annotations.items() if isinstance(annotations, dict) else ():
            rating = str(found.get("Rating")) if isinstance(found, dict) else ""
            if NUMBER.fullmatch(rating):
                scores.setdefault(aspect, float(rating))
        candidate |= {"scores": scores} if scores else {}
        completion.keep(candidate, OUR_CANDIDATE_FIELDS)
        candidates.append(candidate)
    return {"id": identity(row, number, "id"), "instruction": row.need("instruction", str), "input": "", "candidates": candidates}


def write_ultrafeedback(record: Taken, writing: Writing) -> Iterator[Fields]:
    """The candidates as completions: the score `overall`, or of the label, is the overall score, the others are aspects' ratings."""
    completions = []
    label = writing.labels.label or "overall"
    record.use("candidates")
    for one in candidates_of(record.fields):
        candidate = Taken(one, "candidates[]", record.dropped)
        completion: Fields = {"model": candidate.need("model", str), "response": candidate.need("text", str)}
        scores = dict(candidate.maybe("scores", dict) or {})
        completion["overall_score"] = scores.pop(label, None)
        if scores.pop("overall", None) is not None:
            # An aspect of this name would be read as the other.
            record.drop("candidates[].scores.overall")
        aspects = {**(candidate.maybe("annotations", dict) or {})}
        for aspect, value in scores.items():
            if value is not None:
                noted = aspects.get(aspect)
                aspects[aspect] = {**(noted if isinstance(noted, dict) else {}), "Rating": str(int(value)) if value == int(value) else str(value)}
        completion |= {"annotations": aspects} if aspects else {}
        candidate.keep(completion)
        completions.append(completion)
    yield {"id": record.fields["id"], "instruction": text_of_x(record), "completions": completions}


def _instruction(row: Taken) -> Fields:
    # The files of AlpacaFarm, from which these come, have inputs.
    return {"instruction": row.need("instruction", str), "input": row.maybe("input", str) or ""}


def read_alpacaeval(row: Taken, number: int) -> Record:
    """AlpacaEval model_outputs: instruction, output, generator; rows of one instruction are one record."""
    record: Record = {"id": identity(row, f"alpacaeval/{number}", "id"), **_instruction(row), "candidates": []}
    candidate = {"model": row.need("generator", str), "text": row.need("output", str)}
    data_set = row.maybe("dataset", object)
    record |= {} if data_set is None else {"source": data_set}
    row.keep(candidate, OUR_CANDIDATE_FIELDS)
    record["candidates"].append(candidate)
    return record


def write_alpacaeval(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a candidate; its files have one generator each, which a filter by `generator` gives."""
    instruction, data_set = text_of_x(record), record.maybe("source", object)
    record.use("candidates")
    for one in candidates_of(record.fields):
        candidate = Taken(one, "candidates[]", record.dropped)
        row = {
            "id": record.fields["id"],
            "dataset": data_set,
            "instruction": instruction,
            "output": candidate.need("text", str),
            "generator": candidate.need("model", str),
        }
        candidate.keep(row, OUR_CANDIDATE_FIELDS)
        yield row


def read_annotations(row: Taken, number: int) -> Record:
    """AlpacaEval annotations: two outputs and `preference`, 1 for the first, 2 for the second, and between them by probability."""
    candidates = [{"model": row.need(f"generator_{side}", str), "text": row.need(f"output_{side}", str)} for side in (1, 2)]
    record: Record = {"id": identity(row, f"annotation/{number}", "id"), **_instruction(row), "candidates": candidates}
    annotator, preference = row.maybe("annotator", str) or ANNOTATOR, row.maybe("preference", float)
    if preference is None:
        # The published files have none where the annotator's answer could not be read.
        record["verdicts"] = {annotator: [{"a": 0, "b": 1, "verdict": "unparsed", "shown": [0, 1]}]}
        return record
    # 0 and 1.5 are draws in the published files.
    second = 0.5 if preference == 0 else preference - 1
    if not 0 <= second <= 1:
        raise RecordError("preference", f"expected 0, or 1 to 2, got {preference:g}")
    verdict = "A" if second < 0.5 else "B" if second > 0.5 else "tie-good"
    record["verdicts"] = {annotator: [{"a": 0, "b": 1, "verdict": verdict, "shown": [0, 1], "probability": round(1 - second, 6)}]}
    return record


def write_annotations(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a verdict of every judge."""
    instruction = text_of_x(record)
    for judge, verdict, (a, b) in _judged(record, ("model", "text")):
        if verdict["verdict"] == "tie-bad":
            record.drop("verdicts[].verdict: tie-bad, a tie like any other")
        known = {"A": 1.0, "B": 2.0}.get(verdict["verdict"], 1.5)
        preference = 2 - verdict["probability"] if verdict.get("probability") is not None else known
        unread = verdict["verdict"] == "unparsed"
        row = {"instruction": instruction, "output_1": a["text"], "generator_1": a["model"], "output_2": b["text"], "generator_2": b["model"]}
        yield {"id": record.fields["id"], **row, "annotator": judge, "preference": None if unread else round(preference, 6)}


def _winning(verdict: Fields) -> str:
    """A verdict on a record's two candidates as people's label would be; of one that could not be read, `unparsed`."""
    side = {"A": "a", "B": "b"}.get(verdict["verdict"])
    return "AB"[verdict[side]] if side else "tie" if verdict["verdict"].startswith("tie") else "unparsed"


def _judged(record: Taken, used: tuple[str, ...]) -> Iterator[tuple[str, Fields, tuple[Fields, Fields]]]:
    """(judge, verdict, both candidates) of every verdict; people's label `human` is a judge where there is no verdict.

    Raises:
        RecordError: nobody has judged.
    """
    candidates, judges = candidates_of(record.fields, 2), verdicts_of(record.fields)
    record.use("verdicts", "cmp_results")
    said = record.fields.get("human")
    if said in ("A", "B", "tie") and len(candidates) == 2:
        record.use("human")
        # A battle's verdict is read as both, and written once.
        if said not in [_winning(verdict) for verdicts in judges.values() for verdict in verdicts]:
            judges["human"] = [*judges.get("human", ()), {"a": 0, "b": 1, "verdict": "tie-good" if said == "tie" else said}]
    if not any(judges.values()):
        raise RecordError("verdicts", "expected a judge's verdicts, or `human` of two candidates")
    shown = {index for verdicts in judges.values() for verdict in verdicts for index in (verdict["a"], verdict["b"])}
    drop_unused(record, [candidates[index] for index in shown], used)
    for judge, verdicts in judges.items():
        for verdict in verdicts:
            drop_remarks(record, verdict, "probability")
            yield judge, verdict, (candidates[verdict["a"]], candidates[verdict["b"]])


# --- battles: MT-bench's judgments, and Arena's

WINNERS = {
    "model_a": "A", "model_b": "B", "tie": "tie-good", "tie (inconsistent)": "tie-good", "tie (bothbad)": "tie-bad", "both_bad": "tie-bad",
    "bothbad": "tie-bad", "error": "unparsed",
}  # fmt: skip


def read_battle(row: Taken, number: int) -> Record:
    """Two models' conversations (or prompt and responses, or neither), the winner and the judge.

    Raises:
        RecordError: a field is missing, or the winner is unknown.
    """
    verdict = _winner(row)
    given: Any = row.maybe("judge", str | list[str | int])  # type: ignore[arg-type]
    judge = "-".join(map(str, given)) if isinstance(given, list) else given or ANNOTATOR
    models = row.need("model_a", str), row.need("model_b", str)
    (x, a), (other, b) = _sides(row)
    candidates = [{"model": models[0], "text": a}, own({"model": models[1], "text": b}, other, x)]
    # One question has several judgments.
    record_id = "/".join(["battle", *(str(row.need(name, str | int)) for name in ("question_id", "id") if row.left.get(name) is not None), str(number)])  # type: ignore[arg-type]
    human = {} if verdict == "unparsed" else {"human": verdict if verdict in ("A", "B") else "tie"}
    return {"id": record_id, **x_of(x), "candidates": candidates, **human, "verdicts": {judge: [{"a": 0, "b": 1, "verdict": verdict, "shown": [0, 1]}]}}


def _winner(row: Taken) -> str:
    if "winner" in row.left:
        winner = row.need("winner", str)
        if winner not in WINNERS:
            raise RecordError("winner", f"expected one of {', '.join(WINNERS)}, got {winner!r}")
        return WINNERS[winner]
    won = [row.need(f"winner_{side}", bool) for side in ("model_a", "model_b", "tie")]
    if sum(won) != 1:
        raise RecordError("winner_tie", "expected one of winner_model_a, winner_model_b and winner_tie to be 1")
    return ("A", "B", "tie-good")[won.index(True)]


def _sides(row: Taken) -> tuple[tuple[Messages, str], tuple[Messages, str]]:
    if "conversation_a" in row.left:
        a, b = _judged_turns(row, "conversation_a"), _judged_turns(row, "conversation_b")
        if not a[0] or not b[0]:
            raise RecordError("conversation_a", "expected a question before the answer")
        return a, b
    if "response_a" in row.left:
        # In Arena's files they are lists of turns as JSON, or plain texts, in a row all alike.
        listed = isinstance(prompt := row.left.get("prompt"), str) and LISTED.fullmatch(prompt) is not None
        prompts, a_texts, b_texts = (_texts(row, name, listed) for name in ("prompt", "response_a", "response_b"))
        return _talked(prompts, a_texts, "response_a"), _talked(prompts, b_texts, "response_b")
    row.notes.append(NO_TEXTS)
    question: Messages = [{"role": "user", "content": row.maybe("prompt", str) or ""}]
    return (question, ""), (question, "")


def _judged_turns(row: Taken, name: str) -> tuple[Messages, str]:
    """The conversation as far as it was judged: MT-bench's first `turn` has the second turn behind it, too."""
    turn, value = row.left.get("turn"), row.left.get(name)
    if isinstance(turn, int) and turn > 0 and isinstance(value, list):
        ends = [place for place, one in enumerate(value) if isinstance(one, dict) and one.get("role") == "assistant"]
        if len(ends) > turn:
            row.drop(f"{name}: turns behind the judged one")
            row.left[name] = value[: ends[turn - 1] + 1]
    return asked_and_answered(row, name)


def _texts(row: Taken, name: str, listed: bool) -> list[str]:
    value: Any = row.need(name, object)
    if isinstance(value, str):
        try:
            value = json_value(value) if listed else [value]
        except RecordError as error:
            raise RecordError(name, f"expected a list of texts as JSON, got one that is {error}") from error
    return typed(value, list[str], name)


def _talked(prompts: list[str], answers: list[str], at: str) -> tuple[Messages, str]:
    if len(prompts) != len(answers) or not answers:
        raise RecordError(at, f"expected as many answers as prompts ({len(prompts)}), got {len(answers)}")
    turns = [{"role": role, "content": text} for pair in zip(prompts, answers, strict=True) for role, text in zip(("user", "assistant"), pair, strict=True)]
    return turns[:-1], answers[-1]


def write_mtbench(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a verdict of every judge."""
    yield from _battles(record, {"A": "model_a", "B": "model_b", "unparsed": "error"})


def write_arena(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a verdict of every judge; one that could not be read is left out."""
    for row in _battles(record, {"A": "model_a", "B": "model_b", "tie-bad": "tie (bothbad)", "unparsed": ""}):
        if row["winner"]:
            yield row
        else:
            writing.left_out["verdict that could not be read was left out", "verdicts that could not be read were left out"] += 1


def _battles(record: Taken, winners: dict[str, str]) -> Iterator[Fields]:
    for judge, verdict, (a, b) in _judged(record, ("model", "text", "messages")):
        if verdict["verdict"] == "tie-bad" and "tie-bad" not in winners:
            record.drop("verdicts[].verdict: tie-bad, a tie like any other")
        if verdict.get("probability") is not None:
            record.drop("verdicts[].probability")
        row = {"question_id": record.fields["id"], "model_a": a["model"], "model_b": b["model"], "winner": winners.get(verdict["verdict"], "tie")}
        first = talk(record, a)
        turn = sum(one["role"] == "user" for one in first)
        if record.left.get("turn") == turn:
            record.use("turn")
        yield {**row, "judge": judge, "conversation_a": first, "conversation_b": talk(record, b), "turn": turn}


# --- lm-evaluation-harness

GENERATED = "expected a list of generated texts for each request; loglikelihood tasks have none"


def read_lm_eval(row: Taken, number: int) -> Record:
    """lm-evaluation-harness samples (--log_samples) of a task that generates text; rows of one document are one record.

    The model is not in its files: `model` of a row is it, where there is one, and `model` else; numbers of `metrics` are scores.
    """
    document = row.need("doc_id", str | int)  # type: ignore[arg-type]
    x, how = _arguments(row)
    answers = row.need("resps", object)
    if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], list) or not all(isinstance(one, str) for one in answers[0]):
        raise RecordError("resps", GENERATED)
    if how is None and all(NUMBER.fullmatch(one) for one in answers[0]):
        # The likelihood of a whole text.
        raise RecordError("resps", GENERATED)
    record: Record = {"id": str(document), **x, **({"gen_kwargs": how} if how else {})}
    target = row.left.get("target")
    if isinstance(target, str):
        record["output"] = row.need("target", str)
    model, chosen_by = row.maybe("model", str) or "model", row.maybe("filter", str)
    names = row.maybe("metrics", list[str]) or []
    suffix = f",{chosen_by}" if chosen_by and chosen_by != "none" else ""
    # Truth values, such as IFEval's, are 1 and 0.
    scores = {f"{name}{suffix}": float(row.left.pop(name)) for name in names if isinstance(row.left.get(name), (int, float))}
    filtered = row.maybe("filtered_resps", object)
    record["candidates"] = [{"model": model, "text": text, **({"scores": dict(scores)} if scores else {})} for text in answers[0]]
    if filtered is not None and record["candidates"]:
        record["candidates"][0][f"filtered{suffix}"] = filtered
    return record


def _arguments(row: Taken) -> tuple[Fields, Fields | None]:
    """x, and how to generate, the arguments of the first request, in the older lists or the newer objects."""
    arguments = row.need("arguments", object)
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else arguments[0] if isinstance(arguments, list) and arguments else None
    given = list(first.values()) if isinstance(first, dict) else first if isinstance(first, list) else []
    padded: list[Any] = [*given, None, None]
    prompt, how, *more = padded
    for _ in filter(None, more):
        row.drop("arguments: further ones")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        # What a chat template is left to: messages as JSON.
        x = x_of(conversation(json_value(prompt[0]), row, "arguments"))
    elif isinstance(prompt, str):
        x = x_of([{"role": "user", "content": prompt}])
    else:
        raise RecordError("arguments", f"expected the prompt, a text, as the first argument, got {kind_of(prompt)}")
    if how is not None and not isinstance(how, dict):
        # An answer whose likelihood was asked for.
        raise RecordError("resps", GENERATED)
    return x, how


def write_lm_eval(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a candidate."""
    prompt, target, how = text_of_x(record), record.maybe("output", str), record.maybe("gen_kwargs", dict) or {}
    doc = record.maybe("doc", object) or {"question": source_text(record.fields)}
    record.use("candidates")
    for one in candidates_of(record.fields):
        candidate = Taken(one, "candidates[]", record.dropped)
        text = candidate.need("text", str)
        scores = {name: value for name, value in (candidate.maybe("scores", dict) or {}).items() if value is not None}
        row: Fields = {"doc_id": record.fields["id"], "doc": doc, "target": target, "model": candidate.need("model", str)}
        row |= {
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": how}},
            "resps": [[text]],
            "filtered_resps": [text],
            "filter": "none",
            "metrics": [*scores],
        }
        for name, value in scores.items():
            if name in row:
                raise RecordError(f"candidates[].scores.{name}", "expected a name that no field of lm-eval has")
            row[name] = value
        candidate.keep(row)
        yield row


def _of_document(record: Record) -> object:
    return record["id"], of_x(record)


ULTRAFEEDBACK = Form(read_ultrafeedback, write_ultrafeedback)
ALPACAEVAL = Form(read_alpacaeval, write_alpacaeval, array=True, joins=of_x)
ALPACAEVAL_ANNOTATIONS = Form(read_annotations, write_annotations, array=True)
MTBENCH = Form(read_battle, write_mtbench)
ARENA = Form(read_battle, write_arena)
LM_EVAL = Form(read_lm_eval, write_lm_eval, joins=_of_document)
