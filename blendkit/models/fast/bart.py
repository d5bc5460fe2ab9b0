"""BART over packed inputs: log-probabilities of targets given sources (Lewis et al. 2020).

Against the plain forward pass: no padding; a source is encoded once, and its keys and values for the decoder are
projected once, however many targets it has; probabilities are taken a block of tokens at a time. On a GPU attention alone is
padded: one call for all spans of about one length, where a CPU takes them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from blendkit.models.fast.layers import Norm, stream_dtype
from blendkit.models.fast.linear import Linear
from blendkit.models.fast.meetings import InBlocks, Meeting, OneByOne, Spans
from blendkit.models.fast.transfer import counted, sent

# Rows of logits at a time: with BART's 50,265 words, 50 MB in float32.
LOGITS = 256

Where = tuple[torch.device, torch.dtype]


class Bart:
    """`encode` gives a source's states; `log_probabilities` the mean of each target's tokens."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        """Takes a BartForConditionalGeneration."""
        config = model.config
        self.device, self.stream = device, stream_dtype(device, dtype)
        where = (device, dtype)
        self.start = int(config.decoder_start_token_id)
        sides = (model.model.encoder, model.model.decoder)
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.words = model.model.shared.weight.detach().to(device, self.stream)
        self.positions = [side.embed_positions.weight.detach().to(device, self.stream) for side in sides]
        self.norms = [Norm(side.layernorm_embedding, device, self.stream) for side in sides]
        self.encoder = [EncoderLayer(layer, config.encoder_attention_heads, where) for layer in model.model.encoder.layers]
        self.decoder = [DecoderLayer(layer, config.decoder_attention_heads, where) for layer in model.model.decoder.layers]
        self.out = Linear(model.lm_head.weight, model.final_logits_bias[0], device, dtype)
        self.meeting: type[OneByOne | InBlocks] = OneByOne if device.type == "cpu" else InBlocks

    @torch.inference_mode()
    def encode(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Encoder states of each source, [L, H]."""
        spans = _spans(rows)
        within = self.meeting(spans, spans)
        ids, places = self._sent(_numbers(rows), within)
        x = self._embedded(ids, places, 0)
        for layer in self.encoder:
            x = layer(x, within)
        return list(torch.split(x, [len(row) for row in rows]))

    @torch.inference_mode()
    def log_probabilities(self, work: Sequence[tuple[Tensor, Sequence[Sequence[int]]]]) -> list[list[float]]:
        """For each (source's states, its targets' ids): mean log p(token | source, tokens before) of each target, in nats."""
        targets = [target for _, group in work for target in group]
        memory = torch.cat([states for states, _ in work])
        sources = _spans([states for states, _ in work])
        spans = _spans(targets)
        # All targets of one source attend to it together.
        readers, first = [], 0
        for _, group in work:
            last = first + len(group)
            readers.append((spans[first][0], spans[last - 1][1]))
            first = last
        within, across = self.meeting(spans, spans), self.meeting(readers, sources)
        shifted = [[self.start, *target[:-1]] for target in targets]
        ids, places, gold = self._sent([*_numbers(shifted), _numbers(targets)[0]], within, across)
        x = self._embedded(ids, places, 1)
        for layer in self.decoder:
            x = layer(x, within, memory, across)
        parts = []
        for part, tokens in zip(torch.split(x, LOGITS), torch.split(gold, LOGITS), strict=True):
            logits = self.out(part).float()
            parts.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1))
        values = torch.split(torch.cat(parts).cpu(), [len(target) for target in targets])
        means = torch.stack([tokens.mean() for tokens in values]).tolist()
        found, first = [], 0
        for _, group in work:
            found.append(means[first : first + len(group)])
            first += len(group)
        return found

    def _sent(self, numbers: Sequence[Tensor], *meetings: Meeting) -> list[Tensor]:
        """The numbers on the device, in one transfer with those of the meetings."""
        found = iter(sent([*numbers, *(part for meeting in meetings for part in meeting.parts)], self.device))
        moved = [next(found) for _ in numbers]
        for meeting in meetings:
            meeting.parts = tuple(next(found) for _ in meeting.parts)
        return moved

    def _embedded(self, ids: Tensor, places: Tensor, side: int) -> Tensor:
        # BART counts positions from 2.
        return self.norms[side](self.words[ids] * self.scale + self.positions[side][places + 2])


