"""The embedded ranker's tokenizer and encoder without transformers, whose import takes longer than all that they compute for one record.

Both have what `TextTokenizer`, `PairInputs`, `Encoder` and the packed path ask of transformers' own, and nothing else.
tests/models/test_embedded_parts.py holds them to transformers' ids and states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class PackageTokenizer:
    """A BERT tokenizer read from a folder's tokenizer.json and tokenizer_config.json."""

    chat_template = bos_token_id = eos_token_id = None

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        said = json.loads((folder / "tokenizer_config.json").read_bytes())
        self.name_or_path, self.model_max_length = str(folder), said["model_max_length"]
        self.sep_token: str = said["sep_token"]
        # `TextTokenizer` gives a copy of this object another one here, as it does with transformers'.
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids: Iterator[Any] = (self._tokenizer.token_to_id(said[f"{kind}_token"]) for kind in ("pad", "unk", "cls", "sep"))
        self.pad_token_id, self.unk_token_id, self.cls_token_id, self.sep_token_id = ids

    @property
    def backend_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        return self._tokenizer

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id."""
        found: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return found

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token; of an unknown one that of [UNK]."""
        found = self._tokenizer.token_to_id(token)
        return int(self.unk_token_id) if found is None else int(found)

    def num_special_tokens_to_add(self) -> int:
        """How many tokens stand around a text."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def __call__(
        self, texts: Sequence[str], seconds: None = None, *, add_special_tokens: bool = True, truncation: bool = False, max_length: int | None = None
    ) -> dict[str, list[list[int]]]:
        """`input_ids` of each text, cut to `max_length` with the special tokens kept where `truncation` is set."""
        around = self.num_special_tokens_to_add() if add_special_tokens else 0
        rows = [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)]
        if truncation and max_length is not None:
            # The one special token behind the text is [SEP].
            rows = [[*row[: max_length - bool(around)], *row[-1:] * bool(around)] if len(row) > max_length else row for row in rows]
        return {"input_ids": rows}


class PackedOnlyBert(nn.Module):
    """The modules of a BertModel by the names that transformers gives them, on `meta`; the packed path computes with them."""

    def __init__(self, config: dict[str, Any], name: str) -> None:
        super().__init__()
        self.config, self.name_or_path = SimpleNamespace(**config), name
        with torch.device("meta"):
            self.embeddings = _Embeddings(self.config)
            self.encoder = nn.Module()
            self.encoder.layer = nn.ModuleList(_layer(self.config) for _ in range(self.config.num_hidden_layers))

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of the vocabulary."""
        return self.embeddings.word_embeddings


# The weights come from a file. Random ones before them would cost time, and on `meta` torch imports its compiler to make them.
class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        pass


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        pass


class _Norm(nn.LayerNorm):
    def reset_parameters(self) -> None:
        pass


class _Embeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.word_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = _norm(config)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Embeddings, [B, L, H], of ids, token types and positions, each [B, L]."""
        total = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.LayerNorm(total)  # type: ignore[no-any-return]


def _layer(config: SimpleNamespace) -> nn.Module:
    size, wide = config.hidden_size, config.intermediate_size
    attention = _module(self=_module(query=_Linear(size, size), key=_Linear(size, size), value=_Linear(size, size)), output=_output(size, config))
    intermediate = _module(dense=_Linear(size, wide), intermediate_act_fn=nn.GELU())
    return _module(attention=attention, intermediate=intermediate, output=_output(wide, config))


def _output(size: int, config: SimpleNamespace) -> nn.Module:
    return _module(dense=_Linear(size, config.hidden_size), LayerNorm=_norm(config))


def _norm(config: SimpleNamespace) -> nn.LayerNorm:
    return _Norm(config.hidden_size, eps=config.layer_norm_eps)


def _module(**parts: nn.Module) -> nn.Module:
    found = nn.Module()
    for name, part in parts.items():
        found.add_module(name, part)
    return found
