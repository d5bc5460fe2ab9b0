"""A plain text encoder: hidden states of one layer, for BERTScore, and sentence embeddings, for consensus and cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import NoInputError
from blendkit.models.chat_inputs import started
from blendkit.models.cuts import Cuts, cut_to
from blendkit.models.encoder_reader import EncoderReader, Ids, longest_input
from blendkit.models.fast.proof import wanted
from blendkit.models.layer_list import layers_of, with_layers
from blendkit.models.loading import EMBEDDED, architecture, choose_device
from blendkit.models.number_type import encoder_dtype
from blendkit.models.pretrained import pretrained
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.models.unread import UnknownTokens
from blendkit.terminal_text import count_of

# Measured on the dev split (docs/embedded.md): the layer of the embedded ranker whose BERTScore agrees best with the oracle.
EMBEDDED_LAYER = 4


class Encoder:
    """An encoder cut off after layer `layers` (the one bert-score's authors chose, else all), and its tokenizer.

    Raises:
        NoInputError: there is no such model, or it has no such layer.
    """

    def __init__(self, name: str = EMBEDDED, layers: int | None = None, device: str = "auto", dtype: str = "auto") -> None:
        self.name = name
        self.device = choose_device(device)
        model, self.tokenizer = load_encoder(name, packed_only=not wanted(self.device))
        self.hints: list[str] = []
        self.dtype = encoder_dtype(dtype, self.device, model.config, self.hints)
        self.layers = layers or (EMBEDDED_LAYER if name == EMBEDDED else default_layer(name)) or model.config.num_hidden_layers
        if not 1 <= self.layers <= model.config.num_hidden_layers:
            raise NoInputError(f"{name} has {count_of(model.config.num_hidden_layers, 'layer')}; layer {self.layers} was asked for")
        model = with_layers(model, layers_of(model)[: self.layers])
        self.longest = longest_input(model, self.tokenizer)
        self.texts = TextTokenizer(self.tokenizer)
        self.unknown = UnknownTokens(self.tokenizer)
        self.reader = EncoderReader(model, self.tokenizer.pad_token_id, self.device, self.dtype, places_only=False)

    def ids(self, texts: Sequence[str], cuts: Cuts | None = None) -> list[list[int]]:
        """Token ids with special tokens, cut to what fits, which `cuts` counts; a start of text where a text has no token."""
        if not texts:
            return []
        # As bert-score has it: for these tokenizers a first word is like one after a space.
        prefix: dict[str, Any] = {"add_prefix_space": True} if type(self.tokenizer).__name__.startswith(("Roberta", "GPT2")) else {}
        found = cut_to(self.longest, self.texts, texts, cuts, add_special_tokens=True, **prefix)
        return [started(ids, self.tokenizer) for ids in found["input_ids"]]

    def embed(self, rows: Sequence[Ids]) -> Tensor:
        """Mean-pooled, L2-normalised embeddings of token ids, [n, H], float32 on the CPU."""
        means = torch.stack([states.mean(0) for states in self.reader.states(rows)])
        return functional.normalize(means, dim=-1).cpu()


def default_layer(name: str) -> int | None:
    """The layer that bert-score's authors chose for a public model, if they did."""
    import bert_score.utils

    layer = bert_score.utils.model2layers.get(name)
    return None if layer is None else int(layer)


def load_encoder(name: str, packed_only: bool = False) -> tuple[Any, Any]:
    """An encoder in float32 on the CPU, and its tokenizer; `embedded` is the ranker's, and `packed_only` is `load_pairrm`'s.

    Raises:
        NoInputError: there is no such model, or it is no encoder.
    """
    if name == EMBEDDED:
        from blendkit.models.pairrm import load_pairrm

        ranker, tokenizer = load_pairrm(EMBEDDED, packed_only)
        return ranker.pretrained_model, tokenizer
    from transformers import AutoModel

    return load_pretrained(AutoModel, name, "encoder")


def without_attention_dropout(encoder: Any) -> None:
    """For training: attention without dropout takes the fused kernel, 2.5 times as fast on a CPU; the encoder's other dropout stays.

    It goes by the names that BERT, RoBERTa, ELECTRA and DeBERTa, and MPNet, give it; other encoders keep theirs, and are slower.
    """
    for name, module in encoder.named_modules():
        if name.endswith(("attention.self.dropout", "attention.attn.dropout")):
            module.p = 0.0


def load_pretrained(kind: Any, name: str, what: str, whole: bool = False) -> tuple[Any, Any]:
    """A model by one of transformers' Auto classes, float32, for inference, and its tokenizer.

    Raises:
        NoInputError: there is no such model, it is not what the class loads, or, if `whole`, it is of another class with more weights.
    """
    from transformers import AutoTokenizer

    model, report = pretrained(kind, name, what, dtype=torch.float32, output_loading_info=True)
    tokenizer = pretrained(AutoTokenizer, name, what)
    # transformers fills in random weights for those that a checkpoint lacks. A pooler's are of no use to an encoder.
    missing = sorted(key for key in report["missing_keys"] if what != "encoder" or "pooler." not in key)
    if missing:
        raise NoInputError(f"no {what} in {name}: its checkpoint lacks {count_of(len(missing), 'weight')} of a {type(model).__name__}, such as {missing[0]}")
    more, named = sorted(report["unexpected_keys"]), architecture(name) or type(model).__name__
    if whole and more and named != type(model).__name__:
        raise NoInputError(
            f"no {what} in {name}: it is a {named}, with {count_of(len(more), 'weight')} that a {type(model).__name__} has no use for, such as {more[0]}"
        )
    model = model.eval()
    encoder = getattr(model, "encoder", None)
    # Of a seq2seq model, the encoder is what encodes.
    return (encoder if what == "encoder" and encoder is not None and hasattr(model, "decoder") else model), tokenizer
