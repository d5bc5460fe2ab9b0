"""The PairRanker network (LLM-Blender, section 3.2) and its checkpoint layouts on disk.

One encoder reads `<source> x`, `<candidate1> y_i` and `<candidate2> y_j` together. The last hidden
states of the three marker tokens go in two pairs, (source, candidate1) and (source, candidate2),
through one small head; the logit is the difference of the two scores, averaged over the head's tasks.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blendkit.errors import NoInputError
from blendkit.models.embedded_parts import PackageTokenizer, PackedOnlyBert
from blendkit.models.encoder_reader import first_position
from blendkit.models.layer_list import layers_of
from blendkit.models.loading import EMBEDDED, LM_RANKER, length_in, locate, number_in, read_config, read_weights, take_weights
from blendkit.models.mpnet import RoleMPNet
from blendkit.models.pretrained import pretrained, untrained
from blendkit.models.relevance import FILE as RELEVANCE
from blendkit.models.relevance import Relevance
from blendkit.terminal_text import count_of

# Adam moves a weight by about the learning rate a step: at 3e-5, a thousand steps move a head's bias by 3.
PACE = 100.0
FILES = ("config.json", "model.safetensors", "tokenizer.json")
VOCABULARY = "pretrained_model.embeddings.word_embeddings.weight"
# Behind the name of a matrix that is kept in int8: what each of its rows is multiplied by.
SCALES = ".scales"


@dataclass
class PairRMConfig:
    """What decides the input and the head; the encoder's own config stands in `encoder`.

    `positions` is `running` (one count over the whole input, as the reference does) or `segment`
    (each text counts from 0 and has its own token type), which lets an encoder with 512 learned
    positions see 512 tokens of each text. `candidate_bias` (segment only) is added to the attention scores
    between tokens of different candidates: below 0 it keeps apart what the token types alone would mix up.
    `paired_layers`: how many of the last layers, 0 to 2, let the two candidates see each other, where the layers before them
    read x and each candidate once (`models.fast.late`); None is the paper's ranker, whose candidates see each other in all.
    `expert_layers`: how many of a late-paired ranker's last layers are there twice (`models.expert`); 0 is a ranker without an expert.
    `relevance_layers`: behind which layers a late-paired ranker's second head reads whether a candidate answers x (`models.relevance`).
    `relevance_own_layers`: of how many of the encoder's last layers that head has copies, with products of rank `relevance_rank` added to their matrices.
    `replace_separator`: the reference turns a separator token inside a text into a space; the code of the
    PairRM-hf layout leaves it.
    """

    source_maxlength: int
    candidate_maxlength: int
    n_tasks: int = 1
    drop_out: float = 0.05
    positions: str = "running"
    candidate_bias: float = 0.0
    paired_layers: int | None = None
    expert_layers: int = 0
    relevance_layers: tuple[int, ...] = ()
    relevance_own_layers: int = 0
    relevance_rank: int = 0
    replace_separator: bool = True
    encoder: dict[str, Any] = field(default_factory=dict)


# A config's fields of a ranker that has no expert and no head for relevance.
BARE: dict[str, Any] = {"expert_layers": 0, "relevance_layers": (), "relevance_own_layers": 0, "relevance_rank": 0}


class SecondLayers(nn.Module):
    """A second set of a ranker's last layers, head and paired bias, and the gate to them. They start as copies of its own, and the gate shut."""

    def __init__(self, ranker: PairRM, layers: int) -> None:
        super().__init__()
        encoder: Any = ranker.pretrained_model
        self.layers = deepcopy(layers_of(encoder)[-layers:])
        self.head_layer = deepcopy(ranker.head_layer)
        if ranker.config.paired_layers:
            self.paired_bias = deepcopy(ranker.paired_bias)
        self.gate = nn.Linear(encoder.config.hidden_size, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -1.0)


def _relevance(config: PairRMConfig, encoder: Any) -> Relevance | None:
    return Relevance(encoder, config.relevance_layers, config.relevance_own_layers, config.relevance_rank) if config.relevance_layers else None


