"""What a model's length cost: how many texts were cut to it, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blendkit.errors import UsageError
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.terminal_text import count_of, shown


def check_on_truncate(way: str) -> None:
    """Raises UsageError for a way to meet a text that is too long which is none."""
    if way not in ("warn", "fail"):
        raise UsageError(f"--on-truncate {way}: expected warn or fail")


@dataclass
class Cuts:
    """Counts of inputs, of those that were longer than the model reads, and of the tokens that were cut off."""

    inputs: int = 0
    inputs_cut: int = 0
    tokens_cut: int = 0

    def count(self, length: int, longest: int) -> None:
        """Adds an input of `length` tokens, of which `longest` fit."""
        self.inputs += 1
        if length > longest:
            self.inputs_cut += 1
            self.tokens_cut += length - longest

    def add(self, other: Cuts) -> None:
        """Adds what another one has counted."""
        self.inputs, self.inputs_cut, self.tokens_cut = self.inputs + other.inputs, self.inputs_cut + other.inputs_cut, self.tokens_cut + other.tokens_cut

    def message(self, name: str) -> list[str]:
        """One line for a person, or none when nothing was cut."""
        if not self.inputs_cut:
            return []
        return [f"{shown(name)}: cut to the model's length: {self.inputs_cut:,} of {count_of(self.inputs, 'input')} ({count_of(self.tokens_cut, 'token')})"]


def cut_to(longest: int, tokenizer: TextTokenizer, texts: Sequence[str], cuts: Cuts | None = None, **settings: Any) -> Any:
    """What the tokenizer gives for the texts, each cut to `longest` tokens; `cuts` counts. Only those that may be too long are read twice."""
    found = tokenizer(list(texts), truncation=True, max_length=longest, **settings)
    if cuts is not None:
        full = [text for text, ids in zip(texts, found["input_ids"], strict=True) if len(ids) >= longest]
        lengths = iter([len(ids) for ids in tokenizer(full, **settings)["input_ids"]] if full else [])
        for ids in found["input_ids"]:
            cuts.count(next(lengths) if len(ids) >= longest else len(ids), longest)
    return found


def read_to(longest: int, tokenizer: TextTokenizer, text: str, cuts: Cuts | None = None, **settings: Any) -> list[int]:
    """Token ids of one format that was filled with `material`, cut to `longest`; `cuts` counts."""
    ids = tokenizer.read(text, **settings)
    if cuts is not None:
        cuts.count(len(ids), longest)
    return ids if len(ids) <= longest else tokenizer.read(text, truncation=True, max_length=longest, **settings)
