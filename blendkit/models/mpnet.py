"""MPNet (Song et al. 2020) as a PairRanker reads it: token types, distances that both candidates share, and fused attention.

transformers' MPNetModel has no token types, counts its relative distances over the whole input, and computes attention step by
step. The modules here are the model's own, under their own names, so that checkpoints load and are saved as they are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class RoleMPNet(nn.Module):
    """The parts of an MPNetModel. With token types (0 x, 1 and 2 the candidates), both candidates begin where x ends.

    So a candidate has the same distances to x in either role, and an input with one candidate has those of the plain model.
    """

    def __init__(self, encoder: Any) -> None:
        """Takes an MPNetModel; a `type_vocab_size` in its config gives it so many token types, near 0 at first."""
        super().__init__()
        self.config, self.embeddings, self.encoder = encoder.config, encoder.embeddings, encoder.encoder
        self.name_or_path = encoder.name_or_path
        self.checkpointing = False
        types = getattr(self.config, "type_vocab_size", None) or 0
        if types:
            # Of the size of any new embedding, so that even layers that stay as they are tell the texts apart.
            rows = self.config.initializer_range * torch.randn(types, self.config.hidden_size)
            self.embeddings.token_type_embeddings = nn.Embedding(types, self.config.hidden_size, _weight=rows)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of the vocabulary."""
        return self.embeddings.word_embeddings  # type: ignore[no-any-return]

    def gradient_checkpointing_enable(self) -> None:
        """Computes each layer anew in the backward pass, for less memory."""
        self.checkpointing = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, token_type_ids: Tensor | None = None) -> SimpleNamespace:
        """`last_hidden_state` [B, L, H] of token ids [B, L]; the mask is [B, L], or additive [B, 1, L, L]."""
        words = self.get_input_embeddings()(input_ids)
        if hasattr(self.embeddings, "token_type_embeddings"):
            # As BERT has it, a text whose types are not given is of type 0.
            words = words + self.embeddings.token_type_embeddings(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        if position_ids is None:
            # As the embeddings count where they are given ids.
            position_ids = attention_mask.long() * attention_mask.long().cumsum(1) + self.embeddings.padding_idx
        x = self.embeddings(inputs_embeds=words, position_ids=position_ids)
        bias = self.bias(input_ids, token_type_ids).to(x.dtype)
        mask = attention_mask
        bias = bias.masked_fill(mask[:, None, None] == 0, torch.finfo(x.dtype).min) if mask.dim() == 2 else bias + mask
        for layer in self.encoder.layer:
            x = checkpoint(_through, layer, x, bias, use_reentrant=False) if self.checkpointing and self.training else _through(layer, x, bias)
        return SimpleNamespace(last_hidden_state=x)

    def bias(self, ids: Tensor, roles: Tensor | None) -> Tensor:
        """What relative distances add to the scores, [B, h, L, L], or [1, h, L, L] where no candidate stands behind another."""
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        if roles is not None and bool((roles == 2).any()):
            places = places - (roles == 2) * (roles == 1).sum(1, keepdim=True)
        distances = places[:, None, :] - places[:, :, None]
        return self.encoder.relative_attention_bias(buckets(distances)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def buckets(distances: Tensor) -> Tensor:
    """The rows of `relative_attention_bias` for distances key minus query."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    found: Tensor = MPNetEncoder.relative_position_bucket(distances)
    return found


def _through(layer: Any, x: Tensor, bias: Tensor) -> Tensor:
    """One layer's output [B, L, H]."""
    attention, norm = layer.attention.attn, layer.attention.LayerNorm
    shape = (*x.shape[:2], attention.num_attention_heads, attention.attention_head_size)
    q, k, v = (project(x).view(shape).transpose(1, 2) for project in (attention.q, attention.k, attention.v))
    dropout = attention.dropout.p if layer.training else 0.0
    context = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)
    x = norm(layer.attention.dropout(attention.o(context.transpose(1, 2).flatten(2))) + x)
    return layer.output(layer.intermediate(x), x)  # type: ignore[no-any-return]