class PairRM(nn.Module):
    """PairRanker: `forward` gives one logit a row, > 0 when candidate 1 beats candidate 2."""

    def __init__(self, config: PairRMConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.pretrained_model = encoder if encoder.config.model_type != "mpnet" or isinstance(encoder, RoleMPNet) else RoleMPNet(encoder)  # type: ignore[union-attr]
        self.first_position = first_position(encoder.config)
        hidden = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        # Names and order are the public checkpoint's, so that its weights load as they are.
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * hidden, hidden),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(hidden, config.n_tasks),
        )
        if config.paired_layers:
            self.paired_bias = nn.Parameter(torch.zeros(config.paired_layers, encoder.config.num_attention_heads))  # type: ignore[union-attr,arg-type]
        self.expert = SecondLayers(self, config.expert_layers) if config.expert_layers else None
        self.relevance = _relevance(config, encoder)

    def biases(self) -> Tensor:
        """What is added to the scores between two candidates in the paired layers, [paired_layers, heads]: a constant, and what each head has learnt."""
        # The gradient is the bias's own: a hundred times as large, it would be most of the norm that training clips by.
        kept = self.paired_bias.detach()
        return self.config.candidate_bias + PACE * kept + (self.paired_bias - kept)

    def score(self, states: Tensor, source_at: Tensor, candidate_at: Tensor) -> Tensor:
        """The head's scores [B, n_tasks] of one candidate, from hidden states [B, L, H] and marker places [B]."""
        row = torch.arange(len(states), device=states.device)
        return self.head_layer(torch.cat([states[row, source_at], states[row, candidate_at]], dim=-1))  # type: ignore[no-any-return]

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Last hidden states, [B, L, H]."""
        if "position_ids" in inputs:
            inputs = {**inputs, "position_ids": inputs["position_ids"] + self.first_position}
        if self.config.candidate_bias:
            inputs = {**inputs, "attention_mask": self._biased(inputs["attention_mask"], inputs["token_type_ids"])}
        return self.pretrained_model(**inputs).last_hidden_state  # type: ignore[no-any-return]

    def _biased(self, mask: Tensor, roles: Tensor) -> Tensor:
        """The additive attention mask [B, 1, L, L], with `candidate_bias` between tokens of different candidates."""
        dtype = torch.get_autocast_dtype(mask.device.type) if torch.is_autocast_enabled(mask.device.type) else next(self.head_layer.parameters()).dtype
        across = roles[:, :, None] * roles[:, None, :] == 2
        bias = torch.zeros(across.shape, dtype=dtype, device=mask.device).masked_fill_(across, self.config.candidate_bias)
        return bias.masked_fill_(mask[:, None, :] == 0, torch.finfo(dtype).min)[:, None]

    def forward(self, inputs: dict[str, Tensor], markers: Tensor) -> Tensor:
        """Logits s_ij, [B]. `markers`, [B, 3]: where the source's and the two candidates' markers stand."""
        states = self.encode(inputs)
        left = self.score(states, markers[:, 0], markers[:, 1])
        right = self.score(states, markers[:, 0], markers[:, 2])
        return (left - right).mean(dim=-1)


def made_of(config: PairRMConfig, encoder: Any, owner: PairRM | SecondLayers, expert: SecondLayers | None = None, relevance: Relevance | None = None) -> PairRM:
    """A ranker of these parts, which stay the same objects: an encoder, its owner's head and paired bias, and what may be beside them."""
    found = PairRM(replace(config, **BARE), encoder)
    found.head_layer, found.expert, found.relevance = owner.head_layer, expert, relevance
    if expert:
        found.config.expert_layers = len(expert.layers)
    if relevance:
        of_head: dict[str, Any] = {"relevance_layers": relevance.layers, "relevance_own_layers": relevance.own_layers, "relevance_rank": relevance.rank}
        found.config = replace(found.config, **of_head)
    if config.paired_layers:
        found.paired_bias = owner.paired_bias
    return found.train(owner.training)


def without_relevance(ranker: PairRM) -> PairRM:
    """The ranker without its head for relevance, which is itself where it has none; the weights are the same objects."""
    if ranker.relevance is None:
        return ranker
    return made_of(ranker.config, ranker.pretrained_model, ranker, ranker.expert)


