"""A conversation as PairRanker reads it: x holds the user's turns, a candidate all of one side's answers."""

from __future__ import annotations

from collections.abc import Sequence

from blendkit.errors import RecordError
from blendkit.records import Record, source_text

# The reference implementation's own words, misspelling included: PairRM was trained on them.
INSTRUCTION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."


def conversation_source(user_turns: Sequence[str]) -> str:
    """x of a conversation: the user's turns, with a numbered gap behind each."""
    return INSTRUCTION + "\n".join(f"USER: {turn}\nAssistant: <Response {number}>" for number, turn in enumerate(user_turns, 1))


def conversation_candidate(answers: Sequence[str]) -> str:
    """The answers that fill the gaps, numbered."""
    return "\n".join(f"<Response {number}>: {answer}" for number, answer in enumerate(answers, 1))


def pair_texts(record: Record, texts: Sequence[str]) -> tuple[str, list[str]]:
    """x and the candidates' texts; with `messages` of more than one turn, the candidates answer the last one.

    Raises:
        RecordError: the turns are not the user's and the assistant's in alternation, the user's first and last.
    """
    messages = record.get("messages") or []
    if len(messages) < 2:
        return source_text(record), list(texts)
    system = [message["content"] for message in messages if message["role"].lower() == "system"]
    turns = [message for message in messages if message["role"].lower() != "system"]
    for place, message in enumerate(turns):
        expected = "assistant" if place % 2 else "user"
        if message["role"].lower() != expected:
            raise RecordError("messages", f"expected turns of user and assistant in alternation; turn {place + 1} is of {message['role']!r}")
    if len(turns) % 2 == 0:
        raise RecordError("messages", "expected the user's turn last: the candidates are the answers to it")
    questions, answers = [turn["content"] for turn in turns[::2]], [turn["content"] for turn in turns[1::2]]
    if not answers:
        return "\n".join([*system, *questions]), list(texts)
    source = "\n".join([*system, conversation_source(questions)])
    return source, [conversation_candidate([*answers, text]) for text in texts]
