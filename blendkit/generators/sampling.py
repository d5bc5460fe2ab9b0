"""What `generate` of transformers is given: the processor of diverse groups, and the criterion by which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blendkit.generators.answers import Answers

# What an earlier group's choice of the same token costs a later one, in nats (Vijayakumar et al. 2018).
DIVERSITY = 1.0


class DiverseGroups:
    """Diverse beam search with groups of one beam: each group's scores fall for what earlier groups chose in this step."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().log_softmax(-1).view(-1, self.groups, scores.shape[-1])
        chosen = torch.zeros_like(scores[:, 0])
        parts = []
        for group in range(self.groups):
            penalised = scores[:, group] - DIVERSITY * chosen
            parts.append(penalised)
            best = penalised.argmax(-1, keepdim=True)
            chosen = chosen.scatter_add(1, best, torch.ones_like(best, dtype=chosen.dtype))
        return torch.stack(parts, dim=1).flatten(0, 1)


class Endings:
    """Ends a row at one of the stops, unless that stands in its reasoning, and where the model's positions do.

    `width` columns are the prompts', `rooms` the tokens that may follow each prompt, and `opened` says which prompts have
    opened the reasoning.
    """

    def __init__(self, answers: Answers, stops: Sequence[str], width: int, rooms: list[int], opened: list[bool]) -> None:
        self.answers, self.stops, self.width = answers, tuple(stops), width
        self.rooms, self.opened = rooms, opened
        self._shortest = min(rooms)
        self._tail = tail_for(stops)

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        rows, columns = input_ids.shape
        done = [False] * rows
        each = rows // len(self.rooms)  # a search tries several continuations of a prompt
        written = columns - self.width
        if written >= self._shortest:
            done = [written >= self.rooms[row // each] for row in range(rows)]
        if self.stops and written > 0:
            tails = self.answers.texts(input_ids[:, max(self.width, columns - self._tail) :].tolist())
            for row, tail in enumerate(tails):
                if not done[row] and any(stop in tail for stop in self.stops):
                    done[row] = self.answers.stopped(input_ids[row, self.width :].tolist(), self.stops, self.opened[row // each])
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class Stops:
    """Whether a row has come to one of the stops, outside of its reasoning; `opened` says which prompts have opened that."""

    def __init__(self, answers: Answers, stops: Sequence[str], opened: list[bool]) -> None:
        self.answers, self.stops, self.opened = answers, tuple(stops), opened
        self._tail = tail_for(stops)

    def __call__(self, row: int, written: list[int]) -> bool:
        """`written` are the row's tokens, of which all but the last were asked about before."""
        (text,) = self.answers.texts([written[-self._tail :]])
        return any(stop in text for stop in self.stops) and self.answers.stopped(written, self.stops, self.opened[row])


def tail_for(stops: Sequence[str]) -> int:
    """The last tokens among which a stop that has just been written is found."""
    # Most tokens have a character or more; one of bytes has less, and such tokens are few in a row.
    return 4 * max((len(stop.encode()) for stop in stops), default=0) + 8
