"""Forms of preferences: a better and a worse answer, or several of both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from blendkit.errors import RecordError
from blendkit.records import Record, source_text
from blendkit.seeding import seeded
from blendkit.sources.conversations import Messages, asked, asked_and_answered, conversation, messages_of, split_answer, talk, text_of_x, x_of
from blendkit.sources.forms import Form, Writing, identity, of_x
from blendkit.sources.preferences import Preference, drop_unused, kept, label_of, preferences
from blendkit.sources.rows import Fields, Taken
from blendkit.untrusted import typed

# The score of candidates of which several are right, or several wrong.
CORRECT = "correct"
TURN = re.compile(r"\n\n(Human|Assistant): ?")


def paired(record_id: str, x: Messages, chosen: Fields, rejected: Fields, **more: Any) -> Record:
    """A record of two candidates with the label `human`; which of them is A is drawn by the id, so that places tell nothing."""
    first = seeded(0, "place", record_id) % 2 == 0
    both = [chosen, rejected]
    return {"id": record_id, **x_of(x), "candidates": both if first else both[::-1], "human": "A" if first else "B", **more}


def own(candidate: Fields, before: Messages, x: Messages) -> Fields:
    """The candidate, with the conversation that it answers where this is not x: a model's own earlier turns."""
    return candidate if before == x else {**candidate, "messages": before}


# --- prompt, chosen, rejected


def read_preferences(row: Taken, number: int) -> Record:
    """prompt, chosen, rejected as texts, conversations or lists of texts; models and scores of both."""
    prompt, in_turns = _prompt(row)
    answers = {side: [(_before(row, prompt, in_turns, before), text) for before, text in _answers(row, side)] for side in ("chosen", "rejected")}
    x = answers["chosen"][0][0]
    if x and prompt is not None and not in_turns and prompt[0]["content"] not in [message["content"] for message in x]:
        # A text that the conversation does not hold.
        row.left["prompt"] = prompt[0]["content"]
    names = _models(row, {side: len(found) for side, found in answers.items()})
    candidates: dict[str, list[Fields]] = {}
    for side, found in answers.items():
        candidates[side] = [own({"model": model, "text": text}, before, x) for model, (before, text) in zip(names[side], found, strict=True)]
        score = row.maybe(f"score_{side}", float)
        if score is not None:
            for candidate in candidates[side]:
                candidate["scores"] = {"overall": score}
    if row.left.get("messages") == row.fields["chosen"]:
        # UltraFeedback binarized says the chosen conversation twice.
        row.use("messages")
    record_id = identity(row, number, "prompt_id", "id")
    if len(candidates["chosen"]) == len(candidates["rejected"]) == 1:
        return paired(record_id, x, candidates["chosen"][0], candidates["rejected"][0])
    for side, correct in (("chosen", 1.0), ("rejected", 0.0)):
        for candidate in candidates[side]:
            candidate.setdefault("scores", {})[CORRECT] = correct
    # Drawn by the id, so that places tell nothing.
    pool = sorted([*candidates["chosen"], *candidates["rejected"]], key=lambda one: seeded(0, "place", record_id, one["model"], one["text"]))
    return {"id": record_id, **x_of(x), "candidates": pool}


def _prompt(row: Taken) -> tuple[Messages | None, bool]:
    """The prompt as messages, None where there is none, and whether it was a conversation."""
    value = row.left.pop("prompt", None)
    if value is None and "prompt" in row.fields:
        raise RecordError("prompt", "expected a text or a conversation, got null")
    if value is None or isinstance(value, str):
        return (None if value is None else [{"role": "user", "content": value}]), False
    return conversation(value, row, "prompt"), True


def _answers(row: Taken, side: str) -> list[tuple[Messages, str]]:
    value = row.left.get(side)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        row.use(side)
        return [([], one) for one in value]
    return [asked_and_answered(row, side)]


