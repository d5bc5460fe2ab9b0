"""A tokenizer for which a text is only text: no string in it can become a special token.

The control tokens of a tokenizer (separators, markers, masks, turns of a conversation) are found in any text that
spells them out. Here each gets a new, random name that no text can know. Its id and all else stay, so that every other
text has the ids that it always had, and a text that spells an old name is cut up like any other words.

Where foreign texts stand within a format that has control tokens of its own, `material` hides what a text spells,
the format is filled, and `read` gives the format's tokens their new names before it brings the hidden back. All is
then tokenized at once, so that a prompt without such texts has the ids that it always had, to the last merge.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson

from blendkit.errors import NoInputError
from blendkit.models.templates import rendered

# The roles of a conversation. A template may make a token of a role, such as `<|user|>`, but not of another word.
ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"))


class TextTokenizer:
    """Takes a transformers tokenizer as it is now; tokens that are added to that one later are not known here.

    `known` are added tokens that shall go on being found in texts.
    """

    def __init__(self, tokenizer: Any, known: Collection[str] = ()) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = tokenizer
        # Digits, because a chat template may turn a text into capitals.
        self._mark = "".join(secrets.choice("0123456789") for _ in range(40))
        nonce = secrets.token_hex(16)
        added = [token for token in tokenizer.added_tokens_decoder.items() if token[1].content not in known and _controls(token[1])]
        self._names = {token.content: f"<{nonce}x{number}>" for number, token in added}
        self._alone = {token.content for _, token in added if token.single_word}
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._begun = {name[:length] for name in self._names for length in range(1, len(name))}
        firsts = "".join(sorted({re.escape(name[0]) for name in self._names}))
        self._places = re.compile(rf"{self._mark}([0-9]{{7}})" + (f"|[{firsts}]" if firsts else ""))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = self._renamed(backend) if isinstance(backend, Tokenizer) else None
        self._encoder: Any = None
        if self._backend is not None:
            self._encoder = copy.copy(tokenizer)
            self._encoder._tokenizer = self._backend

    def _renamed(self, backend: Any) -> Any:
        from tokenizers import Tokenizer

        layout = orjson.loads(backend.to_str())
        layout["truncation"] = layout["padding"] = None
        for token in layout["added_tokens"]:
            if token["content"] in self._names:
                # `_parts` has seen to it that a token which must stand alone does.
                token |= {"content": self._names[token["content"]], "single_word": False}
        _rename(layout["model"], self._names)
        found = Tokenizer.from_str(orjson.dumps(layout).decode())
        moved = [token["id"] for token in layout["added_tokens"] if found.token_to_id(token["content"]) != token["id"]]
        if moved:
            raise NoInputError(f"the tokenizer's added tokens have ids with gaps, {moved[0]} first; its tokenizer.json cannot be read back")
        return found

    @property
    def templated(self) -> bool:
        """Whether there is a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def ids(self, first: str, texts: Collection[str]) -> list[list[int]]:
        """Token ids of each text with the added token `first` before it, and around both what the tokenizer's template asks for.

        Raises:
            NoInputError: the tokenizer has no fast form (a tokenizer.json).
        """
        if self._backend is None:
            raise NoInputError(f"{type(self.tokenizer).__name__} has no fast form: the checkpoint needs a tokenizer.json")
        marker = self._names.get(first, first)
        return [encoding.ids for encoding in self._backend.encode_batch([marker + text for text in texts])]

    def __call__(self, texts: Sequence[str], seconds: Sequence[str] | None = None, **settings: Any) -> Mapping[str, Any]:
        """What the tokenizer gives for the texts (or pairs of texts), all of them material; settings are the tokenizer's."""
        if self._encoder is not None:
            found: Mapping[str, Any] = self._encoder(list(texts), None if seconds is None else list(seconds), **settings)
            return found
        pairs = zip(texts, [None] * len(texts) if seconds is None else seconds, strict=True)
        rows = [self._slow(self.material(text), None if second is None else self.material(second), **settings) for text, second in pairs]
        return {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}

    def read(self, text: str, **settings: Any) -> list[int]:
        """Token ids of a format that was filled with `material`; settings are the tokenizer's."""
        if self._encoder is None:
            return list(self._slow(text, None, **settings)["input_ids"])
        return list(self._encoder(self._restored(text), **settings)["input_ids"])

    def material(self, text: str) -> str:
        """The text for a place in a format: the first character of each control token that it spells, or begins at its end, is hidden."""
        hidden = {match.start() for match in self._places.finditer(text) if self._spelled(text, match.start())}
        longest = min(len(text), self._lengths[0] - 1 if self._lengths else 0)
        hidden |= {len(text) - length for length in range(1, longest + 1) if text[-length:] in self._begun}
        if not hidden:
            return text
        return "".join(f"{self._mark}{ord(letter):07d}" if place in hidden else letter for place, letter in enumerate(text))

    def chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **variables: Any) -> str:
        """The conversation by the chat template, for `read(…, add_special_tokens=False)`: all that the messages hold is material.

        `variables` are the template's own, such as `enable_thinking`.
        """
        shown = [{key: self._role(value) if key == "role" else self._material_of(value) for key, value in message.items()} for message in messages]
        return rendered(self.tokenizer, shown, add_generation_prompt=add_generation_prompt, **variables)

    def _role(self, role: str) -> str:
        # A template that writes `<|` and the role and `|>` would make a token of a role that is half of one.
        return role if role in ROLES or not role else f"{self._mark}{ord(role[0]):07d}{self.material(role[1:])}"

    def _material_of(self, value: Any) -> Any:
        """The value; each text in it goes through `material`."""
        if isinstance(value, str):
            return self.material(value)
        if isinstance(value, Mapping):
            return {self._material_of(key): self._material_of(part) for key, part in value.items()}
        return [self._material_of(part) for part in value] if isinstance(value, list) else value

    def _spelled(self, text: str, place: int) -> str | None:
        """The longest control token that the text spells at a place."""
        return next((text[place : place + length] for length in self._lengths if text[place : place + length] in self._names), None)

    def _parts(self, text: str) -> Iterator[tuple[str, str | None]]:
        """The pieces between control tokens and hidden characters, each with what follows it: a token's new name, or the character."""
        start = 0
        for match in self._places.finditer(text):
            if match.start() < start:
                continue
            if match[1]:
                yield text[start : match.start()], chr(int(match[1]))
                start = match.end()
                continue
            token = self._spelled(text, match.start())
            end = match.start() + len(token or "")
            if token and not (token in self._alone and re.search(r"\w", text[max(0, match.start() - 1) : match.start()] + text[end : end + 1])):
                yield text[start : match.start()], self._names[token]
                start = end
        yield text[start:], None

    def _restored(self, text: str) -> str:
        return "".join(before + (following or "") for before, following in self._parts(text))

    def _slow(self, text: str, second: str | None, **settings: Any) -> Mapping[str, Any]:
        """`read` for a tokenizer written in Python, which knows tokens by name only: parts between hidden characters are tokenized one by one."""
        if self._mark not in text + (second or ""):
            found: Mapping[str, Any] = self.tokenizer(text, second, **settings)
            return found

        def ids(whole: str) -> list[int]:
            pieces = re.split(rf"{self._mark}([0-9]{{7}})", whole)
            parts = [piece + chr(int(code)) for piece, code in zip(pieces[::2], pieces[1::2], strict=False)] + [pieces[-1]]
            return [token for part in parts if part for token in self.tokenizer(part, add_special_tokens=False)["input_ids"]]

        prepared: Mapping[str, Any] = self.tokenizer.prepare_for_model(ids(text), None if second is None else ids(second), **settings)
        return prepared


def _controls(token: Any) -> bool:
    """Whether an added token is control, and no text.

    Runs of spaces are text (GPT-NeoX's tokenizer, which ModernBERT has, adds them as tokens, and Gemma's as `▁▁`), and so
    are single characters and words that somebody added without calling them special.
    """
    content = token.content.strip().strip("▁")
    return len(content) > 1 and (bool(token.special) or not content.replace(" ", "").isalnum())


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Gives vocabulary entries the new names of the added tokens that they are; no merge may make or need one."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, log-probability] by id
        for entry in vocabulary:
            entry[0] = names.get(entry[0], entry[0])
        return
    for old, new in names.items():
        if old in vocabulary:
            vocabulary[new] = vocabulary.pop(old)
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not (pair[0] in names or pair[1] in names or pair[0] + pair[1] in names)]
