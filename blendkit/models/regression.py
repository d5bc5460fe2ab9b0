"""Models with numbers as their answer: BLEURT's and reward models' heads on an encoder or a causal LM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from blendkit.errors import NoInputError
from blendkit.models.encoder_reader import EncoderReader, Ids, expect_embeddings, longest_input, padded
from blendkit.models.fast.encoder import FAMILIES
from blendkit.models.fast.int8 import placed
from blendkit.models.loading import architecture, choose_device, locate, read_config, read_weights, take_weights, to_device
from blendkit.models.number_type import encoder_dtype
from blendkit.models.pretrained import pretrained, untrained
from blendkit.models.text_tokenizer import TextTokenizer

# Encoders that answer from their first token and leave masked ones out of account: a row does not feel its padding.
MASKING = {
    *FAMILIES, "albert", "camembert", "convbert", "data2vec-text", "deberta", "distilbert", "electra", "ernie", "eurobert", "megatron-bert",
    "roberta-prelayernorm", "roformer", "xlm-roberta-xl", "xmod",
}  # fmt: skip
# How the classes of causal LMs are called.
WRITERS = ("ForCausalLM", "LMHeadModel")
HEADS = "a scorer reads sequence classifiers (…ForSequenceClassification)"


class Regressor:
    """A sequence classifier: one number a label. `tokenizer` is its own, `texts` reads foreign texts by it; `longest` the tokens that fit.

    Raises:
        NoInputError: there is no such model, it is of another kind, or it needs code of its own.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto", packed: bool = True) -> None:
        self.name = name
        self.device = choose_device(device)
        self.model, self.tokenizer = _load(name)
        config = self.model.config
        head = _head(self.model) if packed else None
        self.hints: list[str] = []
        self.dtype = encoder_dtype(dtype, self.device, config, self.hints, packed=head is not None)
        self.size = self.model.get_input_embeddings().num_embeddings
        self.labels = [str(config.id2label.get(place, f"LABEL_{place}")) for place in range(config.num_labels)]
        self.texts = TextTokenizer(self.tokenizer)
        # A causal model answers at its last token, and most of them read as far as their memory goes.
        self.causal = hasattr(self.model, "score") and not config.is_encoder_decoder
        self.longest = longest_input(self.model, self.tokenizer, otherwise=1 << 24 if self.causal else 512)
        self.reader = EncoderReader(self.model.base_model, 0, self.device, self.dtype, places_only=True) if head else None
        if head is None:
            placed(self.model.base_model, self.device, self.dtype)
            self.model = self.model.to(self.device, torch.float32 if self.dtype == torch.int8 else self.dtype)
            if self.causal:
                # A reward in bfloat16 has steps of a hundredth of itself, and candidates would tie.
                self.model.score.float()
        else:
            self.model = self.model.float()
            self.head = head
            for part in (*self.model.children(), getattr(self.model.base_model, "pooler", None)):
                if part is not None and part is not self.model.base_model:
                    part.to(self.device)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> list[list[float]]:
        """The labels' numbers for each input, before any softmax; `types` are token types."""
        expect_embeddings(rows, self.size, self.name)
        if self.reader is not None:
            found: list[list[float]] = self.head(self.reader.at(rows, [[0]] * len(rows), types)).float().tolist()
            return found
        if self.causal:
            return self._last(rows).float().tolist()
        if self.model.config.model_type in MASKING:
            return self._padded(rows, types).float().tolist()
        # How others find the token that they answer from is their own matter, and padding may be in the way of it.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        numbers: dict[int, list[float]] = {}
        for _, group in groupby(order, key=lambda place: len(rows[place]) if self.model.config.pad_token_id is not None else place):
            places = list(group)
            parts = self._padded([rows[place] for place in places], None if types is None else [types[place] for place in places])
            numbers |= zip(places, parts.float().tolist(), strict=True)
        return [numbers[place] for place in range(len(rows))]

    def _inputs(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> dict[str, Tensor]:
        inputs = padded(rows, 0)
        if types is not None:
            inputs["token_type_ids"] = padded(types, 0)["input_ids"]
        return to_device(inputs, self.device)

    def _padded(self, rows: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        logits: Tensor = self.model(**self._inputs(rows, types)).logits
        return logits

    def _last(self, rows: Sequence[Ids]) -> Tensor:
        """What the head says at each row's last token that is no padding token, as transformers has it for one row at a time."""
        pad = self.model.config.get_text_config().pad_token_id
        states = self.model.base_model(**self._inputs(rows)).last_hidden_state
        real = [[place for place, token in enumerate(row) if token != pad] or [0] for row in rows]
        last = torch.tensor([places[-1] for places in real], device=self.device)
        scores: Tensor = self.model.score(states[torch.arange(len(rows), device=self.device), last].float())
        return scores


def _head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The layers between the first token's state [n, 1, H] and the labels' numbers [n, L], where the encoder has a packed form."""
    family = FAMILIES.get(model.config.model_type)
    if family is None or not family.handles(model.config):
        return None
    kind = model.config.model_type
    if kind in ("roberta", "xlm-roberta", "mpnet"):
        return lambda states: model.classifier(states)
    if kind in ("bert", "rembert"):
        return lambda states: model.classifier(model.base_model.pooler(states))
    if kind == "deberta-v2":
        return lambda states: model.classifier(model.pooler(states))
    return None


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    from blendkit.models.encoder import load_pretrained

    config = read_config(locate(name), name)
    if config.get("model_type") == "bleurt":
        return _bleurt_port(name)
    _expect_classifier(name, architecture(name), config.get("auto_map"))
    return load_pretrained(AutoModelForSequenceClassification, name, "regression model", whole=True)


def _expect_classifier(name: str, kind: str, code: Any) -> None:
    """Refuses what transformers would load as a classifier, though it is none, and what it would leave the half of."""
    import transformers

    if kind.endswith("ForTokenClassification"):
        raise NoInputError(f"{name} is a {kind}: it judges each token or step (a process reward model), not an answer as a whole; {HEADS}")
    if kind.endswith((*WRITERS, "ForConditionalGeneration")):
        more = f" or the logit of one token (reward:{name}#TOKEN; #0 for Nemotron's)" if kind.endswith(WRITERS) else ""
        raise NoInputError(f"{name} is a {kind}, which writes text and has no head for a score; {HEADS}{more}, and judge --model asks a model that writes")
    classes = code if isinstance(code, dict) else {}
    where = classes.get("AutoModelForSequenceClassification") or next(iter(classes.values()), None)
    if kind and where and kind not in dir(transformers):
        raise NoInputError(f"{name} is a {kind} by code of its own ({where}), which no scorer runs (it would need trust_remote_code); {HEADS}")


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
