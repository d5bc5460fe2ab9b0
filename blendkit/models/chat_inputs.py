"""A conversation as token ids, for models that score its last answer: by the chat template, whatever roles it takes and whatever day it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from blendkit.models.conversations import Conversations
from blendkit.models.text_tokenizer import TextTokenizer

# What templates that ask for the date are told, such as Llama 3.2's: a score shall not change overnight. It is the date that
# they write themselves where nobody tells them the time. transformers passes no function on to a template, but a macro may be one.
TODAY = datetime(2024, 7, 26, 12)
_CODES = ("%d", "%b", "%B", "%Y", "%y", "%m", "%A", "%a", "%j", "%H", "%M", "%S")
_FORMATTED = "".join(f"|replace('{code}', '{shown}')" for code, shown in [("%-d", TODAY.day), *((code, TODAY.strftime(code)) for code in _CODES)])
CLOCK = f"{{%- macro strftime_now(form) -%}}{{{{ form{_FORMATTED} }}}}{{%- endmacro +%}}"


def chat_ids(chats: Conversations, messages: Sequence[tuple[str, str]], add_generation_prompt: bool = False) -> list[int]:
    """Token ids of (role, content) messages by the chat template, at least one. The template spells its special tokens itself, the start of text among them.

    Raises:
        NoInputError: the template is broken, or there is none to choose among several.
        RecordError: it refuses the messages in every form.
    """
    turns = [{"role": role, "content": text} for role, text in messages]
    text = chats.text(turns, add_generation_prompt=add_generation_prompt, preamble=CLOCK if dated(chats.texts) else "")
    return started(chats.texts.read(text, add_special_tokens=False), chats.texts.tokenizer)


def started(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids, or a start of text where there are none: a model reads nothing from nothing."""
    return list(ids) or [next((token for token in (*_starts(tokenizer), tokenizer.eos_token_id) if token is not None), 0)]


def cut_front(ids: list[int], longest: int, tokenizer: Any) -> list[int]:
    """The last `longest` ids, as the answer is at the end; a start of text stays."""
    if len(ids) <= longest:
        return ids
    kept = ids[:1] if longest > 1 and ids[0] in _starts(tokenizer) else []
    return kept + ids[len(ids) - longest + len(kept) :]


def dated(texts: TextTokenizer) -> str | None:
    """The date that the chat template is told, for signatures; None where it does not ask."""
    return TODAY.date().isoformat() if "strftime_now" in str(texts.tokenizer.chat_template) else None


def _starts(tokenizer: Any) -> tuple[int | None, int | None]:
    return tokenizer.bos_token_id, tokenizer.cls_token_id