def load_pairrm(name: str, packed_only: bool = False) -> tuple[PairRM, Any]:
    """A PairRM in float32 on the CPU, ready for inference, and its tokenizer.

    Reads both public layouts: llm-blender/PairRM (the config is the ranker's and names the encoder)
    and llm-blender/PairRM-hf (the config is the encoder's, with the ranker's few keys among it).
    `packed_only`: only the packed path will compute with it, so that `embedded` needs no transformers.

    Raises:
        NoInputError: there is no such model, or it is not a PairRM.
    """
    light = packed_only and name == EMBEDDED
    folder = locate(name, *FILES, RELEVANCE)
    raw = read_config(folder, name)
    if raw.get("ranker_type") == LM_RANKER:
        raise NoInputError(f"{name} is a ranker on a causal LM, which pair reads and train ranker --kind lmranker --init goes on from, and no PairRanker")
    encoder_config = _encoder_config(raw, folder, name)
    if encoder_config is None:
        raise NoInputError(f"{name} is not a PairRanker: its config.json has neither `ranker_type` nor PairRM's marker ids")
    tokenizer = PackageTokenizer(folder) if light else _tokenizer(name)
    config = PairRMConfig(
        source_maxlength=length_in(raw, name, 1224, "source_maxlength", "source_max_length"),
        candidate_maxlength=length_in(raw, name, 412, "candidate_maxlength", "candidate_max_length"),
        n_tasks=int(number_in(raw, name, ("n_tasks",), 1, 1, 1000)),
        drop_out=number_in(raw, name, ("drop_out",), 0.05, 0.0, 1.0),
        positions=raw.get("positions", "running"),
        candidate_bias=number_in(raw, name, ("candidate_bias",), 0.0, -1e4, 1e4),
        paired_layers=None if raw.get("paired_layers") is None else int(number_in(raw, name, ("paired_layers",), 0, 0, 2)),
        expert_layers=int(number_in(raw, name, ("expert_layers",), 0, 0, 1000)),
        relevance_layers=_layers(raw, name),
        relevance_own_layers=int(number_in(raw, name, ("relevance_own_layers",), 0, 0, 1000)),
        relevance_rank=int(number_in(raw, name, ("relevance_rank",), 0, 0, 10_000)),
        replace_separator=bool(raw.get("replace_separator", "cand1_prefix_id" not in raw)),
        encoder=encoder_config,
    )
    if config.positions not in ("running", "segment"):
        raise NoInputError(f"{name}: config.json: positions: expected running or segment, got {str(config.positions)[:60]!r}")
    weights = _scaled(read_weights(folder), name)
    if config.relevance_layers:
        weights |= {key: value for key, value in _scaled(read_weights(folder, RELEVANCE), name).items() if key.startswith("relevance.")}
    encoder: Any = PackedOnlyBert(encoder_config, name) if light else untrained(encoder_config, folder, name, "PairRanker's encoder")
    vocabulary = weights.get(VOCABULARY)
    if vocabulary is not None and len(vocabulary) != encoder.config.vocab_size:
        encoder.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    _expect_expert(config, encoder, weights, name)
    _expect_relevance(config, encoder, weights, name)
    model = PairRM(config, encoder)
    # Position ids are a buffer that older checkpoints carry; a pooler is of no use to PairRanker.
    take_weights(model, weights, name, "a PairRanker", spare=".pooler.", assign=light)
    return model.float().eval(), tokenizer


def _expect_expert(config: PairRMConfig, encoder: Any, weights: dict[str, Tensor], name: str) -> None:
    """Raises NoInputError where config.json says of an expert what cannot be, or what the weights do not have."""
    asked, where = config.expert_layers, f"{name}: config.json: expert_layers"
    there = len({key.split(".")[2] for key in weights if key.startswith("expert.layers.")})
    if asked != there:
        raise NoInputError(f"{where}: got {asked}, and model.safetensors has {count_of(there, 'layer')} of an expert")
    if asked and config.paired_layers is None:
        raise NoInputError(f"{where}: only a late-paired ranker has an expert, and paired_layers is missing")
    if asked and asked >= len(layers_of(encoder)):
        raise NoInputError(f"{where}: expected less than its {count_of(len(layers_of(encoder)), 'layer')}, got {asked}")


def _layers(raw: dict[str, Any], name: str) -> tuple[int, ...]:
    given = raw.get("relevance_layers") or []
    if not isinstance(given, list) or not all(type(number) is int for number in given) or len(set(given)) < len(given):
        raise NoInputError(f"{name}: config.json: relevance_layers: expected a list of different whole numbers, got {str(given)[:60]}")
    return tuple(given)


