"""Consensus fusion: an answer put together from sentences of the top K, without a generative model.

The best candidate gives the frame. Every sentence has a support: how near the other candidates come to it
(cosine under the encoder), each candidate weighed by the preference of the ranking behind `top`. Sentences of the
frame that nobody supports are left out. Sentences that other candidates agree on, and that the frame does not have
yet, are put where their neighbours stand. The frame's order is kept, and nothing is said twice.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from blendkit.aggregate import matrix, max_logits, pairs_among, summed, weighed
from blendkit.fusers.base import appended, top_candidates
from blendkit.models.cuts import Cuts
from blendkit.models.encoder import Encoder
from blendkit.models.loading import EMBEDDED, fingerprint
from blendkit.models.unread import UNKNOWN, Unread
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.records import Record, generated_only
from blendkit.signature import Signature
from blendkit.version import VERSION

# Bounds on the cosine of mean-pooled sentences. They were set by reading fused answers, not tuned on a score.
SAME = 0.92  # two sentences that say the same
AGREED = 0.80  # a sentence of another candidate that a third one supports
LONE = 0.30  # a sentence of the frame below this support is left out
GROWTH = 1.5  # the fused answer is at most this much longer than the frame

# Han, kana, and their punctuation and full-width signs: scripts that put no space between sentences.
UNSPACED = "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
ENDS = ".!?。！？"
SENTENCE = re.compile(r".+?(?:[.!?][\"')\]]*(?=\s+[A-Z\"'(])|[。！？]+[\"')\]」』”’）]*|$)")


class Consensus(Stage):
    """`fuse` with the embedded encoder; appends a candidate named `consensus`."""

    name = "fuse"

    def __init__(self, name: str | None = None, model: str = EMBEDDED, device: str = "auto", dtype: str = "auto") -> None:
        self.encoder, self.unread = Encoder(model, None, device, dtype), Unread()
        self.cuts = Cuts()
        self.embed = Job("consensus", lambda rows: list(self.encoder.embed(rows)))
        self.fused_name = name or "consensus"
        limits = {"same": SAME, "agreed": AGREED, "lone": LONE}
        kind = "int8" if str(self.encoder.dtype) == "torch.int8" else None
        self.signature = str(Signature("consensus", model=f"{model}@{fingerprint(model)}", layer=self.encoder.layers, dtype=kind, **limits, v=VERSION))

    def plan(self, record: Record) -> list[Work]:
        """Plans to embed every sentence of the top candidates; plans nothing where one candidate stands alone."""
        top = top_candidates(record)
        if len(top) < 2:
            return []
        texts = [text for index in top for text, _ in units(record["candidates"][index]["text"])]
        rows = self.encoder.ids(texts, self.cuts)
        self.unread.count([self.encoder.unknown.most(ids) for ids in rows], record["id"])
        return [Work(self.embed, text, len(ids), ids) for text, ids in zip(texts, rows, strict=True)]

    def finish(self, record: Record, results: list[Tensor]) -> None:
        """Appends the fused candidate."""
        top = top_candidates(record)
        texts = [record["candidates"][index]["text"] for index in top]
        fused = texts[0]
        if results:
            parts = [units(text) for text in texts]
            embeddings = list(torch.split(torch.stack(results), [len(part) for part in parts]))
            fused = fuse_units(parts, embeddings, preference(record, top))
        appended(record, self.fused_name, fused, top)

    def describe(self) -> dict[str, Any]:
        """Signature and model, and what was hardly read."""
        return {
            "signatures": [self.signature],
            "models": {self.encoder.name: fingerprint(self.encoder.name)},
            "device": str(self.encoder.device),
            "dtype": str(self.encoder.dtype),
            **({"truncation": asdict(self.cuts)} if self.cuts.inputs_cut else {}),
            **({"unread": asdict(self.unread)} if self.unread.unread else {}),
        }

    def warnings(self) -> list[str]:
        """A slow number type; sentences that are too long for the encoder, or that it does not know."""
        unread = self.unread.message(UNKNOWN.format(self.encoder.name), "another model fuses them, such as -m openai:MODEL")
        return [*self.encoder.hints, *self.cuts.message(f"sentences read by {self.encoder.name}"), *unread]


def units(text: str) -> list[tuple[str, str]]:
    """Splits a text into (sentence, what stands between it and the next). Code blocks, tables and list lines stay whole."""
    found: list[tuple[str, str]] = []
    for block in re.split(r"(```.*?(?:```|\Z)\n?)", text, flags=re.DOTALL):
        if block.startswith("```"):
            found.append((block.rstrip("\n"), "\n"))
            continue
        for line, ending in re.findall(r"([^\n]*)(\n*)", block):
            pieces = [piece for piece in (SENTENCE.findall(line.strip()) if _is_prose(line) else [line.rstrip()]) if piece.strip()]
            sentences = [piece.strip() if _is_prose(line) else piece for piece in pieces]
            # The space between two sentences is the later one's; in Chinese and Japanese there is none.
            found += [(sentence, " " if behind[0].isspace() else "") for sentence, behind in zip(sentences, pieces[1:], strict=False)]
            found += [(sentence, ending) for sentence in sentences[-1:]]
            if not sentences and found and ending:
                found[-1] = (found[-1][0], found[-1][1] + ending)
    return found


def _is_prose(line: str) -> bool:
    return not re.match(r"\s*([-*•|#>]|\d+[.)]|\w[.)]\s|    )", line)


def preference(record: Record, top: list[int]) -> Tensor:
    """Weights [K], sum 1, by the ranking behind `top`: the softmax of its mean logits if it rests on comparisons, else 1/rank.

    A `top` that no ranking of the record gives is weighed by 1/place.
    """
    name = ranking_behind(record, top)
    comparisons: dict[str, Any] = record.get("comparisons", {})
    # `rank` names a ranking after its comparisons, NAME=WEIGHT+NAME, and may append `:AGGREGATION` or `:reference-WHICH`.
    weights = {} if name is None else _weights_behind(name, comparisons)
    if weights:
        n = len(generated_only(record["candidates"]))
        scores = max_logits(summed((matrix(pairs_among(comparisons[ranker], n), n), weight) for ranker, weight in weights.items()))
        return torch.softmax(torch.tensor([float(scores[index]) for index in top]), dim=0)
    places = range(1, len(top) + 1) if name is None else [record["ranks"][name][index] for index in top]
    shares = 1 / torch.tensor(places, dtype=torch.float32)
    return shares / shares.sum()


def _weights_behind(name: str, comparisons: dict[str, Any]) -> dict[str, float]:
    """Which comparisons `rank` has read or summed for a ranking, with their weights, by the ranking's name; empty where it rests on none."""
    for whole in (name, name.partition(":reference-")[0], name.rpartition(":")[0]):
        if whole in comparisons:
            return {whole: 1.0}
        # Not at the + of 1e+3.
        weights = dict(weighed(part, comparisons) for part in re.split(r"(?<!\de)(?<!=)\+", whole))
        if all(part in comparisons for part in weights):
            return weights
    return {}