def _before(row: Taken, prompt: Messages | None, in_turns: bool, before: Messages) -> Messages:
    """The conversation before an answer: the prompt's, the answer's own, or one behind the other."""
    if prompt is None or prompt in (before[: len(prompt)], before[-len(prompt) :]):
        found = before
    elif in_turns and before and prompt[-len(before) :] == before:
        found = prompt
    elif not before or in_turns:
        found = [*prompt, *before]
    else:
        found = before
    if not found:
        raise RecordError("prompt", "expected a question, in `prompt` or before the answer in `chosen`")
    return found


def _models(row: Taken, counts: dict[str, int]) -> dict[str, list[str]]:
    sides, total = list(counts), sum(counts.values())
    if isinstance(row.left.get("models"), list) and len(row.left["models"]) == total:
        models = row.need("models", list[str])
        return {sides[0]: models[: counts[sides[0]]], sides[1]: models[counts[sides[0]] :]}
    found = {}
    for side, count in counts.items():
        given = row.maybe(f"{side}_model", object)
        named = typed([given] if isinstance(given, str) else given or [], list[str], f"{side}_model")
        if named and len(named) != count:
            row.drop(f"{side}_model")
            named = []
        found[side] = named or ([side] if count == 1 else [f"{side}-{place}" for place in range(1, count + 1)])
    return found


def write_binarized(record: Taken, writing: Writing) -> Iterator[Fields]:
    """Rows of conversations; the score that is the label, or `overall`, beside them."""
    for row, one in _pairs(record, writing):
        scores = [(candidate.get("scores") or {}) for candidate in (one.better, one.worse)]
        label = label_of(record, writing.labels.label)
        name = label if label in scores[0] else "overall"
        known = {f"score_{side}": given[name] for side, given in zip(("chosen", "rejected"), scores, strict=True) if given.get(name) is not None}
        for given in scores:
            for other in given.keys() - {name}:
                record.drop(f"candidates[].scores.{other}")
        both = [talk(record, candidate) for candidate in (one.better, one.worse)]
        # As published, the question with which the conversation begins.
        prompt = next((message["content"] for message in messages_of(record.fields) if message["role"] == "user"), source_text(record.fields))
        yield {"prompt": prompt, "prompt_id": row["id"], "chosen": both[0], "rejected": both[1], **_named(one), **known}


def write_rewardbench(record: Taken, writing: Writing) -> Iterator[Fields]:
    """Rows of texts."""
    for row, one in _pairs(record, writing, ("model", "text")):
        yield {"id": row["id"], "prompt": text_of_x(record), "chosen": one.better["text"], "rejected": one.worse["text"], **_named(one)}


