"""Encoders over packed inputs: states at a few markers, or of all tokens, in the least work that gives them exactly.

Against the plain forward pass of transformers: no padding; queries, keys and values in one product; relative
scores without gathers (see `relative`); projections of the relative embeddings computed once a model; the last
layer computed for the markers only, where only they are read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from blendkit.models.attention_forms import Needs, TakenForm, current
from blendkit.models.fast.attention import PerInput
from blendkit.models.fast.forms import AttentionForm, form_of
from blendkit.models.fast.layers import Layer, Norm, PostNormLayer, PreNormLayer, stream_dtype
from blendkit.models.fast.linear import Linear, keeping_gradients, keeps_gradients, moved, taken
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.relative import Buckets, Relative, Shared
from blendkit.models.mpnet import buckets


class PackedEncoder(ABC):
    """States of the last layer: of the markers by a call, of all tokens by `states`. A family says how it embeds and what its layers are."""

    layers: list[Layer]
    buckets: Buckets | None = None
    shared: Shared | None = None
    final_norm: Norm | None = None

    def __init__(self, encoder: Any, candidate_bias: float, device: torch.device, dtype: torch.dtype, markers_only: bool = True) -> None:
        """`markers_only` lays the last layer out for calls; without it the encoder is for `states`."""
        self.config, self.candidate_bias, self.device = encoder.config, candidate_bias, device
        self.markers_only = markers_only
        self.where = (device, dtype)
        self.stream = stream_dtype(*self.where)
        self.embeddings = moved(encoder.embeddings, device, self.stream)
        self.build(encoder)
        self.choice = TakenForm("per-input")
        self.attention: AttentionForm = PerInput(self.buckets, candidate_bias, self.shared)

    @classmethod
    def handles(cls, config: Any) -> bool:
        """Whether this family's variant is one that the packed path computes."""
        return True

    def attend(self) -> None:
        """Takes the form of attention that the device and this encoder have, or that was asked for. Raises UsageError where the latter cannot run."""
        how = current()
        windows = any(self.window(number) is not None for number in range(len(self.layers)))
        needs = Needs(self.layers[0].head_dim, str(self.stream).removeprefix("torch."), self.buckets is not None, self.shared is not None, windows)
        self.choice = how.take(self.device, needs)
        self.attention = form_of(self.choice, how.asked, self.device, needs, (self.buckets, self.candidate_bias, self.shared))

    @abstractmethod
    def build(self, encoder: Any) -> None:
        """Fills `layers` and what else the family needs."""

    def is_cut(self, number: int, layers: Any) -> bool:
        """Whether a layer is the last one, of which only the markers are computed."""
        return self.markers_only and number == len(layers) - 1

    @abstractmethod
    def embed(self, batch: Packed) -> Tensor:
        """Embeddings, [T, H]."""

    def embedded(self, batch: Packed) -> Tensor:
        """The same as the layers read them: in training a model's own embeddings may be of another number type."""
        return self.embed(batch).to(self.stream)

    def relative(self, number: int) -> Relative | None:
        """The relative embeddings of a layer."""
        return None

    def window(self, number: int) -> int | None:
        """How far a layer's attention reaches to each side; None is everywhere."""
        return None

    def turned(self, states: Tensor, number: int, batch: Packed, rows: Tensor | None = None) -> Tensor:
        """Queries or keys [t, …, h, d] turned by their rotary positions, where a model has them."""
        return states

    def __call__(self, batch: Packed) -> Tensor:
        """States at the m markers of each input, [n, m, H], float32."""
        batch = self.rounded(batch)
        x = self._last(self._through(batch, self.layers[:-1]), batch)
        return self.normed(x).view(*batch.markers.shape, -1)

    def states(self, batch: Packed) -> Tensor:
        """States of all T tokens, [T, H], float32."""
        tokens = sum(batch.lengths)
        return self.normed(self._through(self.rounded(batch), self.layers))[:tokens]

    def rounded(self, batch: Packed) -> Packed:
        """The batch with its tokens filled up to a number that comes often."""
        return batch.rounded(512 if self.device.type == "cuda" else 64)

    def _through(self, batch: Packed, layers: list[Layer]) -> Tensor:
        x = self.embedded(batch)
        for number, layer in enumerate(layers):
            qkv = layer.project(x).to(self.stream)
            qkv = self.turned(qkv, number, batch)
            x = layer.finish(x, self.attention(qkv, batch, self.relative(number), self.window(number)))
        return x

    def normed(self, x: Tensor) -> Tensor:
        """The last layer's states as the model gives them, float32."""
        return (x if self.final_norm is None else self.final_norm(x)).float()

    def _last(self, x: Tensor, batch: Packed) -> Tensor:
        """The last layer, for the markers only: [n·m, H]."""
        number, layer = len(self.layers) - 1, self.layers[-1]
        rows = batch.markers.flatten()
        queries, keys, states = layer.project_last(x, rows)
        queries = self.turned(queries.to(self.stream), number, batch, rows)
        keys = self.turned(keys.to(self.stream), number, batch)
        places, real = batch.grid
        q = queries.view(*batch.markers.shape, *queries.shape[1:]).transpose(1, 2)  # [n, h, m, d]
        k = keys[places].transpose(1, 2)  # [n, h, L, d]
        scores = q @ k.transpose(2, 3)
        asked = batch.offsets[batch.markers]
        distance = asked[:, :, None] - torch.arange(batch.longest, device=self.device)
        relative = self.relative(number)
        if relative is not None:
            scores = scores + self.relative_scores(q, k, relative, distance, batch.longest)
        if self.shared is not None:
            scores = scores + self.shared.bias(batch.places[batch.markers], batch.places[places]).transpose(0, 1).to(scores.dtype)
        if self.candidate_bias:
            across = batch.types[batch.markers][:, :, None] * batch.types[places][:, None] == 2
            scores = scores + across[:, None].to(scores.dtype) * self.candidate_bias
        allowed = real[:, None].expand(distance.shape)
        window = self.window(number)
        if window is not None:
            allowed = allowed & (distance.abs() <= window)
        weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
        mixed = torch.matmul(weights.flatten(1, 2), states[places].to(weights.dtype))  # [n, h·m, H]
        mixed = mixed.view(*weights.shape[:3], -1).transpose(1, 2).flatten(0, 1)
        return layer.finish(x[rows], layer.values_of(mixed))

    def by_distance(self, relative: Relative | None, q: Tensor, k: Tensor, distance: Tensor, reach: int) -> Tensor | None:
        """All that distances add to scores, as `relative_scores` has it; None where they add nothing."""
        if self.shared is not None:
            return self.shared.of(distance).transpose(0, 1).to(q.dtype)
        return None if relative is None else self.relative_scores(q, k, relative, distance, reach)

    def relative_scores(self, q: Tensor, k: Tensor, relative: Relative, distance: Tensor, reach: int) -> Tensor:
        """c2p and p2c of queries [n, h, m, d] and keys [n, h, L, d], [n, h, m, L]; all distances [n, m, L] are below `reach`."""
        if self.buckets is None:
            raise ValueError("relative embeddings without buckets")
        table, centre = self.buckets.rows(reach)
        row = table[distance.long() + centre]
        total = torch.zeros((), dtype=q.dtype, device=q.device)
        if relative.keys is not None:
            by_bucket = q @ relative.keys.transpose(1, 2)
            total = total + by_bucket.gather(-1, row[:, None].expand(-1, q.shape[1], -1, -1))
        if relative.queries is not None:
            by_bucket = k @ relative.queries.transpose(1, 2)
            index = row.transpose(1, 2)[:, None].expand(-1, q.shape[1], -1, -1)
            total = total + by_bucket.gather(-1, index).transpose(2, 3)
        return total


