"""Logits of pairs, by the fastest path that a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blendkit.models.fast.encoder import PackedEncoder, packed_encoder
from blendkit.models.fast.int8 import placed
from blendkit.models.fast.late import Ids, Late, Read
from blendkit.models.fast.linear import moved
from blendkit.models.fast.proof import Proof, some_of, wanted
from blendkit.models.fast.written_out import WrittenOut
from blendkit.models.loading import to_device
from blendkit.models.pairrm import PairRM, without_relevance

if TYPE_CHECKING:
    from blendkit.models.pair_inputs import PairInputs, Segment


class PairScorer:
    """Calls give s_ij, [B], float32 on the CPU.

    BERT, RoBERTa, MPNet, DeBERTa-v2/v3 and ModernBERT run packed (`models.fast.encoder`). Any other encoder, and any
    with `packed=False`, runs as transformers has it, padded to the longest input of the batch.

    A late-paired ranker's candidates are read first (`read`) and then compared (`compare`); a call does both. With `packed=False`
    it runs as `models.fast.written_out` has it.
    """

    def __init__(self, network: PairRM, inputs: PairInputs, device: torch.device, dtype: torch.dtype, packed: bool = True) -> None:
        """Raises NoInputError where a late-paired ranker has an encoder without a packed form."""
        self.inputs, self.device = inputs, device
        late = network.config.paired_layers is not None
        self.late = Late(network, device, dtype) if late and packed else None
        self.written_out = WrittenOut(network, device, dtype) if late and not packed else None
        self.encoder = packed_encoder(network.pretrained_model, network.config.candidate_bias, device, dtype) if packed and not late else None
        if self.encoder is None and not late:
            placed(network.pretrained_model, device, dtype)
            self.network = network.to(device, torch.float32 if dtype == torch.int8 else dtype).eval()
        self.head = moved(network.head_layer, device, torch.float32 if self.encoder or late or dtype == torch.int8 else dtype).eval()
        # The plain form's weights, until the first batch is compared with it.
        self.plain = without_relevance(network) if (self.encoder is not None or self.late is not None) and wanted(device) else None

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Sequence[Segment]]) -> Tensor:
        if self.late is not None or self.written_out is not None:
            return self._late_paired(rows)
        if self.encoder is None:
            inputs, markers = self.inputs.collate(rows)
            logits: Tensor = self.network(to_device(inputs, self.device), markers.to(self.device))
            return logits.float().cpu()
        found = self._logits(self.encoder(self.inputs.pack(rows).to(self.device)))
        if self.plain is not None:
            some = some_of(len(rows))
            self._prove(self.encoder, found[some], [rows[place] for place in some])
        return found

    def _prove(self, encoder: PackedEncoder, found: Tensor, rows: Sequence[Sequence[Segment]]) -> None:
        """Holds what was found for some rows to the plain form in float32, once."""
        assert self.plain is not None
        expected = PairScorer(self.plain, self.inputs, self.device, torch.float32, packed=False)(rows)
        Proof(encoder.choice, self.device, encoder.where[1]).logits(found, expected)
        # Not before: where memory ran out for it, the smaller batch that is tried next is the first.
        self.plain = None

    @torch.inference_mode()
    def read(self, texts: Sequence[tuple[Ids, Ids]]) -> list[Read]:
        """Each candidate of a late-paired ranker, behind its x; an x that follows itself is read once."""
        assert self.late is not None
        groups: dict[Ids, list[Ids]] = {}
        for source, candidate in texts:
            groups.setdefault(source, []).append(candidate)
        found = dict(zip(groups, map(iter, self.late.read(list(groups.items()))), strict=True))
        reads = [next(found[source]) for source, _ in texts]
        if self.plain is not None:
            self._prove_read(texts, reads)
        return reads

    def _prove_read(self, texts: Sequence[tuple[Ids, Ids]], reads: Sequence[Read]) -> None:
        """The same of two candidates of one x, in the first batch that has two."""
        assert self.late is not None
        for place, (source, second) in enumerate(texts):
            before = next((number for number in range(place) if texts[number][0] == source and texts[number][1] != second), None)
            if before is not None:
                row = self.inputs.pair(source, texts[before][1], second)
                # Without the head for relevance, which multiplies what two texts differ by; its own layers attend as these do.
                self._prove(self.late.encoder, self._logits(self.late.compare([(reads[before], reads[place])])), [row])
                return

    @torch.inference_mode()
    def compare(self, pairs: Sequence[tuple[Read, Read]]) -> Tensor:
        """s_ij, [n], float32 on the CPU, of what `read` gave; s_ji is -s_ij."""
        assert self.late is not None
        relevances = [read.relevance for pair in pairs for read in pair if read.relevance is not None]
        return self._logits(self.late.compare(pairs), torch.stack(relevances).view(-1, 2) if relevances else None)

    def tokens_of_pair(self, first: Ids, second: Ids) -> int:
        """How many tokens of a layer it takes to compare two candidates of a late-paired ranker: all of them with two paired layers, else their markers."""
        assert self.late is not None
        return len(first) + len(second) if self.late.paired > 1 else 2

    def _late_paired(self, rows: Sequence[Sequence[Segment]]) -> Tensor:
        # Both candidates are read in the role of candidate 1.
        as_first = self.inputs.as_first
        triples = [(source.ids, as_first(first.ids), as_first(second.ids)) for source, first, second in rows]
        if self.written_out is not None:
            return self._logits(*self.written_out.read(triples))
        texts = list(dict.fromkeys((source, text) for source, *both in triples for text in both))
        read = dict(zip(texts, self.read(texts), strict=True))
        return self.compare([(read[source, first], read[source, second]) for source, first, second in triples])

    def _logits(self, states: Tensor, relevances: Tensor | None = None) -> Tensor:
        """Of the markers' states [n, 3, H] and what the head for relevance adds to each side [n, 2]."""
        source, first, second = states.unbind(1)
        left, right = self.head(torch.cat([source, first], -1)), self.head(torch.cat([source, second], -1))
        logits: Tensor = (left - right).mean(-1).float()
        return (logits if relevances is None else logits + (relevances[:, 0] - relevances[:, 1])).cpu()
