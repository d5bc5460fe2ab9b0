"""Training PairRanker, read from top to bottom: labels, backbone, batches, loss, loop.

Two modes, usually one after the other:

- `singles`: x is encoded with one candidate at a time, and every pair among a record's sampled candidates
  enters the loss. One pass over 12 candidates gives 66 pairs, so an encoder learns what a good answer is
  at a fraction of the cost of reading pairs.
- `pairs`: the real input of PairRanker, x with two candidates in a random order (paper, section 3.2).

Both train the same encoder and the same head with the loss of the public checkpoints ("instructgpt" in the
reference code): the mean of -log sigmoid(s_better - s_worse).
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import DataError
from blendkit.models.loading import locate
from blendkit.models.pairrm import PairRM, PairRMConfig, save_pairrm
from blendkit.rankers.pair_inputs import MARKERS, PairInputs, Segment
from blendkit.records import Record, source_text

NEWLINE = "\N{SYMBOL FOR NEWLINE}"


@dataclass(frozen=True)
class TrainOptions:
    """What decides a training run; the same options, data, seed and torch build give the same weights."""

    label: str
    mode: Literal["singles", "pairs"]
    steps: int
    records_per_step: int = 4
    candidates_per_record: int = 12
    pairs_per_record: int = 5
    learning_rate: float = 1e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    margin: float = 0.7
    micro_tokens: int = 4096
    log_odds: bool = True
    seed: int = 0
    save_every: int = 200


@dataclass(frozen=True)
class Example:
    """One record ready to train on: ids of x, ids of each candidate as candidate 1, one label each."""

    source: tuple[int, ...]
    candidates: list[tuple[int, ...]]
    labels: list[float]


def train_ranker(model: PairRM, tokenizer: Any, records: Iterable[Record], options: TrainOptions, out: Path) -> None:
    """Trains in place and saves to `out` every `save_every` steps and at the end, with a JSON-lines log.

    Raises:
        DataError: no record has two candidates whose labels differ by more than the margin.
    """
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    inputs = PairInputs(tokenizer, model.config)
    examples = read_examples(records, inputs, options)
    if not examples:
        raise DataError(f"nothing to train on: no two candidates of one record differ in scores.{options.label} by more than {options.margin}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_and_decay(step / options.steps, options.warmup))
    device = next(model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "train.log.jsonl").open("a")
    started, tokens, losses = time.monotonic(), 0, []
    model.train()
    for step, batch in zip(range(1, options.steps + 1), batches(examples, options.records_per_step, rng), strict=False):
        with torch.autocast(device.type, torch.bfloat16):
            loss, seen = (singles_loss if options.mode == "singles" else pairs_loss)(model, inputs, batch, options, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += seen
        losses.append(loss.item())
        if step % 20 == 0 or step == options.steps:
            row = {"step": step, "loss": round(sum(losses) / len(losses), 4), "tokens": tokens, "seconds": round(time.monotonic() - started, 1)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            losses = []
        if step % options.save_every == 0 or step == options.steps:
            save_pairrm(out, model, tokenizer)
    log.close()
    model.eval()


def read_examples(records: Iterable[Record], inputs: PairInputs, options: TrainOptions) -> list[Example]:
    """Records with labels; those that share an id (the same x in several files) become one example."""
    texts: dict[str, tuple[str, dict[str, float]]] = {}
    for record in records:
        _, labels = texts.setdefault(record["id"], (source_text(record), {}))
        for candidate in record.get("candidates", []):
            label = candidate.get("scores", {}).get(options.label)
            if label is not None:
                labels[candidate["text"]] = log_odds(label) if options.log_odds else label
    examples = []
    for text, labels in texts.values():
        if labels and max(labels.values()) - min(labels.values()) > options.margin:
            source = inputs.source(text)
            examples.append(Example(source, inputs.candidates(list(labels), source), list(labels.values())))
    return examples


def log_odds(probability: float) -> float:
    """log p/(1-p), with p kept within [1e-6, 1 - 1e-6], the precision of published preferences."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def batches(examples: list[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Endless batches; every example comes once an epoch, in a new order each time."""
    while True:
        order = rng.sample(examples, len(examples))
        # A short last batch would weigh its records more; with fewer examples than `size` it is all there is.
        for start in range(0, max(1, len(order) - size + 1), size):
            yield order[start : start + size]


