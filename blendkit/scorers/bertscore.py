"""BERTScore (Zhang et al. 2020): precision, recall and F1 of greedy token matching, on any encoder.

Numbers are those of the bert-score package. Each distinct text is encoded once a window (N + 1 encodings for N
candidates and a reference), and the candidates that share a reference are matched in one product.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from blendkit.errors import NoInputError, UsageError
from blendkit.models.loading import EMBEDDED, shared
from blendkit.models.unread import UNKNOWN
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature

if TYPE_CHECKING:
    from torch import Tensor

PRECISION, RECALL, F1 = range(3)


@dataclass(eq=False)
class Encoded:
    """A text's token vectors, [L, H], of length 1, and its tokens' weights, [L], 1 in sum (all 0 where nothing counts)."""

    vectors: Tensor
    weights: Tensor


class BertScore(ModelScorer):
    """F1. An empty text scores 0 before rescaling, as in the package."""

    about, paper, bounds = "BERTScore F1, equal to the bert-score package's", "Zhang et al. 2020", "-1 to 1"
    default_model = EMBEDDED
    plans_ahead = True
    column = F1

    def __init__(
        self, name: str, model: str = EMBEDDED, device: str = "auto", dtype: str = "auto",
        bertscore_layer: int | None = None, bertscore_idf: str | None = None, bertscore_baseline: str | None = None,
    ) -> None:  # fmt: skip
        """`bertscore_layer` counts from the input; `bertscore_idf` is a file of records whose references give the weights of
        tokens; `bertscore_baseline` rescales: a language that the package has a baseline of for this model, or a file of that form.
        """
        layers, idf, baseline = bertscore_layer, bertscore_idf, bertscore_baseline
        from blendkit.models.encoder import Encoder

        super().__init__(name, model)
        self.encoder = shared(("encoder", model, layers, device, dtype), lambda: Encoder(model, layers, device, dtype))
        self.dtype, self.hints = self.encoder.dtype, self.encoder.hints
        self.baseline_name, self.baseline = baseline, _baseline(baseline, model, self.encoder.layers) if baseline else None
        self.idf_name, self.idf = idf, self._idf(idf) if idf else None
        # Precision, recall and F1 of the same encoder and weights share their works.
        self.encode = shared(("bertscore", self.encoder, idf), lambda: Job(f"bertscore:{model}", self._encode))
        self.match = shared(("match", self.encoder, idf), lambda: Job("bertscore", _match, budgeted=False))

    def rounds(self, items: list[Item], counted: bool = True) -> Scores:
        """Encodes each text once, then matches each pair; `counted` False where these texts were here before."""
        texts = list(dict.fromkeys(text.strip() for item in items for text in (item.candidate, item.reference) if text.strip()))
        ids = self.encoder.ids(texts, self.cuts if counted else None)
        if items and counted:
            self.unread.count([self.encoder.unknown.most(row) for row in ids], items[0].record_id)
        encoded = dict(zip(texts, (yield [Work(self.encode, text, len(row), row) for text, row in zip(texts, ids, strict=True)]), strict=True))
        pairs = [(item.candidate.strip(), item.reference.strip()) for item in items]
        works = [Work(self.match, pair, 1, (encoded[pair[0]], encoded[pair[1]])) for pair in pairs if all(pair)]
        found = iter((yield works))
        return [self._rescaled(next(found)[self.column] if all(pair) else 0.0) for pair in pairs]

    def _encode(self, rows: list[list[int]]) -> list[Encoded]:
        import torch
        from torch.nn import functional

        tokenizer = self.encoder.tokenizer
        unit = {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0}
        weights = []
        for row in rows:
            own = torch.tensor([self.idf[token] if self.idf is not None else unit.get(token, 1.0) for token in row])
            total = float(own.sum())
            weights.append(own / total if total else own * 0)
        everywhere = torch.split(torch.cat(weights).to(self.encoder.device), [len(row) for row in rows])
        return [Encoded(functional.normalize(states, dim=-1), own) for states, own in zip(self.encoder.reader.states(rows), everywhere, strict=True)]

    def _rescaled(self, score: float) -> float:
        return score if self.baseline is None else (score - self.baseline[self.column]) / (1 - self.baseline[self.column])

    def _idf(self, path: str) -> Mapping[int, float]:
        """log((M + 1) / (m + 1)) of a token that m of the M references in a file of records hold."""
        from blendkit.streams.lines import BadLine
        from blendkit.streams.lines import Reader as Records

        references = [str(line.record["output"]) for line in Records(path).records() if not isinstance(line, BadLine) and line.record.get("output") is not None]
        if not references:
            raise NoInputError(f"--bertscore-idf {path}: no record there has a reference (`output`)")
        counts = Counter(token for row in self.encoder.ids([reference.strip() for reference in references]) for token in set(row))
        total = len(references)
        weights: dict[int, float] = defaultdict(lambda: math.log(total + 1))
        weights.update({token: math.log((total + 1) / (count + 1)) for token, count in counts.items()})
        return weights

    def warnings(self) -> list[str]:
        instead = "a multilingual one can, such as bertscore:xlm-roberta-large"
        return [*super().warnings(), *self.unread_warnings(UNKNOWN.format(self.model_name), instead)]

    @property
    def signature(self) -> str:
        what = ("precision", "recall", "f1")[self.column]
        weights = {"idf": self.idf_name or False, "rescale": self.baseline_name or False}
        return str(Signature("bertscore", what, model=self.model_at, layer=self.encoder.layers, **weights, v=f"bert-score-{version('bert-score')}"))


class Precision(BertScore):
    """How much of the candidate is in the reference."""

    about, column = "BERTScore precision: candidate tokens found in the reference", PRECISION


class Recall(BertScore):
    """How much of the reference is in the candidate."""

    about, column = "BERTScore recall: reference tokens found in the candidate", RECALL


def _match(pairs: list[tuple[Encoded, Encoded]]) -> list[tuple[float, float, float]]:
    """(precision, recall, F1) of each (candidate, reference); candidates that share a reference go through one product."""
    import torch

    groups: dict[int, list[int]] = {}
    for place, (_, reference) in enumerate(pairs):
        groups.setdefault(id(reference), []).append(place)
    order, found = [], []
    with torch.inference_mode():
        for places in groups.values():
            reference = pairs[places[0]][1]
            candidates = [pairs[place][0] for place in places]
            similar = torch.cat([candidate.vectors for candidate in candidates]) @ reference.vectors.T
            best = similar.amax(1)
            start = 0
            for candidate in candidates:
                end = start + len(candidate.vectors)
                found.append(torch.stack([best[start:end] @ candidate.weights, similar[start:end].amax(0) @ reference.weights]))
                start = end
            order += places
        values = torch.stack(found).tolist() if found else []
    scores = [(0.0, 0.0, 0.0)] * len(pairs)
    for place, (precision, recall) in zip(order, values, strict=True):
        both = precision + recall
        scores[place] = (precision, recall, 2 * precision * recall / both if both else 0.0)
    return scores


def _baseline(where: str, model: str, layer: int) -> tuple[float, ...]:
    """Precision's, recall's and F1's baseline of a layer."""
    path = Path(where) if Path(where).is_file() else Path(str(files("bert_score") / "rescale_baseline" / where / f"{model}.tsv"))
    try:
        rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
        return tuple(float(value) for value in next(row for row in rows if int(row[0]) == layer)[1:4])
    except OSError:
        raise UsageError(f"--bertscore-baseline {where}: no such file, and bert-score has no baseline of {model} in a language {where!r}") from None
    except (StopIteration, ValueError, IndexError):
        raise UsageError(f"--bertscore-baseline {where}: {path.name} has no line LAYER,P,R,F for layer {layer}") from None