def write_rewardbench2(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row with all that are best by the label as chosen, the others as rejected."""
    label = label_of(record, writing.labels.label)
    if label == "human":
        for row in write_rewardbench(record, writing):
            yield {**{name: row[name] for name in ("id", "prompt")}, **{side: [row[side]] for side in ("chosen", "rejected")},
                   "models": [row["chosen_model"], row["rejected_model"]]}  # fmt: skip
        return
    against = preferences(record, replace(writing.labels, pairs="all"))
    lost = {id(one.worse) for one in against if not one.tie}
    seen = {id(candidate): candidate for one in against for candidate in (one.better, one.worse)}
    sides = {"chosen": [one for key, one in seen.items() if key not in lost], "rejected": [one for key, one in seen.items() if key in lost]}
    if not lost or not sides["chosen"]:
        writing.left_out["tie was left out", "ties were left out"] += 1
        return
    drop_unused(record, list(seen.values()), ("model", "text", "scores"))
    for other in [name for one in seen.values() for name in one.get("scores") or () if name != label]:
        record.drop(f"candidates[].scores.{other}")
    models = [candidate["model"] for side in sides.values() for candidate in side]
    texts = {side: [candidate["text"] for candidate in found] for side, found in sides.items()}
    counts = {"num_correct": len(texts["chosen"]), "num_incorrect": len(texts["rejected"]), "total_completions": len(models)}
    yield {"id": record.fields["id"], "prompt": text_of_x(record), **texts, **counts, "models": models}


def write_dpo(record: Taken, writing: Writing) -> Iterator[Fields]:
    """prompt, chosen, rejected as TRL's DPO and reward trainers read them."""
    for row, one in _pairs(record, writing, ("model", "text")):
        sides = {side: _completion(candidate, writing) for side, candidate in (("chosen", one.better), ("rejected", one.worse))}
        yield {**row, "prompt": _asked(record, writing), **sides, **_named(one), "margin": one.margin}


def _asked(record: Taken, writing: Writing) -> object:
    return asked(record) if writing.as_messages else text_of_x(record)


def _completion(candidate: Fields, writing: Writing) -> object:
    return [{"role": "assistant", "content": candidate["text"]}] if writing.as_messages else candidate["text"]


def _named(one: Preference) -> Fields:
    return {"chosen_model": one.better["model"], "rejected_model": one.worse["model"]}


def _pairs(record: Taken, writing: Writing, used: tuple[str, ...] = ("model", "text", "messages", "scores")) -> Iterator[tuple[Fields, Preference]]:
    """The pairs to write, each with the beginning of its row; what of the candidates has no place is counted once for the record."""
    found = list(kept(preferences(record, writing.labels), writing.labels, writing.left_out))
    if found:
        drop_unused(record, [candidate for one in found for candidate in (one.better, one.worse)], used)
    for one in found:
        yield {"id": record.fields["id"]}, one


# --- one completion a row


def read_kto(row: Taken, number: int) -> Record:
    """prompt, completion and label as TRL's KTO reads them; rows of one prompt are one record, `label` a score of 1 or 0."""
    prompt, in_turns = _prompt(row)
    before, text = asked_and_answered(row, "completion")
    label = row.need("label", bool)
    record = {"id": identity(row, number, "id"), **x_of(_before(row, prompt, in_turns, before))}
    return {**record, "candidates": [{"model": row.maybe("model", str) or "completion", "text": text, "scores": {"label": float(label)}}]}


def write_kto(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row a candidate: true for one that is better in most of its pairs, false for one that is worse; neither is left out."""
    found = list(kept(preferences(record, writing.labels), writing.labels, writing.left_out))
    won: dict[int, int] = {}
    candidates = {id(candidate): candidate for one in found for candidate in (one.better, one.worse)}
    for one in found:
        won[id(one.better)] = won.get(id(one.better), 0) + 1
        won[id(one.worse)] = won.get(id(one.worse), 0) - 1
    chosen = [(candidates[key], balance > 0) for key, balance in won.items() if balance]
    alike = "candidate that wins and loses alike was left out", "candidates that win and lose alike were left out"
    writing.left_out[alike] += sum(balance == 0 for balance in won.values())
    if chosen:
        drop_unused(record, [candidate for candidate, _ in chosen], ("model", "text"))
    for candidate, label in chosen:
        sides = {"prompt": _asked(record, writing), "completion": _completion(candidate, writing)}
        yield {"id": record.fields["id"], **sides, "label": label, "model": candidate["model"]}


def write_sft(record: Taken, writing: Writing) -> Iterator[Fields]:
    """The best candidate (the first of several) as the answer to learn: prompt and completion, or messages."""
    if len(record.fields.get("candidates") or ()) == 1:
        best = record.fields["candidates"][0]
    else:
        (one,) = preferences(record, replace(writing.labels, pairs="best-worst"))
        best = one.better
    drop_unused(record, [best], ("model", "text"))
    row = {"id": record.fields["id"], "model": best["model"]}
    if writing.as_messages:
        yield {**row, "messages": talk(record, {**best, "messages": None})}
    else:
        yield {**row, "prompt": text_of_x(record), "completion": best["text"]}


# --- conversations with ratings, transcripts


def read_unifiedfeedback(row: Taken, number: int) -> Record:
    """Unified-Feedback (llm-blender): two conversations with ratings."""
    (x, a), (other, b) = asked_and_answered(row, "conv_A"), asked_and_answered(row, "conv_B")
    ratings = row.need("conv_A_rating", float), row.need("conv_B_rating", float)
    human = "tie" if ratings[0] == ratings[1] else "A" if ratings[0] > ratings[1] else "B"
    both = [{"model": model, "text": text, "scores": {"rating": rating}} for model, text, rating in zip("AB", (a, b), ratings, strict=True)]
    return {"id": identity(row, number, "id"), **x_of(x), "candidates": [both[0], own(both[1], other, x)], "human": human}


def write_unifiedfeedback(record: Taken, writing: Writing) -> Iterator[Fields]:
    """The two candidates as conversations, the better rated 1 and the worse 0, alike in a tie."""
    found = [one for one in preferences(record, writing.labels) if one.tie or list(kept([one], writing.labels, writing.left_out))]
    if found:
        drop_unused(record, [candidate for one in found for candidate in (one.better, one.worse)], ("text", "messages"))
    for one in found:
        both = sorted((one.better, one.worse), key=record.fields["candidates"].index)
        ratings = [0.5 if one.tie else float(candidate is one.better) for candidate in both]
        row = {"id": record.fields["id"], "conv_A": talk(record, both[0]), "conv_B": talk(record, both[1])}
        yield {**row, "conv_A_rating": ratings[0], "conv_B_rating": ratings[1]}


def read_hh(row: Taken, number: int) -> Record:
    """HH-RLHF: two transcripts of turns that begin with `\\n\\nHuman: ` and `\\n\\nAssistant: `."""
    (x, chosen), (other, rejected) = (split_answer(_turns(row.need(side, str), side), row, side) for side in ("chosen", "rejected"))
    if not x:
        raise RecordError("chosen", "expected a question before the answer")
    return paired(identity(row, f"hh/{number}", "id"), x, {"model": "chosen", "text": chosen}, own({"model": "rejected", "text": rejected}, other, x))


def write_hh(record: Taken, writing: Writing) -> Iterator[Fields]:
    """Rows of transcripts.

    Raises:
        RecordError: a message is of another role, or holds a line that would begin a turn.
    """
    for row, one in _pairs(record, writing, ("text", "messages")):
        yield row | {side: _transcript(talk(record, candidate)) for side, candidate in (("chosen", one.better), ("rejected", one.worse))}


def _transcript(messages: Messages) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    for place, message in enumerate(messages):
        if message["role"] not in names:
            raise RecordError(f"messages[{place}].role", f"expected user or assistant, which are all that hh-rlhf has, got {message['role']!r}")
        if TURN.search(message["content"]):
            raise RecordError(f"messages[{place}].content", "expected no paragraph that begins with Human: or Assistant:, which would be a turn of its own")
    return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)


def _turns(transcript: str, at: str) -> Messages:
    head, *parts = TURN.split(transcript)
    if head.strip():
        raise RecordError(at, f"expected a transcript that begins with Human: or Assistant: behind an empty line, got {head[:40]!r}")
    roles = {"Human": "user", "Assistant": "assistant"}
    if not parts:
        raise RecordError(at, "expected a transcript of Human and Assistant, got none of their turns")
    return [{"role": roles[name], "content": text} for name, text in zip(parts[::2], parts[1::2], strict=True)]


BINARIZED = Form(read_preferences, write_binarized)
REWARDBENCH = Form(read_preferences, write_rewardbench)
REWARDBENCH2 = Form(read_preferences, write_rewardbench2)
DPO = Form(read_preferences, write_dpo)
KTO = Form(read_kto, write_kto, joins=of_x)
UNIFIEDFEEDBACK = Form(read_unifiedfeedback, write_unifiedfeedback)
HH_RLHF = Form(read_hh, write_hh)
