"""Texts of which a model or a tokenizer reads hardly anything, such as Thai under an English vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blendkit.terminal_text import count_of


@dataclass
class Unread:
    """Counts of texts and of those that are hardly read; `first` is the id of the first record with one."""

    texts: int = 0
    unread: int = 0
    first: str | None = None

    def count(self, unread: Sequence[bool], record_id: str) -> None:
        """Adds texts of a record, each with whether it is hardly read."""
        self.texts += len(unread)
        found = sum(unread)
        self.unread += found
        if found and self.first is None:
            self.first = record_id

    def message(self, what: str, instead: str) -> list[str]:
        """One line for a person, or none when all was read: `what` is wrong with the texts, and what to use `instead`."""
        if not self.unread:
            return []
        return [f"of {self.unread:,} of {count_of(self.texts, 'text')} {what} (first: record {self.first}); {instead}"]


UNKNOWN = "more than half of the tokens are unknown to the model {}, which cannot tell such texts apart"


class UnknownTokens:
    """Whether more than half of a text's tokens are the one for what the vocabulary does not have."""

    def __init__(self, tokenizer: Any, markers: int = 0) -> None:
        """Each text has `markers` tokens besides its own and those that the tokenizer puts around it."""
        unknown = tokenizer.unk_token_id
        # GPT-2's tokenizer knows all bytes, and names its end of text as the unknown token.
        others = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.token = None if unknown in others else unknown
        self.around = markers + tokenizer.num_special_tokens_to_add()

    def most(self, ids: Sequence[int]) -> bool:
        """Whether they are more than half of a text's ids."""
        return self.token is not None and 2 * ids.count(self.token) > len(ids) - self.around