def ranking_behind(record: Record, top: list[int]) -> str | None:
    """The name in `ranks` of the ranking that gives `top`, the latest of several; None where there is none."""
    for name, ranks in reversed(record.get("ranks", {}).items()):
        if sorted(range(len(ranks)), key=lambda index: ranks[index])[: len(top)] == top:
            return str(name)
    return None


def fuse_units(parts: list[list[tuple[str, str]]], embeddings: list[Tensor], weights: Tensor) -> str:
    """The fused text from each candidate's sentences, their embeddings [n_k, H] and the candidates' weights [K]."""
    frame = parts[0]
    if len(frame) < 2:
        return frame[0][0] if frame else ""
    kept = _frame_places(embeddings, weights)
    budget = GROWTH * sum(len(frame[place][0]) for place in kept)
    chosen: list[tuple[float, str, Tensor]] = [(float(place), frame[place][0], embeddings[0][place]) for place in kept]
    # The sentence comes first whose support exceeds most what the frame says of it already.
    for _, support, candidate, place in sorted(
        (
            (support - float((embeddings[0] @ embeddings[candidate][place]).max()), support, candidate, place)
            for support, candidate, place in _newcomers(parts, embeddings, weights)
        ),
        reverse=True,
    ):
        text, _ = parts[candidate][place]
        vector = embeddings[candidate][place]
        nearest = max(float(vector @ other) for *_, other in chosen)
        if nearest >= SAME or sum(len(old) for _, old, _ in chosen) + len(text) > budget or support < AGREED:
            continue
        position = float((embeddings[0] @ vector).argmax()) + 0.5
        chosen.append((position, text, vector))
    chosen.sort(key=lambda unit: unit[0])
    joined = chosen[0][1]
    for (here, before, _), (there, text, _) in pairwise(chosen):
        # A newcomer stands in its neighbour's paragraph; what the frame has between its sentences comes behind it, the widest where some are left out.
        endings = [ending for _, ending in frame[int(here) : int(there)]]
        between = max(endings, key=lambda ending: (ending.count("\n"), len(ending)), default="")
        neighbours = here.is_integer() and there == here + 1
        # A space that stood beside another sentence says nothing of these two.
        joined += (between if between and (neighbours or "\n" in between) else gap(before, text)) + text
    return joined


def gap(before: str, behind: str) -> str:
    """What stands between two sentences that had nothing between them, or stood in different candidates."""
    if before.startswith("```") or not _is_prose(before):
        return "\n"
    if re.match(f"[{UNSPACED}]", before[-1]):
        return ""
    # Chinese may end its sentences with a Latin sign.
    last, first = re.findall(r"\w", before)[-1:], re.findall(r"\w", behind)[:1]
    return "" if last and first and all(re.match(f"[{UNSPACED}]", letter) for letter in (*last, *first)) else " "


def _frame_places(embeddings: list[Tensor], weights: Tensor) -> list[int]:
    """Places of the frame's sentences that others support and that repeat nothing; the first sentence always stays."""
    kept: list[int] = []
    for place, vector in enumerate(embeddings[0]):
        repeated = any(float(vector @ embeddings[0][other]) > 0.995 for other in kept)
        if not kept or (not repeated and _support(vector, embeddings, weights, 0) >= LONE):
            kept.append(place)
    return kept


def _newcomers(parts: list[list[tuple[str, str]]], embeddings: list[Tensor], weights: Tensor) -> list[tuple[float, int, int]]:
    """(support, candidate, place) of every prose sentence outside the frame; its support comes from the third candidates."""
    if len(parts) < 3:
        return []
    return [
        (_support(embeddings[candidate][place], [embeddings[k] for k in others], weights[others], None), candidate, place)
        for candidate in range(1, len(parts))
        for others in [[k for k in range(1, len(parts)) if k != candidate and parts[k]]]
        if others
        for place, (text, _) in enumerate(parts[candidate])
        if _is_prose(text) and not text.startswith("```") and text.rstrip().endswith(tuple(ENDS))
    ]


def _support(vector: Tensor, embeddings: list[Tensor], weights: Tensor, own: int | None) -> float:
    """The weighed mean, over the other candidates, of their nearest sentence's cosine."""
    others = [k for k, part in enumerate(embeddings) if k != own and len(part)]
    if not others:
        return 1.0
    near = torch.stack([(embeddings[k] @ vector).max() for k in others])
    return float((near * weights[others]).sum() / weights[others].sum())
