"""Training PairRanker (LLM-Blender, section 3.2): x and two candidates in one input, which is better?

Two modes, usually one after the other:

- `singles`: x is encoded with one candidate at a time, and every pair among a record's sampled candidates enters the loss.
  One pass over 12 candidates gives 66 pairs, so an encoder learns what a good answer is at a fraction of the cost of pairs.
- `pairs`: the real input of PairRanker, x with two candidates in a random order.

Both train the same encoder and the same head, which has one output a task (Q function).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blendkit.aggregate import matrix, max_logits
from blendkit.errors import UsageError
from blendkit.models.encoder import without_attention_dropout
from blendkit.models.pair_inputs import MARKERS, PairInputs, Segment
from blendkit.models.pairrm import PairRM, PairRMConfig, load_pairrm, save_pairrm
from blendkit.models.pretrained import pretrained
from blendkit.terminal_text import count_of
from blendkit.training.examples import Example, Pairing
from blendkit.training.kinds import NewRanker
from blendkit.training.losses import PAIR_LOSSES
from blendkit.training.micro_batches import micro_batches
from blendkit.training.trainee import Part, Trainee

NEWLINE = "\N{SYMBOL FOR NEWLINE}"
Rows = list[list[Segment]]


class PairRankerTrainee(Trainee):
    """`pairing` says which pairs of a record are learnt from, `micro_tokens` how many padded tokens go through at a time."""

    def __init__(
        self, model: PairRM, tokenizer: Any, pairing: Pairing, *, loss: str = "instructgpt", mode: str = "pairs", candidates: int = 12,
        micro_tokens: int = 4096,
    ) -> None:  # fmt: skip
        """`candidates` of a record are sampled a step in the mode `singles`.

        Raises:
            UsageError: there is no such loss or mode.
        """
        super().__init__()
        if loss not in PAIR_LOSSES:
            raise UsageError(f"--loss {loss}: expected one of {', '.join(PAIR_LOSSES)}")
        if mode not in ("singles", "pairs"):
            raise UsageError(f"--mode {mode}: expected singles or pairs")
        self.model, self.tokenizer, self.pairing, self.loss = model, tokenizer, pairing, PAIR_LOSSES[loss]
        self.mode, self.candidates, self.micro_tokens = mode, candidates, micro_tokens
        without_attention_dropout(model)
        self.inputs = PairInputs(tokenizer, model.config)
        self._ids: dict[tuple[str, ...], tuple[tuple[int, ...], list[tuple[int, ...]]]] = {}

    @classmethod
    def start(cls, new: NewRanker, pairing: Pairing) -> PairRankerTrainee:
        """Makes a ranker that is ready to be trained.

        Raises:
            UsageError: a setting that there is not, or a checkpoint of another number of tasks.
            NoInputError: there is no such model.
        """
        if new.positions not in ("running", "segment"):
            raise UsageError(f"--positions {new.positions}: expected running or segment")
        if new.paired_layers not in (None, 0, 1, 2):
            raise UsageError(f"--paired-layers {new.paired_layers}: expected 0, 1 or 2")
        if new.init is not None:
            model, tokenizer = load_pairrm(new.init)
            if model.config.n_tasks != new.tasks:
                raise UsageError(f"--init {new.init} has {count_of(model.config.n_tasks, 'task')}, and {count_of(new.tasks, 'label is', 'labels are')} given")
            model.config.source_maxlength = new.source_maxlength or model.config.source_maxlength
            model.config.candidate_maxlength = new.candidate_maxlength or model.config.candidate_maxlength
        else:
            model, tokenizer = new_ranker(str(new.backbone), new.source_maxlength or 128, new.candidate_maxlength or 128, new.positions, new.tasks)
        if new.candidate_bias is not None:
            model.config.candidate_bias = new.candidate_bias
        if new.paired_layers is not None:
            model = late_paired(model, new.paired_layers)
        options: dict[str, Any] = {"loss": new.loss, "mode": new.mode, "candidates": new.candidates, "micro_tokens": new.micro_tokens}
        if model.config.paired_layers is not None:
            from blendkit.training.late import LatePairRankerTrainee

            return LatePairRankerTrainee(model, tokenizer, pairing, checkpointing=new.checkpointing, **options)
        if new.checkpointing:
            model.pretrained_model.gradient_checkpointing_enable()  # type: ignore[operator]
        return cls(model, tokenizer, pairing, **options)

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Gives groups of pairs of like length; in `singles`, a part holds one record's candidates."""
        return self._single_parts(examples, rng) if self.mode == "singles" else self._pair_parts(examples, rng)

    def _single_parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        found = []
        for example in examples:
            source, candidates = self._encoded(example)
            chosen = rng.sample(range(len(candidates)), min(self.candidates, len(candidates)))
            pairs = self.pairing.of(Example(example.id, "", [example.candidates[k] for k in chosen], [example.labels[k] for k in chosen]), rng)
            rows = [self.inputs.single(source, candidates[k], rng.choice((1, 2))) for k in chosen]
            if pairs:
                # Every record counts the same, however many pairs it has.
                found.append(Part((rows, [example.labels[k] for k in chosen], pairs), 1.0, _tokens(rows)))
        return found

    def _pair_parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        rows: list[tuple[list[Segment], list[float], list[float]]] = []
        for example in examples:
            source, candidates = self._encoded(example)
            for pair in self.pairing.of(example, rng):
                first, second = pair if rng.random() < 0.5 else pair[::-1]
                rows.append((self.inputs.pair(source, candidates[first], candidates[second]), example.labels[first], example.labels[second]))
        parts = []
        for places in micro_batches([_tokens([row]) for row, _, _ in rows], self.micro_tokens):
            chosen = [rows[place] for place in places]
            segments, left, right = (list(column) for column in zip(*chosen, strict=True))
            parts.append(Part((segments, left, right), float(len(chosen)), _tokens(segments)))
        return parts

    def forward(self, part: Part) -> Tensor:
        """Sums the loss over pairs and takes its mean over tasks; in `singles`, it is the mean over the record's pairs."""
        if self.mode == "singles":
            rows, labels, pairs = part.inputs
            scores = self._single_scores(rows)
            truth = torch.tensor(labels, device=scores.device)
            left, right = torch.tensor(pairs, device=scores.device).T
            return self.loss(scores[left], scores[right], truth[left], truth[right]).mean()
        rows, left_labels, right_labels = part.inputs
        firsts, seconds = self._pair_scores(rows)
        first_labels, second_labels = (torch.tensor(labels, device=firsts.device) for labels in (left_labels, right_labels))
        return self.loss(firsts, seconds, first_labels, second_labels).mean(dim=1).sum()

    def scores(self, example: Example, rng: random.Random) -> list[float]:
        """Compares every pair once, in a drawn order, and gives MaxLogits; in `singles`, gives the candidates' own scores."""
        source, candidates = self._encoded(example)
        if self.mode == "singles":
            rows = [self.inputs.single(source, ids, 1) for ids in candidates]
            own: list[float] = self._single_scores(rows).mean(dim=1).tolist()
            return own
        pairs = [(i, j) if rng.random() < 0.5 else (j, i) for i in range(len(candidates)) for j in range(i + 1, len(candidates))]
        rows = [self.inputs.pair(source, candidates[i], candidates[j]) for i, j in pairs]
        logits = [0.0] * len(rows)
        for places in micro_batches([_tokens([row]) for row in rows], self.micro_tokens):
            left, right = self._pair_scores([rows[place] for place in places])
            for place, value in zip(places, (left - right).mean(dim=1).tolist(), strict=True):
                logits[place] = value
        m = matrix([(i, j, logit) for (i, j), logit in zip(pairs, logits, strict=True)], len(candidates))
        return [float(score) for score in max_logits(m)]

    def network(self) -> torch.nn.Module:
        """The encoder."""
        return self.model.pretrained_model

    def save(self, folder: Path) -> None:
        """Writes the layout that `pair --model` loads, in float16."""
        save_pairrm(folder, self.model, self.tokenizer)

    def _encoded(self, example: Example) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        # The texts are the key, as two records may share an id.
        key = (example.source, *example.candidates)
        found = self._ids.get(key)
        if found is None:
            source = self.inputs.source(example.source)
            found = self._ids[key] = (source, self.inputs.candidates(example.candidates, source))
        return found

    def _single_scores(self, rows: Rows) -> Tensor:
        """Gives scores [N, T] in the order of the rows, which go through the network by like length."""
        groups = micro_batches([_tokens([row]) for row in rows], self.micro_tokens)
        found = []
        for places in groups:
            tensors, markers = self._on_device([rows[place] for place in places])
            found.append(self.model.score(self.model.encode(tensors), markers[:, 0], markers[:, 1]))
        order = [place for places in groups for place in places]
        return torch.cat(found).float()[torch.tensor(order).argsort()]

    def _pair_scores(self, rows: Rows) -> tuple[Tensor, Tensor]:
        tensors, markers = self._on_device(rows)
        states = self.model.encode(tensors)
        left = self.model.score(states, markers[:, 0], markers[:, 1]).float()
        return left, self.model.score(states, markers[:, 0], markers[:, 2]).float()

    def _on_device(self, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
        device = next(self.model.parameters()).device
        tensors, markers = self.inputs.collate(rows)
        return {key: value.to(device) for key, value in tensors.items()}, markers.to(device)


def _tokens(rows: Sequence[Sequence[Segment]]) -> int:
    return sum(len(segment.ids) for row in rows for segment in row)


def new_ranker(backbone: str, source_maxlength: int, candidate_maxlength: int, positions: str, tasks: int = 1) -> tuple[PairRM, Any]:
    """Makes a PairRM with a fresh head of `tasks` outputs on an encoder of the hub or a directory, and a tokenizer with its markers."""
    from transformers import AutoModel, AutoTokenizer

    what = "encoder that a ranker could start from"
    tokenizer = keep_line_breaks(pretrained(AutoTokenizer, backbone, what))
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    encoder = pretrained(AutoModel, backbone, what, dtype=torch.float32)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if positions == "segment":
        _three_token_types(encoder)
    config = PairRMConfig(source_maxlength, candidate_maxlength, tasks, positions=positions, encoder=encoder.config.to_dict())
    return PairRM(config, encoder), tokenizer


def late_paired(model: PairRM, paired_layers: int) -> PairRM:
    """The same weights as a late-paired ranker's; those that a ranker with as many paired layers has beside them are kept, else they start from 0."""
    found = PairRM(replace(model.config, paired_layers=paired_layers), model.pretrained_model)
    same = model.config.paired_layers == paired_layers
    found.load_state_dict({name: value for name, value in model.state_dict().items() if same or name != "paired_bias"}, strict=False)
    return found


def keep_line_breaks(tokenizer: Any) -> Any:
    """Makes a run of line breaks one token of its own, where BERT's normalizer would make it a space."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"].get("vocab", {})
    if (state.get("normalizer") or {}).get("type") != "BertNormalizer" or "[unused1]" not in vocabulary:
        return tokenizer
    vocabulary[NEWLINE] = vocabulary.pop("[unused1]")
    replace = {"type": "Replace", "pattern": {"Regex": "\\s*\\n\\s*"}, "content": f" {NEWLINE} "}
    state["normalizer"] = {"type": "Sequence", "normalizers": [replace, state["normalizer"]]}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = {key: getattr(tokenizer, key) for key in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def _three_token_types(encoder: Any) -> None:
    """Gives the encoder three token types: 0 is x, 1 and 2 are the candidates. Each starts near a type that pre-training knows.

    Raises:
        UsageError: an encoder without token types, which cannot be given any.
    """
    if encoder.config.model_type == "mpnet":
        # `RoleMPNet` makes them.
        encoder.config.type_vocab_size = 3
        return
    if getattr(encoder.embeddings, "token_type_embeddings", None) is None:
        raise UsageError(f"--positions segment: a {type(encoder).__name__} has no token types to tell the texts by; --positions running needs none")
    old = encoder.embeddings.token_type_embeddings.weight.data
    rows = torch.stack([old[0] + 0.02 * torch.randn_like(old[0]), old[0], old[1 % len(old)]])
    encoder.embeddings.token_type_embeddings = torch.nn.Embedding(3, rows.shape[1], _weight=rows)
    encoder.config.type_vocab_size = 3