def _expect_relevance(config: PairRMConfig, encoder: Any, weights: dict[str, Tensor], name: str) -> None:
    """Raises NoInputError where the head for relevance would read layers that do not read each candidate once, or has other weights."""
    asked, own, where = config.relevance_layers, config.relevance_own_layers, f"{name}: config.json: relevance"
    if not asked:
        if own or config.relevance_rank:
            raise NoInputError(f"{where}_layers: missing, and there is relevance_own_layers or relevance_rank")
        return
    if config.paired_layers is None:
        raise NoInputError(f"{where}_layers: only a late-paired ranker has a head for relevance, and paired_layers is missing")
    layers, paired = len(layers_of(encoder)), max(1, config.paired_layers)
    if own and not paired <= own <= layers:
        raise NoInputError(f"{where}_own_layers: expected 0, or {paired} to {layers}, got {own}")
    if bool(own) != bool(config.relevance_rank):
        raise NoInputError(f"{where}_rank: expected {'1 or more' if own else '0'} with {count_of(own, 'layer')} of its own, got {config.relevance_rank}")
    most = layers if own else layers - paired
    if any(not 0 <= number <= most for number in asked):
        raise NoInputError(f"{where}_layers: expected numbers from 0 to {most}, got {', '.join(map(str, asked))[:60]}")
    if own and max(asked) < layers:
        raise NoInputError(f"{where}_layers: expected {layers}, the last of its own layers, among them, got {', '.join(map(str, asked))[:60]}")
    with torch.device("meta"):
        head = _relevance(config, encoder)
    assert head is not None
    spare = sorted(key for key in weights if key.startswith("relevance.") and key.removeprefix("relevance.") not in head.state_dict())
    if spare:
        raise NoInputError(f"{name}: {RELEVANCE} does not fit config.json: {spare[0]}: expected nothing, got {list(weights[spare[0]].shape)}")
    for key, value in head.state_dict().items():
        found = weights.get(f"relevance.{key}")
        if found is None or found.shape != value.shape:
            got = "nothing" if found is None else list(found.shape)
            raise NoInputError(f"{name}: {RELEVANCE} does not fit config.json: relevance.{key}: expected {list(value.shape)}, got {got}")


def save_pairrm(folder: Path, model: PairRM, tokenizer: Any, dtype: torch.dtype = torch.float16, small: bool = False) -> None:
    """Writes config.json, model.safetensors and the tokenizer, so that `load_pairrm` reads them back.

    The head for relevance has a file of its own. `small` keeps the vocabulary's embeddings and that head's matrices in int8 with a scale a row, half as
    large as in float16.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = {"ranker_type": "pairranker", **asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if value.is_floating_point() and ".pooler." not in key:
            narrow = small and (key == VOCABULARY or (key.startswith("relevance.") and value.dim() == 2))
            weights |= _in_int8(key, value.detach().float()) if narrow else {key: value.detach().to(dtype).contiguous()}
    apart = {key: weights.pop(key) for key in list(weights) if key.startswith("relevance.")}
    save_file(weights, folder / "model.safetensors")
    if apart:
        save_file(apart, folder / RELEVANCE)
    else:
        # What another ranker left there would be part of this one's fingerprint.
        (folder / RELEVANCE).unlink(missing_ok=True)


def _in_int8(name: str, rows: Tensor) -> dict[str, Tensor]:
    scales = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return {name: (rows / scales).round().to(torch.int8), name + SCALES: scales}


def _scaled(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights, with those that are kept in int8 multiplied by their scales. Raises NoInputError where scales do not fit or are missing."""
    scales = {key.removesuffix(SCALES): weights.pop(key) for key in list(weights) if key.endswith(SCALES)}
    for key, value in weights.items():
        if key in scales and scales[key].shape != (len(value), 1):
            raise NoInputError(f"{name}: {key}{SCALES}: expected [{len(value)}, 1], got {list(scales[key].shape)}")
        if value.dtype == torch.int8 and key not in scales:
            raise NoInputError(f"{name}: {key} is in int8, and {key}{SCALES} is missing")
    return weights | {key: weights[key] * found for key, found in scales.items() if key in weights}


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return pretrained(AutoTokenizer, name, "tokenizer", *FILES)


def _encoder_config(raw: dict[str, Any], folder: Path, name: str) -> dict[str, Any] | None:
    if isinstance(raw.get("encoder"), dict):
        return dict(raw["encoder"])
    if raw.get("ranker_type"):
        backbone = raw.get("model_name")
        if not isinstance(backbone, str):
            raise NoInputError(f"{name}: config.json has neither `encoder` nor `model_name`, so the encoder is unknown")
        # A relative directory is meant from where training ran, which is some parent of the checkpoint.
        beside = [parent / backbone for parent in folder.resolve().parents]
        found = next((path for path in beside if (path / "config.json").is_file()), None)
        source = found or locate(backbone, "config.json")
        return read_config(source, backbone)
    if "cand1_prefix_id" in raw:
        return raw
    return None