class Attention:
    """Queries, keys and values by one product where all come from the same states, by two where not."""

    def __init__(self, attention: Any, heads: int, where: Where, cross: bool) -> None:
        self.heads = heads
        query = (attention.q_proj.weight * attention.scaling, attention.q_proj.bias * attention.scaling)
        others = [(part.weight, part.bias) for part in (attention.k_proj, attention.v_proj)]
        self.cross = cross
        self.query = _joined([query], where) if cross else None
        self.rest = _joined(others if cross else [query, *others], where)
        self.out = Linear(attention.out_proj.weight, attention.out_proj.bias, *where)
        self.stream = stream_dtype(*where)

    def within(self, x: Tensor, spans: Meeting, causal: bool) -> Tensor:
        """Each input's tokens attend to each other, [T, H]."""
        q, k, v = self.rest(x).to(self.stream).view(len(x), 3, self.heads, -1).unbind(1)
        return self.out(spans(q, k, v, causal).flatten(1))

    def across(self, x: Tensor, memory: Tensor, readers: Meeting) -> Tensor:
        """The readers of each source attend to its tokens, [T, H]."""
        assert self.query is not None
        q = self.query(x).to(self.stream).view(len(x), self.heads, -1)
        k, v = self.rest(memory).to(self.stream).view(len(memory), 2, self.heads, -1).unbind(1)
        return self.out(readers(q, k, v, False).flatten(1))


class EncoderLayer:
    """Self-attention, then feed-forward, each followed by its norm."""

    def __init__(self, layer: Any, heads: int, where: Where) -> None:
        stream = stream_dtype(*where)
        self.attention = Attention(layer.self_attn, heads, where, cross=False)
        self.norm = Norm(layer.self_attn_layer_norm, where[0], stream)
        self.up = Linear(layer.fc1.weight, layer.fc1.bias, *where, layer.activation_fn)
        self.down = Linear(layer.fc2.weight, layer.fc2.bias, *where)
        self.last_norm = Norm(layer.final_layer_norm, where[0], stream)

    def __call__(self, x: Tensor, spans: Meeting) -> Tensor:
        return self.feed_forward(self.norm(x + self.attention.within(x, spans, causal=False)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.last_norm(x + self.down(self.up(x)))


class DecoderLayer(EncoderLayer):
    """Self-attention on what came before, attention to the source, feed-forward."""

    def __init__(self, layer: Any, heads: int, where: Where) -> None:
        super().__init__(layer, heads, where)
        self.reading = Attention(layer.encoder_attn, heads, where, cross=True)
        self.reading_norm = Norm(layer.encoder_attn_layer_norm, where[0], stream_dtype(*where))

    def __call__(self, x: Tensor, spans: Meeting, memory: Tensor | None = None, readers: Meeting | None = None) -> Tensor:
        assert memory is not None and readers is not None
        x = self.norm(x + self.attention.within(x, spans, causal=True))
        x = self.reading_norm(x + self.reading.across(x, memory, readers))
        return self.feed_forward(x)


def _numbers(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids of the rows end to end, and each one's place in its row."""
    return torch.tensor([token for row in rows for token in row]), counted([len(row) for row in rows])


def _joined(parts: list[tuple[Tensor, Tensor]], where: Where) -> Linear:
    return Linear(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]), *where)


def _spans(rows: Sequence[Any]) -> Spans:
    ends = list(accumulate(len(row) for row in rows))
    return list(zip([0, *ends[:-1]], ends, strict=True))
