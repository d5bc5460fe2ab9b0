"""A plain text encoder: hidden states of one layer, for BERTScore, and sentence embeddings, for consensus."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import NoInputError
from blendkit.models.loading import EMBEDDED, choose_device, choose_dtype, locate, no_such_model, to_device

# Measured on the dev split (docs/embedded.md): the layer of the embedded ranker whose BERTScore agrees best with the oracle.
EMBEDDED_LAYER = 4


class Encoder:
    """An encoder cut off after layer `layers` (all of them when None), and its tokenizer.

    Raises:
        NoInputError: there is no such model.
    """

    def __init__(self, name: str = EMBEDDED, layers: int | None = None, device: str = "auto", dtype: str = "auto") -> None:
        self.name = name
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.model, self.tokenizer = _load(name)
        self.layers = layers or (EMBEDDED_LAYER if name == EMBEDDED else default_layer(name)) or self.model.config.num_hidden_layers
        if not 1 <= self.layers <= self.model.config.num_hidden_layers:
            raise NoInputError(f"{name} has {self.model.config.num_hidden_layers} layers; layer {self.layers} was asked for")
        _cut(self.model, self.layers)
        self.model = self.model.to(self.device, self.dtype).eval()
        # Some tokenizers know no limit; the position embeddings do.
        limit = getattr(self.model.config, "max_position_embeddings", 512)
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, limit - (2 if self.model.config.model_type == "roberta" else 0))

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> Tensor:
        """Mean-pooled, L2-normalised embeddings, [n, H], float32 on the CPU."""
        batch = to_device(dict(self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)), self.device)
        states = self.model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu()


def default_layer(name: str) -> int | None:
    """The layer that bert-score's authors chose for a public model, if they did."""
    import bert_score.utils

    layer = bert_score.utils.model2layers.get(name)
    return None if layer is None else int(layer)


def _load(name: str) -> tuple[Any, Any]:
    if name == EMBEDDED:
        from blendkit.models.pairrm import load_pairrm

        ranker, tokenizer = load_pairrm(EMBEDDED)
        return ranker.pretrained_model, tokenizer
    from transformers import AutoModel, AutoTokenizer

    folder = locate(name)
    try:
        return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise NoInputError(f"no encoder in {name}: {error or no_such_model(error)}") from error


def _cut(model: Any, layers: int) -> None:
    stack = model.encoder if hasattr(model, "encoder") else model
    for attribute in ("layer", "layers"):
        if hasattr(stack, attribute):
            setattr(stack, attribute, getattr(stack, attribute)[:layers])
            return
    raise NoInputError(f"cannot take layer {layers} of a {type(model).__name__}: it has no list of layers; try another --model")
