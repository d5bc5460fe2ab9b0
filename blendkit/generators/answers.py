"""How token ids become an answer: where it ends, what of it is reasoning, and at which stop it is cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from blendkit.generators.base import Completion
from blendkit.generators.reasoning import TAGS, apart

# What gpt-oss writes its channels with.
CHANNELS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")


class Answers:
    """Reads what a model wrote; `ends` are the ids at which an answer is over, and `pad` stands behind its end."""

    def __init__(self, tokenizer: Any, ends: Collection[int], pad: int) -> None:
        self.tokenizer, self.ends, self.pad = tokenizer, frozenset(ends), pad
        added = {str(token): (number, bool(token.special)) for number, token in tokenizer.added_tokens_decoder.items()}
        shown = {*TAGS, *TAGS.values(), *(CHANNELS if "<|channel|>" in added else ())}
        # Special tokens are no text, but for those that tell reasoning from the answer.
        self._telling = {number for content, (number, special) in added.items() if special and content in shown}
        self._silent = {number for number, special in added.values() if special} - self._telling

    def kept(self, written: list[int], padded: bool = False) -> tuple[list[int], bool]:
        """The tokens up to the end of text, which counts, and whether there was one; `padded`: padding may stand behind another end."""
        place = next((place for place, token in enumerate(written) if token in self.ends), None)
        if place is not None:
            return written[: place + 1], True
        while padded and written and written[-1] == self.pad:  # a row that a stop has ended is padded until all others end
            written = written[:-1]
        return written, False

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """Each row as text, special tokens included."""
        return [str(self.tokenizer.decode(row, skip_special_tokens=False)) for row in rows]

    def stopped(self, written: list[int], stops: Sequence[str], opened: bool) -> bool:
        """Whether a stop stands in the answer itself, and not in the reasoning before it."""
        answer, _ = apart(self.texts([written])[0], opened)
        return any(stop in answer for stop in stops)

    def completion(self, written: list[int], prompt_tokens: int, stops: Sequence[str], opened: bool = False, padded: bool = False) -> Completion:
        """The answer of one row, up to the first stop, and the reasoning before it; `padded` as in `kept`."""
        kept, ended = self.kept(written, padded)
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": len(kept)}
        answer, reasoning = self._apart(kept, opened)
        # A stop that is a special token of its own does not show in the text.
        vocabulary = self.tokenizer.get_added_vocab() if stops else {}
        for special in (vocabulary.get(stop) for stop in stops):
            if special in kept and special not in self._telling:
                kept, ended = kept[: kept.index(special)], True
                answer, reasoning = self._apart(kept, opened)
        for stop in stops:
            if stop in answer:
                answer, ended = answer.split(stop)[0], True
        return Completion(answer.strip(), "stop" if ended else "length", counts, reasoning=reasoning)

    def _apart(self, kept: list[int], opened: bool) -> tuple[str, str | None]:
        if not self._telling:
            return apart(str(self.tokenizer.decode(kept, skip_special_tokens=True)), opened)
        seen = [token for token in kept if token not in self._silent]
        answer, reasoning = apart(str(self.tokenizer.decode(seen, skip_special_tokens=False)), opened)
        if reasoning is None:
            return str(self.tokenizer.decode(kept, skip_special_tokens=True)), None
        return answer, reasoning
