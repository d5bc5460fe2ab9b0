"""Training GenFuser (LLM-Blender, section 4): a seq2seq or causal model reads x and the top candidates, and learns to write the reference."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from blendkit.errors import RecordError, UsageError
from blendkit.fusers.genfuser import fuser_prompt
from blendkit.models.encoder_reader import padded
from blendkit.models.loading import to_device
from blendkit.models.pretrained import pretrained
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.records import Record, source_text
from blendkit.training.examples import Example
from blendkit.training.micro_batches import micro_batches
from blendkit.training.trainee import Part, Trainee

IGNORED = -100


class FuserTrainee(Trainee):
    """Examples hold the candidates best first (`fuser_examples`). Each step shows the top `k`, or with `random_k` 1 to k of them.

    `lora` above 0 trains adapters of that rank, which are merged when the model is saved; `fuse --model DIR` loads it.

    Raises:
        NoInputError: there is no such model.
        UsageError: `lora` without peft.
    """

    def __init__(
        self, backbone: str, *, k: int = 3, random_k: bool = False, lora: int = 0, max_length: int = 1024, candidate_maxlength: int = 128,
        output_maxlength: int = 256, micro_tokens: int = 4096, checkpointing: bool = False,
    ) -> None:  # fmt: skip
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        super().__init__()
        what = "model that a fuser could start from"
        self.seq2seq = bool(pretrained(AutoConfig, backbone, what).is_encoder_decoder)
        self.tokenizer: Any = pretrained(AutoTokenizer, backbone, what)
        self.model: Any = pretrained(AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM, backbone, what, dtype=torch.float32)
        if checkpointing:
            self.model.gradient_checkpointing_enable()
        if lora:
            self.model = _adapted(self.model, lora, self.seq2seq)
        self.texts = TextTokenizer(self.tokenizer)
        self.k, self.random_k, self.micro_tokens, self.sampled = k, random_k, micro_tokens, k
        self.lengths = max_length, candidate_maxlength, output_maxlength

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Makes one row of each record, and puts rows of like length together."""
        rows = [self._row(example, rng) for example in examples]
        lengths = [len(prompt) + len(target) for prompt, target in rows]
        return [
            Part([rows[place] for place in places], float(sum(len(rows[place][1]) for place in places)), sum(lengths[place] for place in places))
            for places in micro_batches(lengths, self.micro_tokens)
        ]

    def _row(self, example: Example, rng: random.Random) -> tuple[list[int], list[int]]:
        max_length, candidate_maxlength, output_maxlength = self.lengths
        k = rng.randint(1, self.k) if self.random_k else self.k
        instruction, _, source = example.source.partition("\0")
        prompt = fuser_prompt(instruction, source, example.candidates[:k], self.texts, candidate_maxlength)
        ids = self.texts.read(prompt, add_special_tokens=False, truncation=True, max_length=max_length)
        (target,) = self.texts([example.reference or ""], add_special_tokens=False, truncation=True, max_length=output_maxlength - 1)["input_ids"]
        return ids, [*target, self.tokenizer.eos_token_id]

    def forward(self, part: Part) -> Tensor:
        """Sums the cross-entropy over the reference's tokens."""
        device = next(self.model.parameters()).device
        prompts, targets = ([row[side] for row in part.inputs] for side in (0, 1))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        if self.seq2seq:
            labels = padded(targets, IGNORED)["input_ids"].to(device)
            logits = self.model(**to_device(padded(prompts, pad), device), labels=labels).logits
        else:
            rows = [[*prompt, *target] for prompt, target in part.inputs]
            labels = padded([[IGNORED] * (len(prompt) - 1) + target for prompt, target in part.inputs], IGNORED)["input_ids"].to(device)
            logits = self.model(**to_device(padded(rows, pad), device)).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def scores(self, example: Example, rng: random.Random) -> None:
        """Gives nothing, as a fuser writes and scores no candidate."""
        return

    def save(self, folder: Path) -> None:
        """Writes the Hugging Face layout, with the adapters merged in."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            import copy

            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def fuser_examples(records: Iterable[Record], ranks: str) -> list[Example]:
    """Makes examples of records with a reference, candidates best first by `ranks[ranks]`.

    In an example's `source`, instruction and input are parted by a NUL, as the prompt shows each in its place.

    Raises:
        RecordError: a record has no reference or no such ranks.
    """
    found = []
    for record in records:
        if record.get("output") is None:
            raise RecordError("output", "expected a string: a fuser learns to write the reference")
        places = record.get("ranks", {}).get(ranks)
        if places is None:
            known = ", ".join(record.get("ranks", {})) or "none"
            raise RecordError(f"ranks.{ranks}", f"not there, found {known}; `blendkit rank` writes ranks")
        order = sorted(range(len(places)), key=lambda index: places[index])
        source = "\0" + source_text(record) if record.get("messages") else f"{record.get('instruction') or ''}\0{record.get('input') or ''}"
        found.append(Example(record.get("id", source), source, [record["candidates"][index]["text"] for index in order], [], record["output"]))
    return found


def _adapted(model: Any, rank: int, seq2seq: bool) -> Any:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UsageError("--lora needs peft: pip install 'blendkit[train]'") from error
    task = TaskType.SEQ_2_SEQ_LM if seq2seq else TaskType.CAUSAL_LM
    return get_peft_model(model, LoraConfig(task_type=task, r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear"))
