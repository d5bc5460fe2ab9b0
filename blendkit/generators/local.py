"""Text generation with transformers: causal and seq2seq models, batched, each prompt sampled by its own seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blendkit.errors import NoInputError
from blendkit.generators.base import Completion, Prompt, Sampling, TextModel
from blendkit.models.loading import choose_device, choose_dtype, fingerprint, locate


class LocalModel(TextModel):
    """Chat models get their chat template; others get the messages' text.

    Raises:
        NoInputError: there is no such model, or it generates no text.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto") -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        self.spec = name
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        folder = locate(name)
        try:
            self.seq2seq = bool(AutoConfig.from_pretrained(folder).is_encoder_decoder)
            kind = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
            self.model = kind.from_pretrained(folder, dtype=self.dtype).to(self.device).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise NoInputError(f"{name} is no model that generates text: {error}") from error
        # A decoder continues from its last column, so padding stands on the left.
        self.tokenizer.padding_side = "right" if self.seq2seq else "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt."""
        return len(self._ids(prompt))

    @torch.inference_mode()
    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """One batch. What a prompt gives does not depend on the batch around it, float noise aside."""
        from transformers import LogitsProcessorList

        ids = [self._ids(prompt) for prompt in prompts]
        width = max(map(len, ids))
        batch = self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt")
        processors = LogitsProcessorList([SeededSampling(sampling, [prompt.seed for prompt in prompts])] if sampling.temperature > 0 else [])
        more: dict[str, Any] = {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer} if sampling.stop else {}
        output = self.model.generate(
            input_ids=batch["input_ids"].to(self.device),
            attention_mask=batch["attention_mask"].to(self.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=processors,
            **more,
        )
        start = 1 if self.seq2seq else width
        return [self._completion(row, len(prompt), sampling) for row, prompt in zip(output[:, start:].tolist(), ids, strict=True)]

    def _completion(self, written: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        place = next((k for k, token in enumerate(written) if token in ends), None)
        kept = written if place is None else written[:place]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        for stop in sampling.stop:
            text = text.split(stop)[0]
        stopped = place is not None or any(stop in self.tokenizer.decode(written) for stop in sampling.stop)
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": len(kept) + (place is not None)}
        return Completion(text.strip(), "stop" if stopped else "length", counts)

    def _ids(self, prompt: Prompt) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer("\n".join(message["content"] for message in prompt.messages))["input_ids"])

    def describe(self) -> dict[str, Any]:
        """Model, device and number type."""
        return {"model": f"{self.spec}@{fingerprint(self.spec)}", "device": str(self.device), "dtype": str(self.dtype)}


class SeededSampling:
    """Exact sampling as an argmax (the Gumbel trick), so that each row draws from a generator of its own."""

    def __init__(self, sampling: Sampling, seeds: list[int]) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self._generators])
        exponential = (-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20)
        noise = -torch.log(exponential)
        return scores.float() + noise.to(scores.device)
