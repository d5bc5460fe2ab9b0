"""Text generation with transformers: causal and seq2seq models, batched, each prompt sampled by its own seed."""

from __future__ import annotations

import gc
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from blendkit.generators.base import Completion, Prompt, TextModel
from blendkit.generators.options import Sampling
from blendkit.models.loading import choose_device, choose_dtype, fingerprint
from blendkit.models.pretrained import pretrained
from blendkit.models.text_tokenizer import TextTokenizer

# What an earlier group's choice of the same token costs a later one, in nats (Vijayakumar et al. 2018).
DIVERSITY = 1.0
WHAT = "model that generates text"


class LocalModel(TextModel):
    """Chat models get their chat template, unless the prompt brings a format; others get the messages' text.

    The weights are loaded with the first batch, and may be put away (`put_away`) for another model's sake.

    Raises:
        NoInputError: there is no such model, or it generates no text.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.spec, self.trust = name, trust_remote_code
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self._network: Any = None
        self.seq2seq = bool(pretrained(AutoConfig, name, WHAT, trust_remote_code=trust_remote_code).is_encoder_decoder)
        self.tokenizer = pretrained(AutoTokenizer, name, WHAT, trust_remote_code=trust_remote_code)
        # A decoder continues from its last column, so padding stands on the left.
        self.tokenizer.padding_side = "right" if self.seq2seq else "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.texts = TextTokenizer(self.tokenizer)

    @property
    def model(self) -> Any:
        """The network, loaded when it is first needed."""
        if self._network is None:
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

            kind = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
            self._network = pretrained(kind, self.spec, WHAT, trust_remote_code=self.trust, dtype=self.dtype).to(self.device).eval()
        return self._network

    def put_away(self) -> None:
        """Frees the network's memory; the next batch loads it again."""
        if self._network is not None:
            self._network = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt."""
        return len(self._ids(prompt))

    @torch.inference_mode()
    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """Completes one batch. Apart from float noise, an answer does not depend on the rest of its batch."""
        return [completions[0] for completions in self.search(prompts, sampling, 1)]

    @torch.inference_mode()
    def search(self, prompts: list[Prompt], sampling: Sampling, count: int) -> list[list[Completion]]:
        """The best `count` answers of a beam search for each prompt, or the one that sampling gives."""
        from transformers import LogitsProcessorList

        ids = [self._ids(prompt) for prompt in prompts]
        stops = [*dict.fromkeys((*sampling.stop, *(stop for prompt in prompts for stop in prompt.stop)))]
        processors: list[Any] = []
        copies, beams = 1, sampling.beams
        if sampling.beams > 1 and sampling.diverse:
            # Groups of one beam each are greedy searches side by side that avoid each other's tokens.
            copies, beams = sampling.beams, 1
            processors.append(DiverseGroups(copies))
        elif sampling.beams == 1 and sampling.temperature > 0:
            processors.append(SeededSampling(sampling, [prompt.seed for prompt in prompts]))
        rows = [row for row in ids for _ in range(copies)]
        batch = self.tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        more: dict[str, Any] = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        output = self.model.generate(
            input_ids=batch["input_ids"].to(self.device),
            attention_mask=batch["attention_mask"].to(self.device),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=count if beams > 1 else 1,
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList(processors),
            **more,
        )
        each = count if beams > 1 else copies
        written = output[:, 1 if self.seq2seq else width :].tolist()
        owners = [number for number in range(len(prompts)) for _ in range(each)]
        found = [self._completion(row, len(ids[owner]), stops) for row, owner in zip(written, owners, strict=True)]
        if sampling.logprobs:
            kept = [self._kept(row)[0] for row in written]
            found = [
                Completion(one.text, one.finish_reason, one.usage, value)
                for one, value in zip(found, self._log_probabilities([ids[owner] for owner in owners], kept), strict=True)
            ]
        return [found[number * each : number * each + count] for number in range(len(prompts))]

    def _kept(self, written: list[int]) -> tuple[list[int], bool]:
        """The tokens up to the end of text, which counts, and whether there was one."""
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        place = next((k for k, token in enumerate(written) if token in ends), None)
        return (written, False) if place is None else (written[: place + 1], True)

    def _completion(self, written: list[int], prompt_tokens: int, stops: list[str]) -> Completion:
        kept, ended = self._kept(written)
        pad = self.tokenizer.pad_token_id
        while not ended and kept and kept[-1] == pad:  # a row that a stop has ended is padded until all others end
            kept = kept[:-1]
        count = len(kept)
        # A stop that is a special token of its own does not show in the text.
        for special in (self.tokenizer.get_added_vocab().get(stop) for stop in stops):
            if special in kept:
                kept, ended = kept[: kept.index(special)], True
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        for stop in stops:
            if stop in text:
                text, ended = text.split(stop)[0], True
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": count}
        return Completion(text.strip(), "stop" if ended else "length", counts)

    def _log_probabilities(self, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
        """The mean log-probability of each answer's tokens under the model itself, in nats, in one more pass."""
        start = self.model.generation_config.decoder_start_token_id if self.seq2seq else None
        values = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if not answer:
                values.append(0.0)
                continue
            if self.seq2seq:
                inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *answer[:-1]]])}
            else:
                inputs = {"input_ids": torch.tensor([[*prompt, *answer[:-1]]])}
            logits = self.model(**{key: value.to(self.device) for key, value in inputs.items()}).logits[0, -len(answer) :].float()
            gold = torch.tensor(answer, device=self.device)
            values.append(float((logits.gather(1, gold[:, None])[:, 0] - logits.logsumexp(-1)).mean()))
        return values

    @torch.inference_mode()
    def likelihoods(self, prompts: list[Prompt], answers: list[str], begun: list[str] | None = None) -> list[list[float]]:
        """Log-probability, in nats, of each of the answers as the continuation of each prompt, [prompts][answers].

        `begun` are texts that the model's turn begins with. A prompt is encoded once, however many answers there are.
        """
        texts = [self._text(prompt) + self.texts.material(start) for prompt, start in zip(prompts, begun or [""] * len(prompts), strict=True)]
        whole = [[self._tokens(text + answer, self._templated(prompt)) for answer in answers] for prompt, text in zip(prompts, texts, strict=True)]
        # The head is what the prompt and all answers share. A token that spans the prompt's end belongs to the answers, and so
        # does each answer's last token, though the answer may be another one's beginning.
        prompts_alone = [self._tokens(text, self._templated(prompt)) for prompt, text in zip(prompts, texts, strict=True)]
        shared = [
            sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, alone, strict=False)))
            for rows, alone in zip(whole, prompts_alone, strict=True)
        ]
        heads = [min(head, *(len(row) - 1 for row in rows)) for head, rows in zip(shared, whole, strict=True)]
        tails = [[row[head:] for row in rows] for head, rows in zip(heads, whole, strict=True)]
        batch = self.tokenizer.pad({"input_ids": [rows[0][:head] for head, rows in zip(heads, whole, strict=True)]}, return_tensors="pt").to(self.device)
        mask = batch["attention_mask"]
        longest = max(len(tail) for rows in tails for tail in rows)
        output = self.model(**batch, position_ids=_positions(mask), use_cache=longest > 1, logits_to_keep=1)
        first = output.logits[:, -1].float().log_softmax(-1)
        totals = torch.stack([first[number, [tail[0] for tail in rows]] for number, rows in enumerate(tails)])
        if longest > 1:
            cache = output.past_key_values
            cache.batch_repeat_interleave(len(answers))
            rows = [tail for rows in tails for tail in rows]
            ids = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (longest - len(row))] for row in rows], device=self.device)
            there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
            full = torch.cat([mask.repeat_interleave(len(answers), 0), there], dim=1)
            logits = self.model(
                input_ids=ids[:, :-1], attention_mask=full[:, :-1], position_ids=_positions(full)[:, mask.shape[1] : -1], past_key_values=cache
            ).logits.float()
            rest = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * there[:, 1:]
            totals = totals + rest.sum(-1).view(totals.shape)
        return [[float(value) for value in row] for row in totals]

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._tokens(self._text(prompt), self._templated(prompt))

    def _templated(self, prompt: Prompt) -> bool:
        """Whether the chat template writes the prompt, special tokens included."""
        return prompt.format is None and self.texts.templated

    def _text(self, prompt: Prompt) -> str:
        """The prompt for `_tokens`: control tokens are the template's or the format's, never a message's."""
        if self._templated(prompt):
            return self.texts.chat(prompt.messages, add_generation_prompt=True)
        return prompt.text(self.texts.material)

    def _tokens(self, text: str, templated: bool) -> list[int]:
        return self.texts.read(text, add_special_tokens=not templated)

    def describe(self) -> dict[str, Any]:
        """Model, device and number type."""
        return {"model": f"{self.spec}@{fingerprint(self.spec)}", "device": str(self.device), "dtype": str(self.dtype)}


def _positions(mask: Tensor) -> Tensor:
    """The place of each token among the tokens of its row that are not padding, [rows, tokens]."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


class SeededSampling:
    """Exact sampling as an argmax (the Gumbel trick), so that each row draws from a generator of its own."""

    def __init__(self, sampling: Sampling, seeds: list[int]) -> None:
        from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

        self._warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        if sampling.typical_p < 1:
            self._warpers.append(TypicalLogitsWarper(mass=sampling.typical_p))
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=generator) for generator in self._generators])
        exponential = (-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20)
        noise = -torch.log(exponential)
        return scores.float() + noise.to(scores.device)


class DiverseGroups:
    """Diverse beam search with groups of one beam: each group's scores fall for what earlier groups chose in this step."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().log_softmax(-1).view(-1, self.groups, scores.shape[-1])
        chosen = torch.zeros_like(scores[:, 0])
        parts = []
        for group in range(self.groups):
            penalised = scores[:, group] - DIVERSITY * chosen
            parts.append(penalised)
            best = penalised.argmax(-1, keepdim=True)
            chosen = chosen.scatter_add(1, best, torch.ones_like(best, dtype=chosen.dtype))
        return torch.stack(parts, dim=1).flatten(0, 1)
