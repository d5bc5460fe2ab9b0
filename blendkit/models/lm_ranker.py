"""A ranker on a causal LM that stays as it is: x is read once, each candidate once behind it, and a candidate has one number, its reward.

The reward is a linear function of the mean of the LM's states over the candidate's tokens, and of their number; the states are the last ones, or those
of the layers that the checkpoint names, above which nothing is computed. Low-rank products (LoRA, Hu et al. 2021) may be added to the matrices of the
last layers that are. The logit s_ij of a pair is r_i - r_j, as in Ouyang et al. 2022. A checkpoint holds what was added and the name of the LM, so it is
small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blendkit.errors import NoInputError
from blendkit.models.chat_inputs import chat_ids
from blendkit.models.conversations import Conversations
from blendkit.models.fast.shared_prefix import Group, attend_by_rows, keep_states, row_of, states_of
from blendkit.models.layer_list import layers_of, with_layers
from blendkit.models.loading import LM_RANKER, fingerprint, length_in, locate, number_in, read_config, read_weights, take_weights
from blendkit.models.packaged import PACKAGED
from blendkit.models.pair_inputs import Cut
from blendkit.models.pretrained import pretrained
from blendkit.models.relevance import LowRank, linears_of, module_key
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.models.unread import UnknownTokens
from blendkit.terminal_text import count_of

# A product of a larger rank is no smaller than what it is added to.
MOST_RANK = 10_000
# Tokens that may end a turn, behind a candidate of any length.
TURN_END = 8
Ids = tuple[int, ...]


@dataclass(frozen=True)
class LMRankerConfig:
    """`model_name`: the LM; `adapted_layers`: how many of its last layers have products of rank `rank`; lengths in tokens; `lm`: the LM's fingerprint.

    `read_layers`: behind which of its layers states are read, counted from 1; none stands for the very last. The layers above them are left out.
    """

    model_name: str
    adapted_layers: int
    rank: int
    source_maxlength: int = 256
    candidate_maxlength: int = 384
    lm: str = ""
    read_layers: tuple[int, ...] = ()


class LMRanker(nn.Module):
    """Calls give the rewards of all candidates, [n], float32. The LM is no part of its parameters."""

    def __init__(self, config: LMRankerConfig, lm: Any) -> None:
        """Raises NoInputError where the LM has not as many layers as are to be adapted or read, or does not read texts as it is asked to here."""
        super().__init__()
        _expect_full_attention(lm, config.model_name)
        _expect_steady_positions(lm, config)
        attend_by_rows(lm, config.model_name)
        layers, read = list(layers_of(lm)), config.read_layers
        if any(not 0 < number <= len(layers) for number in read) or sorted(set(read)) != list(read):
            raise NoInputError(f"read_layers: expected rising numbers from 1, and {config.model_name} has {count_of(len(layers), 'layer')}; got {list(read)}")
        # States behind the very last layer are what the LM gives, by its own norm.
        self._below = [number for number in read if number < len(layers)]
        self._reads_last = not read or read[-1] == len(layers)
        layers = layers if self._reads_last else layers[: read[-1]]
        if not 0 <= config.adapted_layers <= len(layers):
            raise NoInputError(f"adapted_layers: {config.model_name} has {count_of(len(layers), 'layer')} to read, got {config.adapted_layers}")
        self.config = config
        lm = with_layers(lm, layers)
        # In a tuple, so that neither its weights are saved nor their mean is taken.
        self._lm = (lm.requires_grad_(False),)
        self.added = nn.ModuleList()
        for layer in layers[len(layers) - config.adapted_layers :]:
            own = nn.ModuleDict()
            for name, linear in linears_of(layer).items():
                own[module_key(name)] = added = LowRank(linear, config.rank)
                linear.register_forward_hook(_more(added))
            self.added.append(own)
        for number in self._below:
            keep_states(layers[number - 1], number)
        # Of the mean states, and of the logarithm of the number of tokens. States of lower layers are of other sizes than the last ones.
        numbers = max(1, len(read)) * int(lm.config.hidden_size) + 1
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(numbers))
        self.weight = nn.Parameter(torch.zeros(numbers))

    @property
    def lm(self) -> Any:
        """The LM, without its head for words."""
        return self._lm[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Devices and number types are the LM's, too.
        self.lm._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def features(self, groups: Sequence[Group]) -> Tensor:
        """What a reward is a linear function of, [n, D], float32: mean states, layer by layer, and log length."""
        row = row_of(groups, self.weight.device)
        if not row.candidates:
            return self.weight.new_zeros(0, len(self.weight))
        last = states_of(self.lm, row)
        read = [row.states[number] for number in self._below] + [last] * self._reads_last
        # No products of matrices, which autocast would round.
        means = [torch.cat([states[start:end].float().mean(0) for states in read]) for start, end in row.candidates]
        lengths = torch.tensor([[float(end - start)] for start, end in row.candidates], device=last.device)
        return torch.cat([torch.stack(means), lengths.log()], 1)

    def forward(self, groups: Sequence[Group]) -> Tensor:
        """Rewards in the order of the groups' candidates."""
        return (self.features(groups) * self.scale * self.weight.float()).sum(1)