class Bert(PackedEncoder):
    """BERT and MiniLM."""

    names = ("query", "key", "value")

    def build(self, encoder: Any) -> None:
        heads, layers = self.config.num_attention_heads, encoder.encoder.layer
        scale = math.sqrt(self.config.hidden_size // heads)
        self.layers = [PostNormLayer(layer, self.names, heads, scale, self.where, self.is_cut(number, layers)) for number, layer in enumerate(layers)]

    def embed(self, batch: Packed) -> Tensor:
        embedded = self.embeddings(input_ids=batch.ids[None], token_type_ids=batch.types[None], position_ids=self.places(batch)[None])
        return embedded[0]  # type: ignore[no-any-return]

    def places(self, batch: Packed) -> Tensor:
        """Position ids as the model counts them, [T]."""
        return batch.positions


class Roberta(Bert):
    """RoBERTa and XLM-RoBERTa, whose first position is the one behind the padding's."""

    def places(self, batch: Packed) -> Tensor:
        first: int = self.embeddings.padding_idx + 1
        return batch.positions + first


class RemBert(Bert):
    """RemBERT, whose embeddings are narrower than its layers."""

    def build(self, encoder: Any) -> None:
        super().build(encoder)
        widen = encoder.encoder.embedding_hidden_mapping_in
        self.widen = Linear(widen.weight, widen.bias, self.device, self.stream)

    def embed(self, batch: Packed) -> Tensor:
        return self.widen(super().embed(batch))


class MPNet(Roberta):
    """MPNet: a bias by distance that all layers share. Token types are those that `RoleMPNet` gives a PairRanker."""

    names = ("q", "k", "v")

    def build(self, encoder: Any) -> None:
        super().build(encoder)
        # From 128 tokens on, all distances are one bucket.
        distances = torch.arange(-128, 129)
        weight = encoder.encoder.relative_attention_bias.weight
        table = taken(weight).float()[buckets(-distances).to(weight.device)]
        # In training it stays float32: the gradients of all scores at one distance are added up in its type.
        self.shared = Shared(table.T.contiguous().to(self.device, torch.float32 if keeps_gradients() else self.stream))

    def embed(self, batch: Packed) -> Tensor:
        words = self.embeddings.word_embeddings(batch.ids)
        if hasattr(self.embeddings, "token_type_embeddings"):
            words = words + self.embeddings.token_type_embeddings(batch.types)
        return self.embeddings(inputs_embeds=words[None], position_ids=self.places(batch)[None])[0]  # type: ignore[no-any-return]


class DebertaV2(PackedEncoder):
    """DeBERTa-v2 and -v3."""

    @classmethod
    def handles(cls, config: Any) -> bool:
        return bool(getattr(config, "relative_attention", False)) and not getattr(config, "conv_kernel_size", 0)

    def build(self, encoder: Any) -> None:
        config = self.config
        heads, layers = config.num_attention_heads, encoder.encoder.layer
        kinds = [kind for kind in ("c2p", "p2c") if kind in (config.pos_att_type or [])]
        attention = encoder.encoder.layer[0].attention.self
        scale = math.sqrt(attention.attention_head_size * (1 + len(kinds)))
        names = ("query_proj", "key_proj", "value_proj")
        self.layers = [PostNormLayer(layer, names, heads, scale, self.where, self.is_cut(number, layers)) for number, layer in enumerate(layers)]
        self.buckets = Buckets(attention.pos_ebd_size, attention.position_buckets, attention.max_relative_positions, self.device)
        table = taken(encoder.encoder.get_rel_embedding()[: 2 * attention.pos_ebd_size]).float()
        self._relative = [self._projected(layer.attention.self, table, kinds, heads, scale) for layer in encoder.encoder.layer]

    def _projected(self, attention: Any, table: Tensor, kinds: list[str], heads: int, scale: float) -> Relative:
        def project(linear: Any, factor: float) -> Tensor:
            rows = nn.functional.linear(table, taken(linear.weight).float(), taken(linear.bias).float()) * factor
            return rows.view(len(table), heads, -1).transpose(0, 1).contiguous().to(self.device, self.stream)

        keys = attention.key_proj if attention.share_att_key else getattr(attention, "pos_key_proj", None)
        queries = attention.query_proj if attention.share_att_key else getattr(attention, "pos_query_proj", None)
        # The content's query carries the scale already; for position to content the position's query must.
        return Relative(project(keys, 1.0) if "c2p" in kinds else None, project(queries, 1.0 / scale) if "p2c" in kinds else None)

    def embed(self, batch: Packed) -> Tensor:
        # transformers builds a row of zeros as long as the input where a checkpoint has no absolute positions.
        embedded = self.embeddings(input_ids=batch.ids[None], token_type_ids=batch.types[None], position_ids=batch.positions[None])
        return embedded[0]  # type: ignore[no-any-return]

    def relative(self, number: int) -> Relative | None:
        return self._relative[number]


class ModernBert(PackedEncoder):
    """ModernBERT: rotary positions, and layers that see a window only."""

    def build(self, encoder: Any) -> None:
        heads, layers = self.config.num_attention_heads, encoder.layers
        scale = math.sqrt(self.config.hidden_size // heads)
        self.layers = [PreNormLayer(layer, heads, scale, self.where, self.is_cut(number, layers)) for number, layer in enumerate(layers)]
        self.final_norm = Norm(encoder.final_norm, self.device, self.stream)
        self.rotary = moved(encoder.rotary_emb, self.device)
        self.kinds = list(self.config.layer_types)

    def embed(self, batch: Packed) -> Tensor:
        return self.embeddings(batch.ids[None])[0]  # type: ignore[no-any-return]

    def window(self, number: int) -> int | None:
        return int(self.config.sliding_window) if self.kinds[number] == "sliding_attention" else None

    def turned(self, states: Tensor, number: int, batch: Packed, rows: Tensor | None = None) -> Tensor:
        positions = batch.positions if rows is None else batch.positions[rows]
        cos, sin = (part[0].float() for part in self.rotary(states.float(), positions[None], self.kinds[number]))
        if states.dim() == 4:  # queries, keys and values together: the values stay
            pair = _turn(states[:, :2].float(), cos[:, None, None], sin[:, None, None]).to(states.dtype)
            return torch.cat([pair, states[:, 2:]], dim=1)
        return _turn(states.float(), cos[:, None], sin[:, None]).to(states.dtype)


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-right, left], dim=-1) * sin


FAMILIES: dict[str, type[PackedEncoder]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
    "rembert": RemBert,
    "mpnet": MPNet,
    "deberta-v2": DebertaV2,
    "modernbert": ModernBert,
}


def packed_encoder(
    encoder: Any, candidate_bias: float, device: torch.device, dtype: torch.dtype, markers_only: bool = True, gradients: bool = False, attends: bool = True
) -> PackedEncoder | None:
    """The packed form of a transformers encoder, or None where there is none for its kind. The encoder stays as it is, where it is.

    With `gradients`, it computes with the encoder's own weights as they are now, and gradients reach them. `attends` is False for who has
    attention of their own.

    Raises:
        UsageError: the form of attention that was asked for cannot run.
    """
    family = FAMILIES.get(encoder.config.model_type)
    if family is None or not family.handles(encoder.config):
        return None
    with keeping_gradients() if gradients else nullcontext():
        found = family(encoder, candidate_bias, device, dtype, markers_only)
    if attends and not gradients:
        found.attend()
    return found
