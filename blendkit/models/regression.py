"""Models with one number as their answer: BLEURT's and reward models' regression heads on an encoder or a causal LM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blendkit.errors import NoInputError
from blendkit.models.encoder_reader import EncoderReader, Ids, longest_input, padded
from blendkit.models.fast.encoder import FAMILIES
from blendkit.models.loading import choose_device, choose_dtype, locate, read_config, read_weights, take_weights, to_device
from blendkit.models.pretrained import pretrained, untrained
from blendkit.models.text_tokenizer import TextTokenizer


class Regressor:
    """A sequence-classification model with one label. `tokenizer` is its own, `texts` reads foreign texts by it; `longest` the tokens that fit.

    Raises:
        NoInputError: there is no such model, or it has another number of labels.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto", packed: bool = True) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.model, self.tokenizer = _load(name)
        if self.model.config.num_labels != 1:
            raise NoInputError(f"{name} has {self.model.config.num_labels} labels; a score needs a model with one")
        self.texts = TextTokenizer(self.tokenizer)
        self.longest = longest_input(self.model, self.tokenizer)
        head = _head(self.model) if packed else None
        self.reader = EncoderReader(self.model.base_model, 0, self.device, self.dtype, places_only=True) if head else None
        if head is None:
            self.model = self.model.to(self.device, self.dtype)
        else:
            self.model = self.model.float()
            self.head = head
            for part in (*self.model.children(), getattr(self.model.base_model, "pooler", None)):
                if part is not None and part is not self.model.base_model:
                    part.to(self.device)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> list[float]:
        """One number an input; `types` are token types."""
        if self.reader is not None:
            found: list[float] = self.head(self.reader.at(rows, [[0]] * len(rows), types))[:, 0].float().tolist()
            return found
        return self._padded(rows, types).float().tolist()

    def _padded(self, rows: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        config, model = self.model.config, self.model
        pad = config.pad_token_id if config.pad_token_id is not None else 0
        inputs = padded(rows, pad)
        if types is not None:
            inputs["token_type_ids"] = padded(types, 0)["input_ids"]
        inputs = to_device(inputs, self.device)
        if not hasattr(model, "score"):
            logits: Tensor = model(**inputs).logits[:, 0]
            return logits
        # A causal model answers at its last token that is no padding; without a padding token in its config
        # transformers refuses to say which that is.
        states = model.base_model(**inputs).last_hidden_state
        real = [[place for place, token in enumerate(row) if token != config.pad_token_id] or [len(row) - 1] for row in rows]
        last = torch.tensor([places[-1] for places in real], device=self.device)
        scores: Tensor = model.score(states[torch.arange(len(rows), device=self.device), last])[:, 0]
        return scores


def _head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The layers between the first token's state [n, 1, H] and the number, where the encoder has a packed form."""
    family = FAMILIES.get(model.config.model_type)
    if family is None or not family.handles(model.config):
        return None
    kind = model.config.model_type
    if kind in ("roberta", "xlm-roberta"):
        return lambda states: model.classifier(states)
    if kind in ("bert", "rembert"):
        return lambda states: model.classifier(model.base_model.pooler(states))
    if kind == "deberta-v2":
        return lambda states: model.classifier(model.pooler(states))
    return None


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    from blendkit.models.encoder import load_pretrained

    if read_config(locate(name), name).get("model_type") == "bleurt":
        return _bleurt_port(name)
    return load_pretrained(AutoModelForSequenceClassification, name, "regression model")


def _bleurt_port(name: str) -> tuple[Any, Any]:
    """The public PyTorch port of BLEURT's checkpoints: RemBERT where embeddings are narrower than layers, BERT otherwise.

    Its own model type is unknown to transformers, but the networks are these two, under other names of weights.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, RemBertTokenizer

    folder = locate(name)
    raw = read_config(folder, name)
    narrow = raw.get("embedding_size")
    shared = {key: value for key, value in raw.items() if key not in ("model_type", "architectures", "embedding_size", "num_labels", "id2label", "label2id")}
    shared |= {"model_type": "rembert", "input_embedding_size": narrow} if narrow else {"model_type": "bert"}
    model: Any = untrained(shared | {"num_labels": 1}, folder, name, "BLEURT", AutoModelForSequenceClassification)
    renamed = {}
    for key, value in read_weights(folder).items():
        key = key.replace("bleurt.", f"{model.base_model_prefix}.", 1) if key.startswith("bleurt.") else key
        renamed[key.replace("encoder.embedding_projection.", "encoder.embedding_hidden_mapping_in.")] = value
    take_weights(model, renamed, name, "a BLEURT")
    # The port's tokenizer class is not known here; a tokenizer.json says all that is needed.
    whole = (folder / "tokenizer.json").is_file()
    kind = PreTrainedTokenizerFast if whole else RemBertTokenizer if narrow else AutoTokenizer
    return model.float().eval(), pretrained(kind, name, "tokenizer (a tokenizer.json is enough)")
