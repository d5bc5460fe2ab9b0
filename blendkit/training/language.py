"""Training a small causal language model from scratch on questions and answers: the generators that are shipped are made so.

A sequence holds one question and one answer, `<user> x <assistant> answer <end>`, in a byte-level BPE vocabulary of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from blendkit.models.encoder_reader import padded
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.records import Record, source_text
from blendkit.training.examples import Example
from blendkit.training.micro_batches import micro_batches
from blendkit.training.trainee import Part, Trainee

PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
TEMPLATE = (
    "{% for m in messages %}{{ '<assistant>' if m['role'] == 'assistant' else '<user>' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
IGNORED = -100
NEVER_TWICE = 5  # tokens in a row


def language_examples(records: Iterable[Record]) -> list[Example]:
    """Gives questions with their answers, which are the reference and every candidate's text that is not empty.

    Records with the same x and the same id, or without an id, are one question.
    """
    found: dict[tuple[str | None, str], Example] = {}
    for record in records:
        texts = [candidate["text"] for candidate in record.get("candidates", [])] + [record.get("output") or ""]
        answers = [text.strip() for text in texts if text.strip()]
        if not answers:
            continue
        source = source_text(record)
        key = (record.get("id"), source)
        known = found[key].candidates if key in found else []
        found[key] = Example(record.get("id", source), source, list(dict.fromkeys([*known, *answers])), [])
    return list(found.values())


class LanguageTrainee(Trainee):
    """A Llama-shaped decoder with tied embeddings. Each step shows `answers` answers of each question, none of more than `longest` tokens with it."""

    def __init__(
        self, examples: Sequence[Example], *, vocabulary: int = 4096, width: int = 192, layers: int = 6, answers: int = 4, longest: int = 256,
        micro_tokens: int = 8192,
    ) -> None:  # fmt: skip
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.tokenizer = new_tokenizer((text for example in examples for text in (example.source, *example.candidates)), vocabulary, longest)
        self.texts = TextTokenizer(self.tokenizer)
        ids = self.tokenizer.convert_tokens_to_ids
        shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
        config = LlamaConfig(
            vocab_size=len(self.tokenizer), **shape, num_key_value_heads=width // 32, max_position_embeddings=2 * longest, tie_word_embeddings=True,
            pad_token_id=ids(PAD), bos_token_id=ids(USER), eos_token_id=ids(END),
        )  # fmt: skip
        self.model: Any = LlamaForCausalLM(config)
        self.answers, self.longest, self.micro_tokens = answers, longest, micro_tokens

    def parts(self, examples: Sequence[Example], rng: random.Random) -> list[Part]:
        """Makes a sequence of each answer that fits, and puts sequences of like length together."""
        rows = []
        for example in examples:
            question = self.texts.read(f"{USER}{self.texts.material(example.source)}{ASSISTANT}")[-self.longest // 2 :]
            fitting = 0
            for text in rng.sample(example.candidates, len(example.candidates)):
                if fitting == self.answers:
                    break
                row = [*question, *self.texts.read(self.texts.material(text) + END)]
                # An answer that was cut would teach the model not to end.
                if len(row) <= self.longest:
                    rows.append(row)
                    fitting += 1
        parts = []
        for places in micro_batches([len(row) for row in rows], self.micro_tokens):
            chosen = [rows[place] for place in places]
            tokens = sum(len(row) for row in chosen)
            parts.append(Part(chosen, float(tokens - len(chosen)), tokens))
        return parts

    def forward(self, part: Part) -> Tensor:
        """Sums the cross-entropy over all tokens but the first. The question's tokens count, too, as there is little text to learn words from."""
        device = next(self.model.parameters()).device
        inputs = {key: value.to(device) for key, value in padded(part.inputs, self.tokenizer.pad_token_id).items()}
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)[:, 1:]
        logits = self.model(**inputs).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def scores(self, example: Example, rng: random.Random) -> None:
        """Gives nothing, as a generator writes and scores no candidate."""
        return

    def save(self, folder: Path) -> None:
        """Writes the Hugging Face layout in float16. Its generation config names the end, and forbids a run of tokens to come twice, which is a loop."""
        import copy

        from transformers import GenerationConfig

        model = copy.deepcopy(self.model).half()
        ids = self.tokenizer.convert_tokens_to_ids
        model.generation_config = GenerationConfig(eos_token_id=ids(END), pad_token_id=ids(PAD), bos_token_id=ids(USER), no_repeat_ngram_size=NEVER_TWICE)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def new_tokenizer(texts: Iterable[str], vocabulary: int, longest: int) -> Any:
    """Trains a byte-level BPE tokenizer on the texts; its chat template writes the sequences above."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=2, special_tokens=[PAD, END, USER, ASSISTANT], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trainer._tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=[USER, ASSISTANT], model_max_length=2 * longest
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
