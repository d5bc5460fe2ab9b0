"""A causal LM reads x once and each of its candidates once behind it: the texts of a batch lie end to end in one row, without padding.

transformers calls the attention that a model names; the one here knows where each text lies. All else that most LMs compute, they compute token by
token, so that the row needs nothing more than each token's place in its own text. Whether that holds of an LM is tried when it is loaded (`attend_by_rows`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import NoInputError, out_of_memory

NAME = "blendkit_shared_prefix"
Span = tuple[int, int]
# x and the candidates that answer it, as ids.
Group = tuple[tuple[int, ...], Sequence[tuple[int, ...]]]


# How long the texts are that are tried, so that candidates lie far from where they would lie alone.
TRIED = ((20, (30, 12)), (15, (8, 9)))
# By how much states may differ from those of each text alone, as a part of their size; what is computed in another way differs by far more.
FAR = {torch.float32: 1e-3}
FAR_IN_NARROW_TYPES = 0.1
# What transformers may tell an attention that says nothing of its scores.
UNUSED = {
    "dropout",
    "is_causal",
    "position_ids",
    "cache_position",
    "position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "use_cache",
    "return_dict",
}


@dataclass
class TextRow:
    """`ids` and `positions` are [1, T]; `groups` says where each x lies, and where each of its candidates."""

    ids: Tensor
    positions: Tensor
    groups: list[tuple[Span, list[Span]]]
    # On a GPU all candidates of one x go through in one call, as calls cost more there than padding.
    together: bool = False
    # States [T, H] behind the layers that somebody reads, by their numbers.
    states: dict[int, Tensor] = field(default_factory=dict)
    # What a candidate's tokens see, by the lengths of x and of the candidate, and where the tokens of a group's candidates lie: once for all layers.
    masks: dict[Span, Tensor] = field(default_factory=dict)
    places: dict[int, Tensor] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Span]:
        """Where all candidates lie, in their order."""
        return [span for _, own in self.groups for span in own]


def row_of(groups: Sequence[Group], device: torch.device) -> TextRow:
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
    placed = torch.tensor([ids, positions], dtype=torch.long).to(device)
    return TextRow(placed[:1], placed[1:], found, device.type != "cpu")


@torch.no_grad()
def attend_by_rows(lm: Any, name: str) -> None:
    """Has a causal LM of transformers attend as its row says; from here on it takes rows only.

    Raises:
        NoInputError: its attention is its own, or the states of texts in one row are not those that each text has alone.
    """
    from transformers import AttentionInterface

    tried = _tried(lm.get_input_embeddings().num_embeddings)
    plain = [_plain(lm, ids) for ids in ([*x, *candidate] for x, candidates in tried for candidate in candidates)]
    AttentionInterface.register(NAME, _attend)
    if lm._can_set_attn_implementation():
        lm.set_attn_implementation(NAME)
    if lm.config._attn_implementation != NAME:
        raise _of_its_own(lm, name)
    for together in (False, True):
        row = row_of(tried, lm.device)
        row.together = together
        try:
            states = states_of(lm, row)
        except (TypeError, RuntimeError, ValueError, LookupError, AttributeError) as error:
            if out_of_memory(error):
                raise
            raise _of_its_own(lm, name) from error
        for (start, end), alone in zip(row.candidates, plain, strict=True):
            expected = alone[start - end :]
            if not float((states[start:end].float() - expected).norm()) <= FAR.get(states.dtype, FAR_IN_NARROW_TYPES) * float(expected.norm()):
                raise _of_its_own(lm, name)


def _tried(words: int) -> list[Group]:
    """Texts of words from all over the vocabulary: of the first ones alone, which are marks, a narrow type's states are off by a quarter."""
    ids = ((101 + 37 * place) % words for place in itertools.count())

    def text(length: int) -> tuple[int, ...]:
        return tuple(itertools.islice(ids, length))

    return [(text(x), [text(length) for length in candidates]) for x, candidates in TRIED]


def _plain(lm: Any, ids: list[int]) -> Tensor:
    found: Tensor = lm(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).last_hidden_state[0].float()
    return found