def warm_up_and_decay(progress: float, warmup: float) -> float:
    """The learning rate's factor: linear up to 1 at `warmup`, linear down to 0 at the end."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def singles_loss(model: PairRM, inputs: PairInputs, batch: list[Example], options: TrainOptions, rng: random.Random) -> tuple[Tensor, int]:
    """Loss over all pairs of sampled candidates of each record, each candidate encoded alone with x."""
    rows: list[list[Segment]] = []
    labels: list[Tensor] = []
    for example in batch:
        chosen = rng.sample(range(len(example.labels)), min(options.candidates_per_record, len(example.labels)))
        rows += [inputs.single(example.source, example.candidates[k], rng.choice((1, 2))) for k in chosen]
        labels.append(torch.tensor([example.labels[k] for k in chosen]))
    scores = in_micro_batches(rows, options.micro_tokens, lambda part: _single_scores(model, inputs, part))
    total, start = torch.zeros((), device=scores.device), 0
    for label in labels:
        total = total + ranking_loss(scores[start : start + len(label)], label.to(scores.device), options.margin)
        start += len(label)
    return total / len(batch), sum(len(segment.ids) for row in rows for segment in row)


def pairs_loss(model: PairRM, inputs: PairInputs, batch: list[Example], options: TrainOptions, rng: random.Random) -> tuple[Tensor, int]:
    """Loss over sampled pairs of each record, both candidates read together, in a random order."""
    rows: list[list[Segment]] = []
    for example in batch:
        places = range(len(example.labels))
        pairs = [(i, j) for i in places for j in places if example.labels[i] - example.labels[j] > options.margin]
        for better, worse in rng.sample(pairs, min(options.pairs_per_record, len(pairs))):
            rows.append(inputs.pair(example.source, example.candidates[better], example.candidates[worse]))
    signs = torch.tensor([rng.choice((1.0, -1.0)) for _ in rows])
    for number, (row, sign) in enumerate(zip(rows, signs, strict=True)):
        if sign < 0:
            source, first, second = (segment.ids for segment in row)
            rows[number] = inputs.pair(source, inputs.as_first(second), inputs.as_first(first))
    logits = in_micro_batches(rows, options.micro_tokens, lambda part: _pair_logits(model, inputs, part))
    loss = -functional.logsigmoid(signs.to(logits.device) * logits).mean()
    return loss, sum(len(segment.ids) for row in rows for segment in row)


def ranking_loss(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The "instructgpt" loss over all ordered pairs of [N] scores whose labels differ by more than `margin`."""
    better = (labels[:, None] - labels[None, :]) > margin
    differences = (scores[:, None] - scores[None, :])[better]
    return -functional.logsigmoid(differences).mean() if len(differences) else scores.sum() * 0.0


def in_micro_batches(rows: list[list[Segment]], budget: int, run: Any) -> Tensor:
    """`run` on rows of like length, at most `budget` padded tokens at a time; results in the rows' order."""
    lengths = [sum(len(segment.ids) for segment in row) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    results: list[Tensor] = []
    part: list[int] = []
    for place in order:
        if part and lengths[place] * (len(part) + 1) > budget:
            results.append(run([rows[k] for k in part]))
            part = []
        part.append(place)
    results.append(run([rows[k] for k in part]))
    return torch.cat(results).float()[torch.tensor(order).argsort()]


def _single_scores(model: PairRM, inputs: PairInputs, rows: list[list[Segment]]) -> Tensor:
    tensors, markers = inputs.collate(rows)
    return model.score(model.encode(tensors), markers[:, 0], markers[:, 1]).mean(dim=-1)


def _pair_logits(model: PairRM, inputs: PairInputs, rows: list[list[Segment]]) -> Tensor:
    logits: Tensor = model(*inputs.collate(rows))
    return logits


def new_ranker(backbone: str, source_maxlength: int, candidate_maxlength: int, positions: str) -> tuple[PairRM, Any]:
    """A PairRM with a fresh head on any encoder of the hub or a directory, and the tokenizer with its markers.

    The encoder's own dropout is off: attention without dropout takes the fused kernel, 2.5 times as fast on a CPU.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = locate(backbone)
    tokenizer = keep_line_breaks(AutoTokenizer.from_pretrained(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if positions == "segment":
        _three_token_types(encoder)
    config = PairRMConfig(source_maxlength, candidate_maxlength, positions=positions, encoder=encoder.config.to_dict())
    return PairRM(config, encoder), tokenizer


def keep_line_breaks(tokenizer: Any) -> Any:
    """BERT's normalizer turns line breaks into spaces; here a run of them becomes one token of its own."""
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
    """Token types: 0 x, 1 and 2 the candidates; each starts near one that pre-training knows."""
    old = encoder.embeddings.token_type_embeddings.weight.data
    rows = torch.stack([old[0] + 0.02 * torch.randn_like(old[0]), old[0], old[1 % len(old)]])
    encoder.embeddings.token_type_embeddings = torch.nn.Embedding(3, rows.shape[1], _weight=rows)
    encoder.config.type_vocab_size = 3
