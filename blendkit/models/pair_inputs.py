"""Text into PairRanker's input: `<source> x`, `<candidate1> y_i`, `<candidate2> y_j`, each between [CLS] and [SEP].

Every text is tokenized once; a pair is three lists of ids put together. A budget belongs to one record:
what x leaves unused goes in equal halves to the two candidates (the reference takes the longest x of the
batch instead, so that its scores depend on the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blendkit.models.fast.packing import Packed
from blendkit.models.fast.transfer import counted
from blendkit.models.pairrm import PairRMConfig
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.models.unread import UnknownTokens

SOURCE, CANDIDATE_1, CANDIDATE_2 = MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


@dataclass(frozen=True)
class Segment:
    """One text of the input: its ids, and which of the three roles it plays (0 x, 1 and 2 the candidates)."""

    ids: tuple[int, ...]
    role: int


@dataclass(frozen=True)
class Cut:
    """A text that was longer than its budget, in tokens, marker and [CLS] and [SEP] included."""

    length: int
    budget: int


class PairInputs:
    """Builds and pads the inputs of one checkpoint."""

    def __init__(self, tokenizer: Any, config: PairRMConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.candidate_ids = tuple(tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS[1:])
        self.unknown = UnknownTokens(tokenizer, markers=1)
        # The layout of PairRM-hf leaves separators in texts, and its checkpoints saw them as separators.
        self.texts = TextTokenizer(tokenizer, known=() if config.replace_separator else (tokenizer.sep_token,))

    def source(self, text: str, cuts: list[Cut] | None = None) -> tuple[int, ...]:
        """Ids of x with its marker, cut to `source_maxlength`; a cut is noted in `cuts`."""
        return self._cut(self._encode(SOURCE, [text])[0], self.config.source_maxlength, cuts)

    def candidates(self, texts: Sequence[str], source: tuple[int, ...], cuts: list[Cut] | None = None) -> list[tuple[int, ...]]:
        """Ids of each candidate as candidate 1, cut to the budget that this x leaves; cuts are noted in `cuts`."""
        budget = self.config.candidate_maxlength
        if self.config.positions == "running":
            budget += (self.config.source_maxlength - len(source)) // 2
        return [self._cut(ids, budget, cuts) for ids in self._encode(CANDIDATE_1, texts)]

    def pair(self, source: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]) -> list[Segment]:
        """The three segments of one input; both candidates come as `candidates` gives them."""
        return [Segment(source, 0), Segment(first, 1), Segment(self._as(second, 2), 2)]

    def single(self, source: tuple[int, ...], candidate: tuple[int, ...], role: int) -> list[Segment]:
        """x with one candidate alone, in the role of candidate 1 or 2 (used in training)."""
        return [Segment(source, 0), Segment(self._as(candidate, role), role)]

    def collate(self, rows: Sequence[Sequence[Segment]]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs [B, L] padded to the longest row, and where each segment's marker stands, [B, segments]."""
        width = max(sum(len(segment.ids) for segment in row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask, positions, types = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        markers = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
        for number, row in enumerate(rows):
            start = 0
            for column, segment in enumerate(row):
                end = start + len(segment.ids)
                ids[number, start:end] = torch.tensor(segment.ids)
                positions[number, start:end] = torch.arange(end - start)
                types[number, start:end] = segment.role
                markers[number, column] = start + 1  # behind [CLS]
                start = end
            mask[number, :start] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.config.positions == "segment":
            inputs |= {"position_ids": positions, "token_type_ids": types}
        return inputs, markers

    def pack(self, rows: Sequence[Sequence[Segment]]) -> Packed:
        """The same inputs end to end, without padding."""
        # A record's texts are in many of its pairs: each is made an array once.
        arrays = {ids: np.array(ids) for ids in {segment.ids for row in rows for segment in row}}
        parts = [arrays[segment.ids] for row in rows for segment in row]
        ids = torch.from_numpy(np.concatenate(parts))
        sizes = np.array([len(part) for part in parts])
        lengths = sizes.reshape(len(rows), -1).sum(1)
        if self.config.positions == "segment":
            positions, types = counted(sizes), torch.from_numpy(np.array([segment.role for row in rows for segment in row]).repeat(sizes))
        else:
            positions, types = counted(lengths), torch.zeros_like(ids)
        # Markers stand behind [CLS].
        markers = (sizes.cumsum() - sizes).reshape(len(rows), -1) + 1
        return Packed(ids, positions, types, lengths.tolist(), torch.from_numpy(markers))

    def _encode(self, marker: str, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self.config.replace_separator:
            texts = [text.replace(self.tokenizer.sep_token, " ") for text in texts]
        return self.texts.ids(marker, texts)

    def _cut(self, ids: list[int], budget: int, cuts: list[Cut] | None) -> tuple[int, ...]:
        if len(ids) <= budget:
            return tuple(ids)
        if cuts is not None:
            cuts.append(Cut(len(ids), budget))
        return (*ids[: budget - 1], self.tokenizer.sep_token_id)

    def as_first(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The same candidate in the role of candidate 1."""
        return self._as(ids, 1)

    def _as(self, ids: tuple[int, ...], role: int) -> tuple[int, ...]:
        return (ids[0], self.candidate_ids[role - 1], *ids[2:])
