"""Conversations as neighbours write them: messages of role and content, turns of from and value, contents in parts; and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blendkit.errors import RecordError
from blendkit.records import source_text
from blendkit.sources.rows import Fields, Taken
from blendkit.untrusted import kind_of

Messages = list[dict[str, str]]
# Roles of ShareGPT and its relatives; any other is kept as it is.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
FROM = {"user": "human", "assistant": "gpt"}
TEXT_PARTS = ("text", "input_text", "output_text")


def conversation(value: object, row: Taken, at: str) -> Messages:
    """The messages of a list of turns; what else a turn holds is counted as dropped.

    Raises:
        RecordError: it is no conversation, is empty, or a turn is not of text alone.
    """
    if not isinstance(value, list):
        raise RecordError(at, f"expected a conversation, got {kind_of(value)}")
    if not value:
        raise RecordError(at, "expected at least one message, got an empty conversation")
    messages = []
    for place, one in enumerate(value):
        turn = Taken(one, f"{at}[{place}]")
        role = turn.need("role", str) if "role" in turn.left else turn.need("from", str)
        name = "content" if "content" in turn.left or "value" not in turn.left else "value"
        messages.append({"role": role if "role" in turn.fields else ROLES.get(role, role), "content": text_of(turn.need(name, object), turn.at(name))})
        for left, what in turn.left.items():
            if what is not None:
                row.drop(f"{at}[].{left}")
    return messages


def text_of(content: object, at: str) -> str:
    """A content, which is a text or a list of parts.

    Raises:
        RecordError: it is neither, or a part is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RecordError(at, f"expected a string, got {kind_of(content)}")
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = f"a part of the type {part.get('type')!r}" if isinstance(part, dict) else kind_of(part)
            raise RecordError(f"{at}[{place}]", f"expected a part of text, got {kind}: a record's messages are texts")
    return "".join(texts)


def x_of(messages: Messages) -> Fields:
    """The record's fields for a conversation that an answer follows: an instruction where it is one question.

    Raises:
        RecordError: there is no message.
    """
    if not messages:
        raise RecordError("messages", "expected a question before the answer, got an empty conversation")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return {"instruction": messages[0]["content"], "input": ""}
    return {"messages": messages}


def messages_of(record: Mapping[str, Any]) -> Messages:
    """x as a conversation."""
    return [{"role": message["role"], "content": message["content"]} for message in record.get("messages") or ()] or [
        {"role": "user", "content": source_text(dict(record))}
    ]


def asked(record: Taken) -> Messages:
    """x as a conversation; what stands beside it, or in its messages beside role and content, is counted as dropped, once a record."""
    if messages := record.left.get("messages"):
        for name in [name for message in messages for name, value in message.items() if name not in ("role", "content") and value is not None]:
            record.drop(f"messages[].{name}")
        for name in ("instruction", "input"):
            if record.left.get(name):
                record.drop(name)
    record.use("instruction", "input", "messages")
    return messages_of(record.fields)


def text_of_x(record: Taken) -> str:
    """x as one text, for forms that have no conversations; the roles of several messages are counted as dropped, once a record."""
    first = bool(record.left.get("messages"))
    if [message["role"] for message in asked(record)] != ["user"] and first:
        record.drop("messages[].role")
    return source_text(record.fields)


def talk(record: Taken, candidate: Fields) -> Messages:
    """x, or the conversation that is the candidate's own, and its answer behind it.

    Raises:
        RecordError: the candidate's own is no conversation.
    """
    x, own = asked(record), candidate.get("messages")
    return [*(x if own is None else conversation(own, record, "candidates[].messages")), {"role": "assistant", "content": candidate["text"]}]


def asked_and_answered(row: Taken, name: str) -> tuple[Messages, str]:
    """The conversation in a field, and the assistant's answer at its end; a text is an answer without a conversation.

    Raises:
        RecordError: the field is missing, no conversation, or does not end with the assistant.
    """
    return split_answer(row.need(name, object), row, name)


def split_answer(value: object, row: Taken, at: str) -> tuple[Messages, str]:
    """As `asked_and_answered`, of a value."""
    if isinstance(value, str):
        return [], value
    if not isinstance(value, list):
        raise RecordError(at, f"expected a text or a conversation, got {kind_of(value)}")
    messages = conversation(value, row, at)
    if messages[-1]["role"] != "assistant":
        raise RecordError(f"{at}[{len(messages) - 1}].role", f"expected the assistant's answer at the end, got {messages[-1]['role']!r}")
    return messages[:-1], messages[-1]["content"]


def as_turns(messages: Messages) -> list[dict[str, str]]:
    """Messages as ShareGPT has them."""
    return [{"from": FROM.get(message["role"], message["role"]), "value": message["content"]} for message in messages]