def _more(added: LowRank) -> Callable[..., Tensor]:
    """A hook that adds a product to what a linear layer computes: its sum with weights in bfloat16 would be rounded to them."""

    def more(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        (x,) = given
        return found + functional.linear(functional.linear(x, added.narrow.to(x.dtype)), added.widen.to(x.dtype))

    return more


@torch.no_grad()
def _expect_full_attention(lm: Any, name: str) -> None:
    """Refuses an encoder, and an LM with a window or a recurrent state, which rows do not have."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = None
    if not lm.config.is_encoder_decoder:
        try:
            cache = getattr(lm(input_ids=torch.zeros(1, 2, dtype=torch.long, device=lm.device), use_cache=True), "past_key_values", None)
        except (TypeError, ValueError):
            cache = None
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise NoInputError(f"{name}: a ranker stands on a causal LM whose layers all see the whole text (Llama, Qwen, …); a {type(lm).__name__} is none")


def _expect_steady_positions(lm: Any, config: LMRankerConfig) -> None:
    """Refuses lengths from which on an LM turns all positions of a row otherwise, those of its short texts, too."""
    rope = getattr(lm.config, "rope_parameters", None) or {}
    steady = rope.get("original_max_position_embeddings") or getattr(lm.config, "max_position_embeddings", None)
    most = config.source_maxlength + config.candidate_maxlength + TURN_END
    if rope.get("rope_type") in ("dynamic", "longrope") and steady and most > steady:
        raise NoInputError(
            f"{config.model_name} reads texts of more than {count_of(steady, 'token')} in another way than short ones: "
            f"expected a source_maxlength and a candidate_maxlength of at most {steady - TURN_END:,} in all, got {most - TURN_END:,}"
        )


class LMInputs:
    """Ids of x and of candidates as the LM's chat template writes a question and its answer.

    Raises:
        NoInputError: the LM has no chat template.
    """

    def __init__(self, tokenizer: Any, config: LMRankerConfig) -> None:
        self.texts, self.config, self.unknown = TextTokenizer(tokenizer), config, UnknownTokens(tokenizer)
        if not self.texts.templated:
            raise NoInputError(f"{config.model_name} has no chat template, by which a ranker on a causal LM reads x and its answer")
        self.chats = Conversations(self.texts)
        self.end = tuple(sorted(self.chats.turn_end()))

    def source(self, text: str, cuts: list[Cut] | None = None) -> Ids:
        """Ids of x and of all that comes before an answer; of a long one what is in the middle is left out, which is noted in `cuts`."""
        # Some templates with a system role write a message of their own where none is given.
        turns = [*([("system", "")] if self.chats.takes_role("system") else []), ("user", text)]
        ids, most = tuple(chat_ids(self.chats, turns, add_generation_prompt=True)), self.config.source_maxlength
        if len(ids) <= most:
            return ids
        if cuts is not None:
            cuts.append(Cut(len(ids), most))
        return (*ids[: most // 2], *ids[len(ids) - (most - most // 2) :])

    def candidates(self, texts: Sequence[str], source: Ids, cuts: list[Cut] | None = None) -> list[Ids]:
        """Ids of each answer, with what ends a turn behind those that are whole; cuts are noted in `cuts`."""
        most, found = self.config.candidate_maxlength, []
        for ids in self.texts(list(texts), add_special_tokens=False)["input_ids"] if texts else ():
            if len(ids) > most and cuts is not None:
                cuts.append(Cut(len(ids), most))
            found.append(tuple(ids[:most]) if len(ids) > most else (*ids, *self.end))
        return [ids or (0,) for ids in found]


class RewardReader:
    """What `pair` asks of a ranker that reads candidates one by one (`models.fast.scorer.PairScorer`); what was read of one is its reward."""

    late: bool = True

    def __init__(self, model: LMRanker, device: torch.device) -> None:
        self.model = model.to(device)

    @torch.inference_mode()
    def read(self, texts: Sequence[tuple[Ids, Ids]]) -> list[float]:
        """Rewards of (x, candidate); an x that follows itself is read once."""
        groups = [(source, [candidate for _, candidate in own]) for source, own in groupby(texts, key=lambda text: text[0])]
        found: list[float] = self.model(groups).tolist()
        return found

    def compare(self, pairs: Sequence[tuple[float, float]]) -> list[float]:
        """Gives s_ij, of what `read` gave."""
        return [first - second for first, second in pairs]

    def tokens_of_pair(self, first: Ids, second: Ids) -> int:
        """How many tokens of a layer it takes to compare two candidates that were read: as good as none."""
        return 1


def new_lm_ranker(config: LMRankerConfig, dtype: torch.dtype = torch.float32) -> tuple[LMRanker, Any]:
    """One that has learnt nothing, its LM in `dtype`, and its tokenizer.

    Raises:
        NoInputError: there is no such LM, it has too few layers, or it does not keep all that it reads.
    """
    from transformers import AutoModel, AutoTokenizer

    what = "causal LM that a ranker could stand on"
    where = os.path.abspath(config.model_name) if os.path.isdir(config.model_name) and config.model_name not in PACKAGED else config.model_name
    lm = pretrained(AutoModel, where, what, dtype=dtype)
    return LMRanker(replace(config, model_name=where, lm=fingerprint(where)), lm.eval()), pretrained(AutoTokenizer, where, what)


def lm_ranker_config(name: str) -> LMRankerConfig:
    """What the config of a checkpoint says.

    Raises:
        NoInputError: there is no such model, or it is none of this kind.
    """
    folder = locate(name)
    raw = read_config(folder, name)
    if raw.get("ranker_type") != LM_RANKER or not isinstance(raw.get("model_name"), str):
        raise NoInputError(f"{name} is no ranker on a causal LM: its config.json lacks `ranker_type: {LM_RANKER}` or `model_name`")
    return LMRankerConfig(
        raw["model_name"],
        int(number_in(raw, name, ("adapted_layers",), 0, 0, 1000)),
        int(number_in(raw, name, ("rank",), 0, 0, MOST_RANK)),
        length_in(raw, name, 256, "source_maxlength"),
        length_in(raw, name, 384, "candidate_maxlength"),
        str(raw.get("lm", "")),
        _numbers(raw, name, "read_layers"),
    )


def _numbers(raw: dict[str, Any], name: str, key: str) -> tuple[int, ...]:
    listed = raw.get(key, [])
    if not isinstance(listed, list) or any(type(number) is not int or number < 1 for number in listed) or sorted(set(listed)) != listed:
        raise NoInputError(f"{name}: config.json: {key}: expected a list of rising numbers from 1, got {str(listed)[:60]!r}")
    return tuple(listed)


def load_lm_ranker(name: str, dtype: torch.dtype = torch.float32, **changed: Any) -> tuple[LMRanker, Any]:
    """One of a checkpoint, its LM in `dtype`, and the LM's tokenizer.

    `changed`: what is to be otherwise than its config says: lengths, or of one without products how many layers have some and of which rank.

    Raises:
        NoInputError: there is no such model, it is none of this kind, or its LM is not there or another than it learnt with.
    """
    config = lm_ranker_config(name)
    model, tokenizer = new_lm_ranker(replace(config, **changed), dtype)
    if model.config.lm != config.lm:
        raise NoInputError(f"{name} learnt with another {config.model_name}: expected the fingerprint {config.lm[:60]!r}, got {model.config.lm!r}")
    weights = {key: value.float() for key, value in read_weights(locate(name)).items()}
    # The first ones of this kind had none.
    weights.setdefault("scale", torch.ones_like(model.scale))
    take_weights(model, weights, name, "a ranker on a causal LM", "added." if "rank" in changed else "")
    if spare := sorted(set(weights) - set(model.state_dict())):
        raise NoInputError(f"{name}: model.safetensors does not fit config.json: it has {count_of(len(spare), 'weight')} too many, {spare[0]} first")
    return model.eval(), tokenizer


def save_lm_ranker(folder: Path, model: LMRanker) -> None:
    """Writes config.json and model.safetensors, so that `load_lm_ranker` reads them back."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"ranker_type": LM_RANKER, **asdict(model.config)}, indent=1) + "\n")
    # Products are most of it; what the states are weighed by is little, and exact.
    found = {key: value.detach() for key, value in model.state_dict().items()}
    save_file(
        {key: (value.to(torch.float16) if key.startswith("added.") else value.float()).contiguous() for key, value in found.items()},
        folder / "model.safetensors",
    )
