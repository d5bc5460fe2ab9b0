"""Decoding of a batch, token by token, for decoders whose only state is keys and values; others are decoded by transformers' `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blendkit.generators.draws import Choice
from blendkit.models.fast.kv_cache import PreallocatedCache, attention_only, windowed

# Prompts are read in pieces of so many padded tokens: a CPU's cache then holds what a layer computes, a GPU's memory does.
PIECE, PIECE_OF_A_GPU = 2048, 32768
# A beginning that all prompts share is worth a pass of its own from so many tokens on.
SHARED = 8
# On a GPU, answers are looked at every so many tokens: to look is to wait for it.
LOOK = 8


@dataclass
class Written:
    """The tokens of one row, and their log-probabilities in nats under the model itself where these were asked for."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def decodes(network: Any) -> bool:
    """Whether `Decoding` gives what `generate` of transformers would: the network is fed as most are, and keeps keys and values only."""
    from transformers import GenerationMixin

    kind = type(network)
    if not kind.__module__.startswith("transformers.") or network.config.is_encoder_decoder:
        return False
    fed = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation", "_prefill")
    if any(getattr(kind, name, None) is not getattr(GenerationMixin, name, None) for name in fed):
        return False
    if not {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"} <= inspect.signature(network.forward).parameters.keys():
        return False
    return bool(kind._supports_default_dynamic_cache()) and attention_only(network)


class Decoding:
    """One batch. Rows are prompts' ids; a row ends at one of `ends`, at its room, or where `stopped(row, tokens)` says so.

    `positions` are those that the network has, None where there is no limit. What a row is given does not depend on the
    others: padding is masked, a row has its own seed, and one that has ended leaves the batch.
    """

    def __init__(
        self,
        network: Any,
        rows: list[list[int]],
        rooms: list[int],
        choose: Choice,
        ends: frozenset[int],
        *,
        penalty: float = 1.0,
        stopped: Callable[[int, list[int]], bool] | None = None,
        positions: int | None = None,
        logprobs: bool = False,
    ) -> None:
        self.network, self.rooms, self.choose, self.ends = network, rooms, choose, ends
        self.penalty, self.stopped, self.logprobs = penalty, stopped, logprobs
        self.last = None if positions is None else positions - 1
        self.device = network.device
        self.found = [Written() for _ in rows]
        # Slot i of the batch holds row `slots[i]`: each prompt once, like lengths together, then those that are equal to one of these.
        slots = {tuple(rows[row]): row for row in sorted(range(len(rows)), key=lambda row: (-len(rows[row]), -row))}
        self.different = len(slots)
        self.slots = [*slots.values(), *(row for row in range(len(rows)) if slots[tuple(rows[row])] != row)]
        self.prompts = [rows[row] for row in self.slots]
        self.width, self.steps = len(self.prompts[0]), 0
        self.shared = _shared(self.prompts) if self.different > 1 and not windowed(network) else 0
        self.cache = PreallocatedCache(network, len(rows), self.width, max(rooms))
        self.look = LOOK if self.device.type == "cuda" and stopped is None else 1
        self._keeps = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}

    @torch.inference_mode()
    def __call__(self) -> list[Written]:
        """What was written, in the order of the prompts."""
        logits = self._read()
        self._begin()
        pending: list[tuple[Tensor, Tensor | None]] = []
        decoding: Callable[[], AbstractContextManager[Any]] = getattr(self.network, "_optimize_model_for_decode", nullcontext)
        with decoding():
            while True:
                tokens, values = self._next(logits)
                pending.append((tokens, values))
                self.steps += 1
                if len(pending) == self.look or self.steps == max(self.rooms):
                    tokens = self._take(pending)
                    pending = []
                    if not self.slots:
                        return self.found
                logits = self._forward(tokens)

    def _read(self) -> Tensor:
        """The prompts' keys and values go into the cache; the logits behind each, [rows, vocabulary].

        What all prompts begin with, such as a template's system message, is read once and stands in the first columns; the
        rest of each prompt ends in the column before the first answer's.
        """
        shared, found, start = self.shared, [], 0
        if shared:
            self.cache.at(slice(0, 1), 0, 0)
            self._logits(torch.tensor([self.prompts[0][:shared]], device=self.device), None, torch.arange(shared, device=self.device)[None])
            self.cache.move(0, slice(1, self.different), shared)
        while start < self.different:
            width = len(self.prompts[start]) - shared
            count = max(1, (PIECE if self.device.type == "cpu" else PIECE_OF_A_GPU) // width)
            part = [prompt[shared:] for prompt in self.prompts[start : min(start + count, self.different)]]
            ids, mask = (some.to(self.device) for some in left_padded(part, 0))
            places = shared + (mask.cumsum(-1) - 1).clamp_min(0)
            gap = self.width - shared - width if shared else 0
            if shared:
                mask = torch.cat([mask.new_ones(len(part), shared), mask.new_zeros(len(part), gap), mask], dim=1)
            self.cache.at(slice(start, start + len(part)), 0 if shared else self.width - width, shared + gap)
            found.append(self._logits(ids, mask if gap or len(part[-1]) < width else None, places))
            start += len(part)
        logits = torch.cat(found)
        if self.different < len(self.slots):
            first = {tuple(prompt): slot for slot, prompt in enumerate(self.prompts[: self.different])}
            sources = torch.tensor([first[tuple(prompt)] for prompt in self.prompts], device=self.device)
            self.cache.move(sources[self.different :], slice(self.different, None), self.width)
            logits = logits[sources]
        return logits

    def _logits(self, ids: Tensor, mask: Tensor | None, places: Tensor) -> Tensor:
        output = self.network(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True, return_dict=True, **self._keeps
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _begin(self) -> None:
        lengths = [len(prompt) for prompt in self.prompts]
        self.rows = torch.tensor(self.slots, device=self.device)
        self.places = torch.tensor(lengths, device=self.device)
        self.mask = None
        if min(lengths) < self.width:
            columns = torch.arange(self.width + max(self.rooms), device=self.device)
            self.mask = ((columns < self.shared) | (columns >= self.width + self.shared - self.places[:, None])).long()
        # What a penalty is for; padding repeats a token that stands there anyway.
        self.history: Tensor | None = None
        if self.penalty != 1:
            self.history = torch.tensor([prompt[:1] * (self.width - len(prompt)) + prompt for prompt in self.prompts], device=self.device)

    def _next(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The chosen token of each slot, and its log-probability."""
        scores = logits
        if self.history is not None:
            known = scores.gather(1, self.history)
            scores = scores.scatter(1, self.history, torch.where(known < 0, known * self.penalty, known / self.penalty))
        tokens = self.choose(scores, self.rows, self.steps)
        if self.history is not None:
            self.history = torch.cat([self.history, tokens[:, None]], dim=1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1) if self.logprobs else None

    def _forward(self, tokens: Tensor) -> Tensor:
        count, filled = len(self.slots), self.width + self.steps - 1
        self.cache.at(slice(0, count), 0, filled)
        mask = None if self.mask is None else self.mask[:count, : filled + 1]
        # Rows that have ended and are still here read on, where the network's last position is.
        places = self.places if self.last is None else self.places.clamp(max=self.last)
        self.places = self.places + 1
        return self._logits(tokens[:, None], mask, places[:, None])

    def _take(self, pending: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Notes what was chosen, lets rows that have ended go, and gives the last tokens of those that go on."""
        columns = torch.stack([tokens for tokens, _ in pending]).tolist()
        values = torch.stack([value for _, value in pending if value is not None]).tolist() if self.logprobs else []
        ended = set()
        for slot, row in enumerate(self.slots):
            written = self.found[row]
            for place, column in enumerate(columns):
                written.tokens.append(column[slot])
                if values:
                    written.logprobs.append(values[place][slot])
                if column[slot] in self.ends or len(written.tokens) >= self.rooms[row] or (self.stopped and self.stopped(row, written.tokens)):
                    ended.add(slot)
                    break
        tokens = pending[-1][0]
        return self._without(ended, tokens) if ended else tokens

    def _without(self, ended: set[int], tokens: Tensor) -> Tensor:
        """The last of the rows that go on take the places of those that have ended."""
        left = len(self.slots) - len(ended)
        holes = [slot for slot in sorted(ended) if slot < left]
        movers = [slot for slot in range(left, len(self.slots)) if slot not in ended]
        if movers:
            sources, targets = torch.tensor(movers, device=self.device), torch.tensor(holes, device=self.device)
            self.cache.move(sources, targets, self.width + self.steps - 1)
            for part in (self.rows, self.places, tokens, self.mask, self.history):
                if part is not None:
                    part[targets] = part[sources]
            for source, target in zip(movers, holes, strict=True):
                self.slots[target] = self.slots[source]
        self.slots, self.rows, self.places = self.slots[:left], self.rows[:left], self.places[:left]
        if self.history is not None:
            self.history = self.history[:left]
        return tokens[:left]


def _shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, where they are many enough; the last of each prompt is not among them."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    count = next((place for place in range(most) if first[place] != last[place]), most)
    return count if count >= SHARED else 0


def left_padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [rows, tokens], each row ending in the last column."""
    width = max(1, *map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[number, width - len(row) :] = 1
    return ids, mask