def _of_its_own(lm: Any, name: str) -> NoInputError:
    return NoInputError(f"{name}: a {type(lm).__name__} reads texts that share their beginning in a way of its own; try another LM (Llama, Qwen, …)")


def states_of(lm: Any, row: TextRow) -> Tensor:
    """The last states of a row, [T, H]."""
    found: Tensor = lm(input_ids=row.ids, position_ids=row.positions, use_cache=False, row=row).last_hidden_state[0]
    return found


def keep_states(layer: Any, number: int) -> None:
    """Has a layer leave its states in the row that it reads."""

    def keep(_: Any, __: Any, given: dict[str, Any], found: Any) -> None:
        given["row"].states[number] = (found[0] if isinstance(found, tuple) else found)[0]

    layer.register_forward_hook(keep, with_kwargs=True)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, row: TextRow, scaling: float | None = None, **more: Any) -> Any:
    """Contexts [1, T, h, d] of queries [1, h, T, d], keys and values [1, k, T, d].

    Raises:
        TypeError: the LM does more to its scores than is done here.
    """
    unknown = [name for name, value in more.items() if value is not None and name not in UNUSED]
    if unknown or attention_mask is not None:
        raise TypeError(f"a {type(module).__name__} has {unknown or 'a mask'} in its attention")
    repeated = query.shape[1] // key.shape[1]
    q, k, v = query[0], key[0].repeat_interleave(repeated, 0), value[0].repeat_interleave(repeated, 0)
    attend = _together if row.together else _one_by_one
    parts = [part for x, own in row.groups for part in attend(q, k, v, x, own, row, scaling)]
    # Some models take the contexts for contiguous.
    return torch.cat([part.transpose(0, 1) for part in parts])[None], None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, x: Span, candidates: list[Span], row: TextRow, scaling: float | None) -> list[Tensor]:
    """Contexts of x, [h, |x|, d], and of each candidate: no token is padding."""
    source, found = slice(*x), [_causal(q, k, v, x, scaling)]
    for start, end in candidates:
        own = slice(start, end)
        keys, values = (torch.cat([part[:, source], part[:, own]], 1) for part in (k, v))
        sees = _sees(row, x[1] - x[0], end - start, q.device)
        found.append(functional.scaled_dot_product_attention(q[None, :, own], keys[None], values[None], attn_mask=sees, scale=scaling)[0])
    return found


def _together(q: Tensor, k: Tensor, v: Tensor, x: Span, candidates: list[Span], row: TextRow, scaling: float | None) -> list[Tensor]:
    """The same with all candidates of an x in one call, padded to the longest."""
    found = [_causal(q, k, v, x, scaling)]
    if not candidates:
        return found
    lengths = [end - start for start, end in candidates]
    longest = max(lengths)
    # Padding is a token that no real one sees.
    places = row.places.get(x[0])
    if places is None:
        starts = torch.tensor([start for start, _ in candidates], device=q.device)
        places = row.places[x[0]] = (starts[:, None] + torch.arange(longest, device=q.device)).clamp(max=q.shape[1] - 1)
    queries, keys, values = (part[:, places].transpose(0, 1) for part in (q, k, v))
    keys, values = (torch.cat([part[:, slice(*x)].expand(len(lengths), -1, -1, -1), own], 2) for part, own in ((k, keys), (v, values)))
    contexts = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=_sees(row, x[1] - x[0], longest, q.device), scale=scaling)
    return found + [context[:, :length] for context, length in zip(contexts, lengths, strict=True)]


def _causal(q: Tensor, k: Tensor, v: Tensor, x: Span, scaling: float | None) -> Tensor:
    q, k, v = (part[None, :, slice(*x)] for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)[0]


def _sees(row: TextRow, before: int, own: int, device: torch.device) -> Tensor:
    """A candidate's tokens see x and what is before them, [own, before + own]; made once for all layers."""
    found = row.masks.get((before, own))
    if found is None:
        found = row.masks[before, own] = torch.ones(own, before + own, dtype=torch.bool, device=device).tril(before)
    return found
