"""Late pairing: x is read once and each candidate once behind it; only the last layers let a pair's candidates see each other.

In every layer x sees itself, and a candidate sees x and itself. In the last `paired_layers` (1 or 2) it also sees the other
candidate of its pair, and of the very last layer only the markers are computed. So N candidates cost |x| + Σ|y_i| tokens of all
layers but those, and with one paired layer a pair costs two rows of one layer.

A candidate is read as candidate 1 is, wherever it is shown: a shared state cannot know its place. What tells the other
candidate's tokens from its own in a paired layer is a bias on their scores, one number a head, of which the head learns whom to
read. Both sides of a pair go through the same weights, so that s_ij = -s_ji exactly: no order is preferred, and none must be
trained away. Both candidates begin where x ends, for distances as for positions.

Attention over a candidate's own context and over the other's are computed apart and mixed by their sums of exponentials, which is
attention over both (`written_out` has it in one piece). The first is of one candidate, the second of one key block and all
queries that meet it: nothing is computed once a pair but their mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from blendkit.models.fast.encoder import PackedEncoder
from blendkit.models.fast.in_rows import HALF, NEVER, InRows, in_cells
from blendkit.models.fast.late_encoder import own_encoder, packed
from blendkit.models.fast.linear import moved
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.rows import groups
from blendkit.models.fast.transfer import sent
from blendkit.models.pairrm import PairRM
from blendkit.models.relevance import MeanStates

Ids = tuple[int, ...]
# Where a text begins and ends among the tokens of a batch.
Span = tuple[int, int]


@dataclass(frozen=True)
class Keys:
    """What a text shows to others in one layer: keys [L, h, d], values [L, h, d] or (last layer) the states that values are made of [L, H], places [L]."""

    keys: Tensor
    values: Tensor
    at: Tensor

    @staticmethod
    def joined(texts: Sequence[Keys]) -> Keys:
        """Several texts, one behind the other."""
        return Keys(*(torch.cat(parts) for parts in zip(*((text.keys, text.values, text.at) for text in texts), strict=True)))


@dataclass(frozen=True)
class ReadSource:
    """x: the last layer's keys, and its marker's last state [H]."""

    last: Keys
    final: Tensor


@dataclass(frozen=True)
class Read:
    """A candidate read behind its x, as it comes into a paired layer: Q tokens that go on, which are all of its tokens, or the marker in the last layer.

    `states` [Q, H] and `queries` [Q, h, d] at the places `at` [Q]; `sums` [h, Q] (logarithms of sums of exponentials) and `contexts`
    [Q, h·d] of attention over x and itself; what the other candidate sees of it; position ids [L] of all its tokens.
    `relevance`, a scalar: what the head for relevance adds to its logits, where there is one.
    """

    source: ReadSource
    states: Tensor
    queries: Tensor
    at: Tensor
    sums: Tensor
    contexts: Tensor
    shown: Keys
    positions: Tensor
    relevance: Tensor | None = None


Pair = tuple[Read, Read]


@dataclass(frozen=True)
class Marked:
    """n texts as they come into the last layer: their markers' queries [n, h, d], places [n] and states [n, H], and what all of their T tokens show."""

    queries: Tensor
    at: Tensor
    states: Tensor
    shown: Keys
    positions: Tensor
    spans: Sequence[Span]

    def texts(self, sums: Tensor, contexts: Tensor) -> Iterator[tuple[Any, ...]]:
        """What a `Read` is of each text beside its x, given the markers' sums [h, n, 1] and contexts [n, 1, h·d]."""
        whole = (self.shown.keys, self.shown.values, self.shown.at, self.positions)
        lengths = [end - start for start, end in self.spans]
        lengths.append(len(self.positions) - sum(lengths))
        parts = zip(*(torch.split(part, lengths) for part in whole), strict=True)
        own = zip(*(torch.split(part, 1) for part in (self.states, self.queries, self.at)), sums.unbind(1), contexts.unbind(0), strict=True)
        for markers, (keys, values, at, positions) in zip(own, parts, strict=False):
            yield *markers, Keys(keys, values, at), positions


