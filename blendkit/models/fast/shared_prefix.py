"""A causal LM reads x once and each of its candidates once behind it: the texts of a batch lie end to end in one row, without padding.

transformers calls the attention that a model names; the one here knows where each text lies. All else that an LM computes, it computes token by
token, so that the row needs nothing more than each token's place in its own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import NoInputError

NAME = "blendkit_shared_prefix"
Span = tuple[int, int]
# x and the candidates that answer it, as ids.
Group = tuple[tuple[int, ...], Sequence[tuple[int, ...]]]


@dataclass
class Row:
    """`ids` and `positions` are [1, T]; `groups` says where each x lies, and where each of its candidates."""

    ids: Tensor
    positions: Tensor
    groups: list[tuple[Span, list[Span]]]
    # Of a GPU all candidates of one x go through in one call, as calls cost more there than padding.
    together: bool = False
    masks: dict[Any, Tensor] = field(default_factory=dict)
    attended: int = 0

    @property
    def candidates(self) -> list[Span]:
        """Where all candidates lie, in their order."""
        return [span for _, own in self.groups for span in own]


def row_of(groups: Sequence[Group], device: torch.device) -> Row:
    """Lays out x and its candidates, one group behind the other."""
    ids: list[int] = []
    positions: list[int] = []
    found: list[tuple[Span, list[Span]]] = []

    def add(text: Sequence[int], first: int) -> Span:
        ids.extend(text)
        positions.extend(range(first, first + len(text)))
        return len(ids) - len(text), len(ids)

    for source, candidates in groups:
        found.append((add(source, 0), [add(candidate, len(source)) for candidate in candidates]))
    return Row(torch.tensor([ids], device=device), torch.tensor([positions], device=device), found, device.type != "cpu")


def attend_by_rows(lm: Any, name: str) -> None:
    """Has a causal LM of transformers attend as its row says; from here on it takes rows only.

    Raises:
        NoInputError: the LM's attention is its own.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    if lm._can_set_attn_implementation():
        lm.set_attn_implementation(NAME)
    if lm.config._attn_implementation != NAME:
        raise NoInputError(f"{name}: a {type(lm).__name__} attends in a way of its own; try another LM (Llama, Qwen, …)")


def states_of(lm: Any, row: Row) -> Tensor:
    """The last states of a row, [T, H].

    Raises:
        NoInputError: the LM does more to its scores than others do, or does not attend as its row says.
    """
    found: Tensor = lm(input_ids=row.ids, position_ids=row.positions, use_cache=False, row=row).last_hidden_state[0]
    if not row.attended:
        raise NoInputError(f"a {type(lm).__name__} attends in a way of its own; try another LM (Llama, Qwen, …)")
    return found


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, row: Row, scaling: float | None = None, **more: Any) -> Any:
    """Contexts [1, T, h, d] of queries [1, h, T, d], keys and values [1, k, T, d]."""
    if unknown := sorted(name for name in ("softcap", "s_aux", "sliding_window") if more.get(name) is not None):
        raise NoInputError(f"a {type(module).__name__} has {unknown[0]} in its attention, which is not computed here; try another LM (Llama, Qwen, …)")
    row.attended += 1
    repeated = query.shape[1] // key.shape[1]
    q, k, v = query[0], key[0].repeat_interleave(repeated, 0), value[0].repeat_interleave(repeated, 0)
    attend = _together if row.together else _one_by_one
    parts = [part for (first, last), own in row.groups for part in attend(q, k, v, (first, last), own, row, scaling)]
    return torch.cat(parts, 1).transpose(0, 1)[None], None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, x: Span, candidates: list[Span], row: Row, scaling: float | None) -> list[Tensor]:
    """Contexts of x, [h, |x|, d], and of each candidate: no token is padding."""
    source, found = slice(*x), [_causal(q, k, v, x, scaling)]
    for start, end in candidates:
        own = slice(start, end)
        keys, values = (torch.cat([part[:, source], part[:, own]], 1) for part in (k, v))
        found.append(_scores(q[:, own], keys, values, _sees(row, x[1] - x[0], end - start, q.device), scaling))
    return found


def _together(q: Tensor, k: Tensor, v: Tensor, x: Span, candidates: list[Span], row: Row, scaling: float | None) -> list[Tensor]:
    """The same with all candidates of an x in one call, padded to the longest."""
    found = [_causal(q, k, v, x, scaling)]
    if not candidates:
        return found
    lengths = [end - start for start, end in candidates]
    longest, most = max(lengths), q.shape[1] - 1
    # Padding is a token that no real one sees.
    kept = row.masks.get(candidates[0])
    if kept is None:
        starts = torch.tensor([start for start, _ in candidates], device=q.device)
        kept = row.masks[candidates[0]] = (starts[:, None] + torch.arange(longest, device=q.device)).clamp(max=most)
    queries, keys, values = (part[:, kept].transpose(0, 1) for part in (q, k, v))
    keys, values = (torch.cat([part[:, slice(*x)].expand(len(lengths), -1, -1, -1), own], 2) for part, own in ((k, keys), (v, values)))
    contexts = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=_sees(row, x[1] - x[0], longest, q.device), scale=scaling)
    return found + [context[:, :length] for context, length in zip(contexts, lengths, strict=True)]


def _causal(q: Tensor, k: Tensor, v: Tensor, x: Span, scaling: float | None) -> Tensor:
    q, k, v = (part[None, :, slice(*x)] for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)[0]


def _scores(q: Tensor, k: Tensor, v: Tensor, sees: Tensor, scaling: float | None) -> Tensor:
    return functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=sees, scale=scaling)[0]


def _sees(row: Row, before: int, own: int, device: torch.device) -> Tensor:
    """A candidate's tokens see x and what is before them, [own, before + own]; made once for all layers."""
    found = row.masks.get((before, own))
    if found is None:
        found = row.masks[before, own] = torch.ones(own, before + own, dtype=torch.bool, device=device).tril(before)
    return found
