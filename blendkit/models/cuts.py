"""What a model's length cost: how many texts were cut to it, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

from blendkit.terminal_text import count_of, shown


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

    def message(self, name: str) -> list[str]:
        """One line for a person, or none when nothing was cut."""
        if not self.inputs_cut:
            return []
        return [f"{shown(name)}: cut to the model's length: {self.inputs_cut:,} of {count_of(self.inputs, 'input')} ({count_of(self.tokens_cut, 'token')})"]
