"""Hidden states of token ids by the fastest path that an encoder has, for everything that reads an encoder but PairRanker."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from blendkit.errors import NoInputError
from blendkit.models.fast.encoder import PackedEncoder, packed_encoder
from blendkit.models.fast.int8 import placed
from blendkit.models.fast.packing import pack
from blendkit.models.fast.proof import Proof, some_of, wanted
from blendkit.models.loading import length_in, to_device

Ids = Sequence[int]


class EncoderReader:
    """An encoder of transformers, read packed (`models.fast.encoder`), or padded where its kind has no packed form.

    `places_only`: only `at` will be called, so that the last layer need not be computed for all tokens. Without `attends` attention is
    computed input by input, in plain products on any device.
    """

    def __init__(
        self, encoder: Any, pad: int | None, device: torch.device, dtype: torch.dtype, places_only: bool, packed: bool = True, attends: bool = True
    ) -> None:
        # Padding is masked, so that any token does where the tokenizer has none for it.
        self.device, self.pad = device, pad or 0
        self.name, self.size = encoder.name_or_path, encoder.get_input_embeddings().num_embeddings
        self.packed = packed_encoder(encoder, 0.0, device, dtype, places_only, attends=attends) if packed else None
        self.encoder = None if self.packed else placed(encoder, device, dtype)
        # The plain form's weights, until the first batch is compared with it.
        self.plain = encoder if self.packed is not None and attends and wanted(device) else None

    @torch.inference_mode()
    def states(self, rows: Sequence[Ids]) -> list[Tensor]:
        """States of all tokens of each input, [L, H], float32 on the device.

        Raises:
            NoInputError: the tokenizer knows tokens that the encoder does not.
        """
        expect_embeddings(rows, self.size, self.name)
        if self.packed is not None:
            found = list(torch.split(self.packed.states(pack(rows).to(self.device)), [len(row) for row in rows]))
            if self.plain is not None:
                self._prove(self.packed, [found[place] for place in some_of(len(rows))], rows, [range(len(row)) for row in rows], None)
            return found
        return [states[: len(row)] for states, row in zip(self._padded(rows, None), rows, strict=True)]

    @torch.inference_mode()
    def at(self, rows: Sequence[Ids], places: Sequence[Sequence[int]], types: Sequence[Ids] | None = None) -> Tensor:
        """States at m places of each input, [n, m, H], float32 on the device; `types` are token types. Raises as `states` does."""
        expect_embeddings(rows, self.size, self.name)
        if self.packed is not None:
            at = self.packed(pack(rows, types, places).to(self.device))
            if self.plain is not None:
                self._prove(self.packed, [at[place] for place in some_of(len(rows))], rows, places, types)
            return at
        states = self._padded(rows, types)
        return states[torch.arange(len(rows), device=self.device)[:, None], torch.tensor(places, device=self.device)]

    def _prove(self, packed: PackedEncoder, found: list[Tensor], rows: Sequence[Ids], places: Sequence[Sequence[int]], types: Sequence[Ids] | None) -> None:
        """Holds what was found for some of the rows, at places of each, to what transformers has for them in float32."""
        # A copy, as heads may share modules with the encoder.
        encoder: Any = deepcopy(self.plain).to(self.device, torch.float32).eval()  # type: ignore[union-attr]
        if "token_type_ids" not in inspect.signature(encoder.forward).parameters:
            types = None
        expected = []
        for number in some_of(len(rows)):
            given = {"input_ids": rows[number]} | ({} if types is None else {"token_type_ids": types[number]})
            states = encoder(**{name: torch.tensor([row], device=self.device) for name, row in given.items()}).last_hidden_state[0]
            expected.append(states[torch.tensor(places[number], device=self.device)])
        Proof(packed.choice, self.device, packed.where[1]).states(found, expected)
        # Not before: where memory ran out for it, the smaller batch that is tried next is the first.
        self.plain = None

    def _padded(self, rows: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        inputs = padded(rows, self.pad)
        if types is not None:
            inputs["token_type_ids"] = padded(types, 0)["input_ids"]
        assert self.encoder is not None
        found: Tensor = self.encoder(**to_device(inputs, self.device)).last_hidden_state
        return found.float()


def padded(rows: Sequence[Ids], pad: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, [n, longest], padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def expect_embeddings(rows: Sequence[Ids], size: int, name: str) -> None:
    """Raises NoInputError where a token has no embedding: a tokenizer that grew, and a model that did not."""
    last = max((max(row, default=0) for row in rows), default=0)
    if last >= size:
        raise NoInputError(f"{name}: its tokenizer gives the token {last}, but the model has embeddings of {size} only: the two do not belong together")


def longest_input(model: Any, tokenizer: Any, otherwise: int = 512) -> int:
    """Tokens that fit: the least of what the tokenizer and the position embeddings allow; `otherwise` for a model that names no number of them.

    Raises:
        NoInputError: the checkpoint's files say something that is no such number.
    """
    name = tokenizer.name_or_path
    said = getattr(model.config, "max_position_embeddings", None)
    # transformers has -1 for XLNet, which has relative positions.
    positions = length_in({"max_position_embeddings": None if said == -1 else said}, name, otherwise, "max_position_embeddings")
    fits = tokenizer.model_max_length
    # transformers has 1e30 for tokenizers that do not say.
    if isinstance(fits, bool) or not isinstance(fits, int | float) or not fits >= 1:
        raise NoInputError(f"{name}: tokenizer_config.json: model_max_length: expected a number from 1 on, got {str(fits)[:60]!r}")
    return int(min(fits, positions - first_position(model.config)))


def first_position(config: Any) -> int:
    """The position id of an input's first token: RoBERTa's first ones are those of padding, and those of the models that are made like it."""
    if config.model_type == "mpnet":
        return 2
    alike = config.model_type in ("roberta", "xlm-roberta", "camembert", "data2vec-text", "xlm-roberta-xl", "xmod")
    return int(config.pad_token_id or 0) + 1 if alike else 0
