"""Forms of conversations with one answer, of OpenAI's batches, and of records themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from blendkit.errors import RecordError
from blendkit.generators.replies import BadReply, SaidError, read_reply
from blendkit.records import Record, verdicts_of
from blendkit.sources.conversations import FROM, Messages, as_turns, asked, conversation, split_answer, text_of, x_of
from blendkit.sources.forms import Form, Writing, identity
from blendkit.sources.pairs import write_sft
from blendkit.sources.rows import OUR_CANDIDATE_FIELDS, Fields, Taken
from blendkit.untrusted import kind_of, typed

HELD = ("messages", "conversations", "conversation")
# The parts of an answer that generators/replies.py reads: its text, and what the model thought before.
READ_PARTS = ("text", "output_text", "thinking", "reasoning", "reasoning_content", "redacted_thinking")


def read_conversation(row: Taken, number: int) -> Record:
    """A conversation: x is what stands before the assistant's last answer, and that answer is the reference.

    It is `messages` of role and content, `conversations` of from and value, or `prompt` and `completion`; `system` is its first message.
    """
    record_id = identity(row, number, "id", "prompt_id")
    if "completion" in row.left:
        value = row.need("prompt", object)
        prompt: Messages = [{"role": "user", "content": value}] if isinstance(value, str) else conversation(value, row, "prompt")
        before, answer = split_answer(row.need("completion", object), row, "completion")
        return {"id": record_id, **x_of([*prompt, *before]), "output": answer}
    name = next((name for name in HELD if row.left.get(name) is not None), None)
    if name is None:
        raise RecordError("messages", "expected a conversation, or `prompt` and `completion`, but the fields are missing")
    messages = conversation(row.need(name, object), row, name)
    system = row.maybe("system", str)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    if messages[-1]["role"] != "assistant":
        return {"id": record_id, **x_of(messages)}
    if len(messages) == 1:
        raise RecordError(name, "expected a question before the answer")
    return {"id": record_id, **x_of(messages[:-1]), "output": messages[-1]["content"]}


def _whole(record: Taken) -> Messages:
    """x, and the reference behind it where there is one."""
    reference = record.maybe("output", str)
    return [*asked(record), *([] if reference is None else [{"role": "assistant", "content": reference}])]


def write_messages(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row of messages."""
    yield {"id": record.fields["id"], "messages": _whole(record)}


def write_sharegpt(record: Taken, writing: Writing) -> Iterator[Fields]:
    """A row of turns.

    Raises:
        RecordError: a role would be another one when it is read.
    """
    messages = _whole(record)
    for place, message in enumerate(messages):
        if message["role"] not in FROM and message["role"] in ("human", "gpt", "chatgpt", "bing", "bard"):
            raise RecordError(f"messages[{place}].role", f"expected user, assistant, system or a role that ShareGPT does not have, got {message['role']!r}")
    yield {"id": record.fields["id"], "conversations": as_turns(messages)}


# --- OpenAI's batches


def read_batch(row: Taken, number: int) -> Record:
    """A line of a batch's requests, which has x, or of its output, which has an answer; those of one `custom_id` are one record.

    Raises:
        RecordError: the request failed, or the answer is no completion.
    """
    record: Record = {"id": row.need("custom_id", str)}
    if "body" in row.left:
        body = Taken(row.need("body", object), "body")
        row.use("method", "url")
        if "messages" in body.left:
            messages = conversation(body.need("messages", object), row, "body.messages")
        else:
            messages = [{"role": "user", "content": text_of(body.need("prompt", object), "body.prompt")}]
        # The request's other fields say how it was asked.
        return record | x_of(messages) | ({"body": body.left} if body.left else {})
    error, response = row.maybe("error", object), row.maybe("response", dict)
    row.use("id")
    if error is not None or response is None:
        raise RecordError("error", f"expected a response, got the error {orjson.dumps(error).decode()[:200]}")
    answer = response.get("body")
    status = response.get("status_code", 200)
    if not isinstance(answer, dict) or not isinstance(status, int) or status >= 400:
        raise RecordError("response", f"expected an answer, got status {status}: {orjson.dumps(answer).decode()[:200]}")
    choices = answer.get("choices")
    count = len(choices) if isinstance(choices, list) else 1
    if "choices" not in answer and isinstance(answer.get("output"), list):
        raise RecordError("response.body", "expected an answer of /v1/chat/completions or /v1/completions, got one of /v1/responses")
    candidates = []
    for place in range(max(1, count)):
        one = {**answer, "choices": choices[place : place + 1]} if isinstance(choices, list) else answer
        try:
            api = "chat" if not isinstance(choices, list) or not choices or "message" in (choices[place] or ()) else "completions"
            reply = read_reply(orjson.dumps(one), api)
        except BadReply as bad:
            raise RecordError("response.body", f"expected a completion, but the server {bad}") from bad
        except SaidError as said:
            raise RecordError("response.body", f"expected a completion, but the server says {said}") from said
        model = answer.get("model")
        fields = {name: value for name, value in reply.completion.fields().items() if value is not None}
        candidate = {"model": typed(model, str, "response.body.model") if model is not None else "model", "text": reply.completion.text, **fields}
        if reply.repaired:
            held = "held what no text may hold: U+FFFD stands in its place"
            row.notes.append((f"answer {held}", f"answers {held}"))
        choice = Taken(choices[place] if isinstance(choices, list) else {}, f"response.body.choices[{place}]", row.dropped)
        if choice.maybe("logprobs", object) is not None:
            row.drop("response.body.choices[].logprobs")
        _keep_message(choice, candidate)
        candidates.append(candidate)
    return record | {"candidates": candidates}


