"""A tokenizer for which a text is only text: no string in it can become a special token.

The added tokens of a tokenizer (separators, markers, masks) are found in any text that spells them out. Here
each gets a new, random name that no text can know. Its id and all else stay, so that every other text has the
ids that it always had, and a text that spells an old name is cut up like any other words.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Any

from blendkit.errors import NoInputError


class TextTokenizer:
    """`ids(texts)` puts a token in front of each text, and around both what the tokenizer's template asks for."""

    def __init__(self, tokenizer: Any, known: Collection[str] = ()) -> None:
        """Takes a fast transformers tokenizer; `known` are added tokens that shall go on being found in texts.

        Raises:
            NoInputError: the tokenizer has no fast form (a tokenizer.json).
        """
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise NoInputError(f"{type(tokenizer).__name__} has no fast form: the checkpoint needs a tokenizer.json")
        layout = json.loads(backend.to_str())
        layout["truncation"] = layout["padding"] = None
        nonce = secrets.token_hex(16)
        self._names: dict[str, str] = {}
        for token in layout["added_tokens"]:
            # Runs of spaces are text: GPT-NeoX's tokenizer, which ModernBERT has, adds them as tokens.
            if token["content"] not in known and token["content"].strip():
                self._names[token["content"]] = token["content"] = f"{nonce}x{token['id']}x"
        _rename(layout["model"], self._names)
        self._tokenizer = Tokenizer.from_str(json.dumps(layout))

    def ids(self, first: str, texts: Collection[str]) -> list[list[int]]:
        """Token ids of each text with the added token `first` before it."""
        marker = self._names.get(first, first)
        return [encoding.ids for encoding in self._tokenizer.encode_batch([marker + text for text in texts])]


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Gives vocabulary entries the new names of the added tokens that they are."""
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