class Late:
    """`read` takes candidates in, `compare` gives pairs of them; `gradients` is for training, which makes one anew each step."""

    def __init__(self, network: PairRM, device: torch.device, dtype: torch.dtype, gradients: bool = False, checkpointing: bool = False) -> None:
        """Raises NoInputError where the encoder has no packed form."""
        self.encoder = packed(network, device, dtype, gradients=gradients)
        self.device, self.checkpointing = device, checkpointing
        self.paired = network.config.paired_layers or 0
        self.last = len(self.encoder.layers) - 1
        self.first = self.last + 1 - max(1, self.paired)
        self.reach = 0
        self.relevance = moved(network.relevance, device, torch.float32).eval() if network.relevance else None
        self.own = own_encoder(network, self.encoder, gradients)
        self.segmented = network.config.positions == "segment"
        biases = network.biases().to(device) if self.paired else torch.zeros(1)
        self.biases = biases if gradients else biases.detach()
        if gradients and network.training:
            for layer in self.encoder.layers:
                layer.dropout = float(getattr(self.encoder.config, "hidden_dropout_prob", 0.0))
        self.attention = InRows(self.encoder) if gradients else self.encoder.attention
        # Torch's fused attention takes most of a step on a CPU: it has rows of one length, and is slow at small heads.
        self.text_by_text = gradients and device.type == "cpu"

    def read(self, groups: Sequence[tuple[Ids, Sequence[Ids]]]) -> list[list[Read]]:
        """The candidates of each (x, candidates), x read once a group."""
        encoder, number = self.encoder, self.first
        tokens, inputs, back, at = self._laid_out(groups)
        spans = iter(tokens.bounds)
        layout = [[next(spans) for _ in (source, *candidates)] for source, candidates in groups]
        x = encoder.embedded(tokens)
        seen = MeanStates(self.relevance, self.last + 1, [len(group) for group in layout], tokens.lengths, self.device) if self.relevance else None
        if seen:
            seen.take(0, x)
        same = self._same_in_all_layers(at, layout) if self.text_by_text and (number or self.own) else None

        def through(encoder: PackedEncoder, x: Tensor, layer: int) -> Tensor:
            step = (x, layer, tokens, at, layout, same) if self.text_by_text else (x, layer, tokens, inputs, back)
            function = self._shared_by_text if self.text_by_text else self._shared
            found: Tensor = checkpoint(function, encoder, *step, use_reentrant=False) if self.checkpointing else function(encoder, *step)
            return found

        for shared in range(number):
            x = through(encoder, x, shared)
            if seen:
                seen.take(shared + 1, x)
        if seen and self.own:
            seen.go_on(partial(through, self.own))
        found = self._enter_last(x, tokens, at, layout) if self.paired < 2 else self._enter_two(x, tokens, at, layout)
        if seen:
            values = seen.values()
            found = [[replace(read, relevance=value) for read, value in zip(reads, next(values), strict=True)] for reads in found]
        return found

    def _enter_two(self, x: Tensor, tokens: Packed, at: Tensor, layout: list[list[Span]]) -> list[list[Read]]:
        """The candidates as they come into the first of two paired layers."""
        encoder, number = self.encoder, self.first
        qkv = encoder.turned(encoder.layers[number].project(x).to(encoder.stream), number, tokens)
        shown = [[Keys(qkv[start:end, 1], qkv[start:end, 2], at[start:end]) for start, end in group] for group in layout]
        sources = self._sources(x, qkv, tokens, at, [(group[0], keys[0]) for group, keys in zip(layout, shown, strict=True)])
        found = []
        for source, group, keys in zip(sources, layout, shown, strict=True):
            reads = []
            for (start, end), own in zip(group[1:], keys[1:], strict=True):
                queries = qkv[start:end, 0]
                sums, contexts = self._look(number, queries, own.at, Keys.joined([keys[0], own]))
                reads.append(Read(source, x[start:end], queries, own.at, sums, contexts, own, tokens.positions[start:end]))
            found.append(reads)
        return found

    def compare(self, pairs: Sequence[Pair]) -> Tensor:
        """Last states of x's marker and of both candidates' markers, [n, 3, H], float32."""
        if self.paired == 2:
            pairs = self._met(pairs)
        sides = [side for pair in pairs for side in (pair, pair[::-1])]
        contexts = torch.cat([me.contexts for me, _ in sides])
        if self.paired:
            sums = torch.cat([me.sums for me, _ in sides], 1)
            contexts = self._mixed(self.last, contexts, sums, *self._others(sides))
        layer = self.encoder.layers[self.last]
        rows = self.encoder.normed(layer.finish(torch.cat([me.states for me, _ in sides]), contexts)).view(len(pairs), 2, -1)
        sources = torch.stack([first.source.final for first, _ in pairs])
        return torch.cat([sources[:, None], rows], 1)

    def _laid_out(self, groups: Sequence[tuple[Ids, Sequence[Ids]]]) -> tuple[Packed, Packed, Tensor, Tensor]:
        """All texts end to end; the inputs of attention, whose ids are places among these tokens: x alone, and x with each candidate.

        Then where each token's own context stands among the inputs' [T], and each token's place, counted from the start of x [T].
        """
        ids: list[int] = []
        positions, types, places, inputs, back = [], [], [], [], []
        lengths, whole, filled = [], [], 0
        for source, candidates in groups:
            x = torch.arange(len(source)) + len(ids)
            for number, text in enumerate((source, *candidates)):
                before = len(source) if number else 0
                own = torch.arange(len(text))
                inputs.append(torch.cat([x, own + len(ids)]) if number else x)
                ids += text
                places.append(own + before)
                positions.append(own if self.segmented else own + before)
                types.append(torch.full_like(own, int(number > 0) if self.segmented else 0))
                back.append(own + before + filled)
                lengths.append(len(text))
                whole.append(before + len(text))
                filled += whole[-1]
        # No two places that meet are further apart.
        self.reach = max(self.reach, *whole)
        starts = torch.tensor([0, *accumulate(lengths)][:-1])
        tokens = Packed(torch.tensor(ids), torch.cat(positions), torch.cat(types), lengths, starts[:, None] + 1)
        seen = torch.cat(inputs)
        attended = Packed(seen, torch.zeros_like(seen), torch.zeros_like(seen), whole, torch.zeros(1, 1, dtype=torch.long))
        tokens, attended = (self.encoder.rounded(batch.to(self.device)) for batch in (tokens, attended))
        filling = (0, len(tokens.ids) - len(ids))
        own, at = (functional.pad(part, filling) for part in sent((torch.cat(back), torch.cat(places)), self.device))
        return tokens, attended, own, at

    def _shared(self, encoder: PackedEncoder, x: Tensor, number: int, tokens: Packed, inputs: Packed, back: Tensor) -> Tensor:
        layer = encoder.layers[number]
        qkv = encoder.turned(layer.project(x).to(encoder.stream), number, tokens)
        # x's tokens stand in many inputs; `back` takes their contexts from the one where x is alone.
        contexts = self.attention(qkv[inputs.ids], inputs, encoder.relative(number), encoder.window(number))
        return layer.finish(x, contexts[back])

    def _same_in_all_layers(self, at: Tensor, layout: list[list[Span]]) -> list[Tensor] | None:
        """What distances add to the scores [1, h, Q, L] of each text, where that is the same in all layers: computed once a step, as are its gradients."""
        shared, found = self.encoder.shared, []
        if shared is None:
            return None
        for group in layout:
            x, *candidates = (at[slice(*span)] for span in group)
            texts = [(x, x), *((own, torch.cat([x, own])) for own in candidates)]
            found += [shared.bias(queries, keys)[None].to(self.encoder.stream) for queries, keys in texts]
        return found

    def _shared_by_text(
        self, encoder: PackedEncoder, x: Tensor, number: int, tokens: Packed, at: Tensor, layout: list[list[Span]], same: list[Tensor] | None
    ) -> Tensor:
        layer = encoder.layers[number]
        qkv = encoder.turned(layer.project(x).to(encoder.stream), number, tokens)
        # Split once, not sliced: a slice's gradient is as large as what it was taken from.
        filling = len(x) - sum(tokens.lengths)
        texts, contexts = iter(zip(*(torch.split(part, [*tokens.lengths, filling]) for part in (qkv, at)), strict=True)), []
        more = repeat(None) if same is None else iter(same)
        for group in layout:
            source: Keys | None = None
            for _ in group:
                own, places = next(texts)
                queries, keys, values = own.unbind(1)
                shown = Keys(keys, values, places)
                source, shown = (source, Keys.joined([source, shown])) if source else (shown, shown)
                weights = self._of_text(encoder, number, queries, places, shown, next(more)).softmax(-1).to(shown.values.dtype)
                contexts.append((weights @ shown.values.transpose(0, 1)).transpose(0, 1).flatten(1))
        return layer.finish(x, functional.pad(torch.cat(contexts), (0, 0, 0, filling)))

    def _scores(self, encoder: PackedEncoder, number: int, q: Tensor, k: Tensor, distance: Tensor, more: Tensor | None = None) -> Tensor:
        """Scores [n, h, Q, L], float32, of queries [n, h, Q, d] for keys [n, h, L, d], which are [n, Q, L] places before them.

        `more` [n, h, Q, L] is what distances add, where that is known.
        """
        scores = q @ k.transpose(2, 3)
        if more is None:
            more = encoder.by_distance(encoder.relative(number), q, k, distance, self.reach)
        if more is not None:
            scores = scores + more
        scores = scores.float()
        window = encoder.window(number)
        if window is not None:
            scores = scores.masked_fill((distance.abs() > window)[:, None], NEVER)
        return scores

    def _of_text(self, encoder: PackedEncoder, number: int, queries: Tensor, at: Tensor, shown: Keys, more: Tensor | None = None) -> Tensor:
        """The same [h, Q, L] of queries [Q, h, d] at the places [Q] for the keys that one text shows."""
        return self._scores(encoder, number, queries.transpose(0, 1)[None], shown.keys.transpose(0, 1)[None], (at[:, None] - shown.at)[None], more)[0]

    def _look(self, number: int, queries: Tensor, at: Tensor, shown: Keys) -> tuple[Tensor, Tensor]:
        """Attention of queries [Q, h, d] over one block of keys: logarithms of the sums of exponentials [h, Q], and contexts [Q, h·d]."""
        scores = self._of_text(self.encoder, number, queries, at, shown)
        sums = scores.logsumexp(-1)
        weights = (scores - sums[..., None]).exp().to(shown.values.dtype)
        return sums, (weights @ shown.values.transpose(0, 1)).transpose(0, 1).flatten(1)

    def _look_last(self, queries: Tensor, at: Tensor, shown: Keys, texts: Sequence[Sequence[Span]]) -> tuple[Tensor, Tensor]:
        """The same in the last layer, of n times Q queries [n, Q, h, d] at the places [n, Q], each Q over the spans of their own among all that is shown.

        Sums [h, n, Q] and contexts [n, Q, h·d]. Texts of about one length are computed together: a launch a text would cost a GPU more than the products.
        """
        sums, contexts, order = [], [], []
        # Numbers in memory of a token and head: its key, its scores, or what it has in a table of relative scores.
        table = 2 * self.encoder.buckets.span if self.encoder.buckets is not None else 0
        size = queries.shape[2] * max(queries.shape[3], queries.shape[1], table)
        for rows, tokens, cells, real in _rows_of(texts, size, self.device):
            n, length = real.shape
            q = queries.index_select(0, rows).transpose(1, 2)
            keys, values, places = (in_cells(part[tokens], cells, n * length).view(n, length, *part.shape[1:]) for part in (shown.keys, shown.values, shown.at))
            distance = at.index_select(0, rows)[:, :, None] - places[:, None]
            scores = self._scores(self.encoder, self.last, q, keys.transpose(1, 2), distance).masked_fill(~real[:, None, None], NEVER)
            found = scores.logsumexp(-1)
            weights = (scores - found[..., None]).exp().to(shown.values.dtype).flatten(1, 2)
            mixed = weights @ values
            mixed = mixed.view(*found.shape, -1).transpose(1, 2).flatten(0, 1)
            sums.append(found.transpose(0, 1))
            contexts.append(self.encoder.layers[self.last].values_of(mixed).view(n, q.shape[2], -1))
            order.append(rows)
        back = torch.cat(order).argsort()
        return torch.cat(sums, 1)[:, back], torch.cat(contexts)[back]

    def _mixed(self, number: int, own: Tensor, own_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
        """Contexts [Q, h·d] of attention over both, of those over each and of their sums [h, Q]."""
        bias = self.biases[number - self.first]
        share = torch.sigmoid(other_sums + bias[:, None] - own_sums).T[..., None]
        own, other = (part.view(*share.shape[:2], -1) for part in (own, other))
        return torch.lerp(own, other, share.to(own.dtype)).flatten(1)

    def _others(self, sides: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """What the sides' markers see of their others, each other's keys read once for all that look at it: contexts and sums."""
        meeting: dict[int, list[int]] = {}
        for place, (_, other) in enumerate(sides):
            meeting.setdefault(id(other), []).append(place)
        most = max(map(len, meeting.values()))
        # Rows of as many queries each, filled up with the first.
        rows, back = [], [0] * len(sides)
        for number, places in enumerate(meeting.values()):
            rows.append(places + places[:1] * (most - len(places)))
            for column, place in enumerate(places):
                back[place] = number * most + column
        rows_there, back_there = sent((torch.tensor(rows), torch.tensor(back)), self.device)
        queries, at = (torch.cat([getattr(me, name) for me, _ in sides])[rows_there] for name in ("queries", "at"))
        others = [sides[places[0]][1].shown for places in meeting.values()]
        ends = accumulate((len(other.at) for other in others), initial=0)
        sums, contexts = self._look_last(queries, at, Keys.joined(others), [[span] for span in pairwise(ends)])
        return contexts.flatten(0, 1)[back_there], sums.flatten(1)[:, back_there]

    def _enter_last(self, x: Tensor, tokens: Packed, at: Tensor, layout: list[list[Span]]) -> list[list[Read]]:
        """The candidates as they come into the last layer, of all tokens' states, x's among them."""
        marked = self._project_last(x, tokens, at, [span for group in layout for span in group])
        sums, contexts = self._look_last(
            marked.queries[:, None],
            marked.at[:, None],
            marked.shown,
            [[group[0], span] if number else [span] for group in layout for number, span in enumerate(group)],
        )
        sources = [0, *accumulate(map(len, layout))][:-1]
        (rows,) = sent((torch.tensor(sources),), self.device)
        finals = iter(self._finals(marked.states[rows], contexts[rows, 0]))
        found, texts = [], iter(marked.texts(sums, contexts))
        for group in layout:
            *_, shown, _ = next(texts)
            source = ReadSource(shown, next(finals))
            found.append([Read(source, *next(texts)) for _ in group[1:]])
        return found

    def _project_last(self, x: Tensor, tokens: Packed, at: Tensor, spans: Sequence[Span]) -> Marked:
        encoder, layer, number = self.encoder, self.encoder.layers[self.last], self.last
        (rows,) = sent((torch.tensor([start + 1 for start, _ in spans]),), self.device)
        queries, keys, values = layer.project_last(x, rows)
        queries = encoder.turned(queries.to(encoder.stream), number, tokens, rows)
        keys = encoder.turned(keys.to(encoder.stream), number, tokens)
        return Marked(queries, at[rows], x[rows], Keys(keys, values, at), tokens.positions, spans)

    def _finals(self, states: Tensor, contexts: Tensor) -> Tensor:
        """The last states of markers of x, [n, H]."""
        return self.encoder.normed(self.encoder.layers[self.last].finish(states, contexts))

    def _sources(self, x: Tensor, qkv: Tensor, tokens: Packed, at: Tensor, texts: Sequence[tuple[Span, Keys]]) -> list[ReadSource]:
        """x of each group, through the first paired layer, in which it sees itself alone, as ever, and the last."""
        places = torch.cat([torch.arange(*span, device=self.device) for span, _ in texts])
        contexts = torch.cat([self._look(self.first, qkv[slice(*span), 0], keys.at, keys)[1] for span, keys in texts])
        states = self.encoder.layers[self.first].finish(x[places], contexts)
        batch = _part(tokens.positions[places], [end - start for (start, end), _ in texts])
        marked = self._project_last(states, batch, at[places], batch.bounds)
        looked = self._look_last(marked.queries[:, None], marked.at[:, None], marked.shown, [[span] for span in batch.bounds])
        finals = self._finals(marked.states, looked[1][:, 0])
        return [ReadSource(shown, final) for (*_, shown, _), final in zip(marked.texts(*looked), finals, strict=True)]

    def _met(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs behind the first of two paired layers, in which all their tokens are computed."""
        sides = [side for pair in pairs for side in (pair, pair[::-1])]
        contexts = []
        for me, other in sides:
            sums, seen = self._look(self.first, me.queries, me.at, other.shown)
            contexts.append(self._mixed(self.first, me.contexts, me.sums, seen, sums))
        states = self.encoder.layers[self.first].finish(torch.cat([me.states for me, _ in sides]), torch.cat(contexts))
        batch = _part(torch.cat([me.positions for me, _ in sides]), [len(me.states) for me, _ in sides])
        marked = self._project_last(states, batch, torch.cat([me.at for me, _ in sides]), batch.bounds)
        # Behind all sides stands each x once.
        sources = list({id(me.source): me.source for me, _ in sides}.values())
        ends = list(accumulate([len(states), *(len(source.last.at) for source in sources)]))
        spans = {id(source): span for source, span in zip(sources, pairwise(ends), strict=True)}
        shown = Keys.joined([marked.shown, *(source.last for source in sources)])
        texts = [[spans[id(me.source)], span] for (me, _), span in zip(sides, batch.bounds, strict=True)]
        looked = self._look_last(marked.queries[:, None], marked.at[:, None], shown, texts)
        met = [Read(me.source, *text) for (me, _), text in zip(sides, marked.texts(*looked), strict=True)]
        return list(zip(met[::2], met[1::2], strict=True))


def _rows_of(texts: Sequence[Sequence[Span]], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Texts of about one length in rows: their numbers [n], their tokens [t] and these tokens' cells among the n·L [t], which cells are no padding [n, L]."""
    lengths = [sum(end - start for start, end in spans) for spans in texts]
    for group in groups(lengths, lambda length: length * size, HALF):
        tokens = np.concatenate([np.arange(*span) for number in group for span in texts[number]])
        real = np.arange(lengths[group[0]]) < np.array([lengths[number] for number in group])[:, None]
        parts = (np.array(group), tokens, np.flatnonzero(real), real.astype(np.int64))
        rows, there, cells, real_there = sent([torch.from_numpy(part) for part in parts], device)
        yield rows, there, cells, real_there.bool()


def _part(positions: Tensor, lengths: list[int]) -> Packed:
    """Tokens of which a layer asks no more than their positions."""
    nothing = torch.zeros_like(positions)
    return Packed(nothing, positions, nothing, lengths, nothing[:0])