def _keep_message(choice: Taken, candidate: Fields) -> None:
    """Puts what else the answer's message says, such as a refusal, into the candidate. Raises RecordError for one that is not of text alone."""
    message = Taken(choice.maybe("message", dict) or {}, choice.at("message"), choice.dropped)
    for name in ("tool_calls", "function_call", "audio"):
        if message.left.get(name):
            raise RecordError(message.at(name), "expected an answer of text alone: a candidate is a text")
    content = message.left.get("content")
    for place, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, str) and not (isinstance(part, dict) and part.get("type", "text") in READ_PARTS):
            raise RecordError(f"{message.at('content')}[{place}]", "expected a part of text: a candidate is a text")
    message.use("role", "content", "reasoning_content", "reasoning", "thinking")
    message.left = {name: value for name, value in message.left.items() if value}
    message.keep(candidate, OUR_CANDIDATE_FIELDS)


def write_batch(record: Taken, writing: Writing) -> Iterator[Fields]:
    """The request, then a line of output a candidate."""
    record.use("candidates")
    request = {"model": "model", **(record.maybe("body", dict) or {}), "messages": asked(record)}
    yield {"custom_id": record.fields["id"], "method": "POST", "url": "/v1/chat/completions", "body": request}
    for one in record.fields.get("candidates") or ():
        candidate = Taken(one, "candidates[]", record.dropped)
        message: Fields = {"role": "assistant", "content": candidate.need("text", str)}
        reasoning = candidate.maybe("reasoning", str)
        message |= {} if reasoning is None else {"reasoning_content": reasoning}
        choice = {"index": 0, "message": message, "finish_reason": candidate.maybe("finish_reason", str)}
        body = {"object": "chat.completion", "model": candidate.need("model", str), "choices": [choice], "usage": candidate.maybe("usage", dict)}
        candidate.drop_rest()
        yield {"custom_id": record.fields["id"], "response": {"status_code": 200, "body": body}, "error": None}


# --- records


def read_records(row: Taken, number: int) -> Record:
    """A record of ours, from a table of columns, too: `candidates` may also be texts, and what is null is not there."""
    record = {name: _without_nulls(value) for name, value in row.fields.items() if value is not None}
    row.left.clear()
    record["id"] = identity(Taken(row.fields), number, "id")
    candidates = record.get("candidates")
    if isinstance(candidates, str):
        candidates = [candidates]
    if isinstance(candidates, list):
        record["candidates"] = [{"model": f"candidate-{place}", "text": one} if isinstance(one, str) else one for place, one in enumerate(candidates, 1)]
    elif isinstance(candidates, dict):
        # Columns that --map named.
        record["candidates"] = [candidate for model, texts in candidates.items() for candidate in _of_column(model, texts)]
    if "messages" in record:
        record["messages"] = conversation(record["messages"], row, "messages")
    for compared in record["comparisons"].values() if isinstance(record.get("comparisons"), dict) else ():
        pairs = compared.get("pairs") if isinstance(compared, dict) else None
        if isinstance(pairs, list):
            # A table's lists have one kind of number, which makes the indices of [i, j, logit] floats.
            compared["pairs"] = [[*map(_index, pair[:2]), *pair[2:]] if isinstance(pair, list) else pair for pair in pairs]
    verdicts_of(record)
    return record


def _of_column(model: str, texts: Any) -> list[Fields]:
    if isinstance(texts, str):
        return [{"model": model, "text": texts}]
    if not isinstance(texts, list):
        raise RecordError(f"candidates.{model}", f"expected a text or a list of texts, got {kind_of(texts)}")
    return [one if isinstance(one, dict) else {"model": model, "text": one} for one in texts]


def _index(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_nulls(value: Any) -> Any:
    """Parquet gives every row all the names that any row has."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def write_records(record: Taken, writing: Writing) -> Iterator[Fields]:
    """The record as it is."""
    record.left.clear()
    yield dict(record.fields)


def _of_id(record: Record) -> object:
    return record["id"]


MESSAGES = Form(read_conversation, write_messages)
SHAREGPT = Form(read_conversation, write_sharegpt)
SFT = Form(read_conversation, write_sft)
OPENAI_BATCH = Form(read_batch, write_batch, joins=_of_id)
RECORDS = Form(read_records, write_records)
