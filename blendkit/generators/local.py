"""Text generation with transformers: causal and seq2seq models, batched, each prompt sampled by its own seed."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blendkit.errors import RecordError
from blendkit.generators.answers import Answers
from blendkit.generators.base import Completion, Prompt, TextModel
from blendkit.generators.decoding import Decoding, decodes, left_padded
from blendkit.generators.draws import Choice, SeededSampling
from blendkit.generators.options import Sampling
from blendkit.generators.prompting import EncodedPrompt, Prompting, PromptTruncation, placed, positions_of
from blendkit.generators.reasoning import Room
from blendkit.generators.sampling import DiverseGroups, Endings, Stops
from blendkit.models.fast.linear import FEW, pack_linears
from blendkit.models.gguf import is_gguf
from blendkit.models.loading import choose_device, choose_dtype, decoding_budget, fingerprint, locate
from blendkit.models.pretrained import decoding_of, pretrained

WHAT = "model that generates text"
# Tokens after which the time to pack the weights of linear layers is won back.
WORTH_PACKING = 32


class LocalModel(TextModel):
    """Chat models get their chat template, unless the prompt brings a format; others get the messages' text.

    The weights are loaded with the first batch, and may be put away (`put_away`) for another model's sake. Prompts that are
    too long are cut (`on_truncate="warn"`) or bad (`"fail"`).

    Raises:
        NoInputError: there is no such model, or it generates no text.
    """

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False, on_truncate: str = "warn") -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.spec, self.trust = name, trust_remote_code
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, "a model that writes")
        self._network: Any = None
        config = pretrained(AutoConfig, name, WHAT, trust_remote_code=trust_remote_code)
        self.seq2seq = bool(config.is_encoder_decoder)
        self.tokenizer = pretrained(AutoTokenizer, name, WHAT, trust_remote_code=trust_remote_code)
        self.prompting = Prompting(self.tokenizer, name, positions_of(config), on_truncate, shared=not self.seq2seq)
        # A checkpoint says which ids begin and end a text; how to decode is said by the flags alone.
        self.decoding = decoding_of(name, config)
        ends = self.decoding.pop("eos_token_id", [])
        ends = {*ends, *self._known(self.tokenizer.eos_token_id, config), *self._turn_end()}
        pads = [*self._known(self.tokenizer.pad_token_id, config), *self.decoding.pop("pad_token_id", []), *sorted(ends), 0]
        self.answers = Answers(self.tokenizer, ends, pads[0])
        self.room, self.truncation = Room(), PromptTruncation()
        # As many rows as a batch is the quicker for.
        self.window = 256 if self.device.type == "cuda" else 96
        # On a CPU, an encoder's states of a batch and their scores need more than the decoder's keys and values.
        if not self.seq2seq or self.device.type == "cuda":
            self.batch_tokens = decoding_budget(self.device, config.get_text_config(decoder=True), self.dtype.itemsize, self._stored())
        self._steps = 0

    def _stored(self) -> int:
        """Bytes of the checkpoint's weights."""
        where = Path(self.spec) if is_gguf(self.spec) else locate(self.spec)
        return sum(path.stat().st_size for path in ([where] if where.is_file() else where.glob("*.safetensors")))

    @staticmethod
    def _known(token: int | None, config: Any) -> list[int]:
        """The id, if the network has it: some tokenizers were given tokens that the weights were not."""
        size = getattr(config.get_text_config(), "vocab_size", None)
        return [token] if isinstance(token, int) and 0 <= token < (size or 1 << 60) else []

    def _turn_end(self) -> set[int]:
        try:
            return self.prompting.conversations.turn_end() if self.prompting.texts.templated else set()
        except RecordError:
            return set()

    @property
    def model(self) -> Any:
        """The network, loaded when it is first needed."""
        if self._network is None:
            from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

            kind = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
            # Nothing else that the checkpoint says of decoding is even read.
            unread = {} if self.trust else {"generation_config": GenerationConfig()}
            network = pretrained(kind, self.spec, WHAT, trust_remote_code=self.trust, whole=True, dtype=self.dtype, **unread)
            network.generation_config = GenerationConfig(**self.decoding, eos_token_id=sorted(self.answers.ends) or None, pad_token_id=self.answers.pad)
            self._network = network.to(self.device).eval()
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
        return self.prompting.length(prompt)

    def complete(self, prompts: list[Prompt], sampling: Sampling) -> list[Completion | Exception]:
        """Completes one batch. Apart from float noise, an answer does not depend on the rest of its batch."""
        cut: dict[int, int] = {}

        def ask(some: list[Prompt], wider: Sampling) -> list[Completion | Exception]:
            return [found if isinstance(found, Exception) else found[0] for found in self._searched(some, wider, 1, cut)]

        found = self.room.complete(ask, prompts, sampling)
        self.truncation.add(cut.values())
        return found

    def search(self, prompts: list[Prompt], sampling: Sampling, count: int) -> list[list[Completion] | Exception]:
        """The best `count` answers of a beam search for each prompt, or the one that sampling gives."""
        cut: dict[int, int] = {}
        found = self._searched(prompts, sampling, count, cut)
        self.truncation.add(cut.values())
        return found

    def _searched(self, prompts: list[Prompt], sampling: Sampling, count: int, cut: dict[int, int]) -> list[list[Completion] | Exception]:
        """The answers, or a prompt's fault; `cut` is told the tokens that were cut off each prompt, by its identity."""

        def encode(prompt: Prompt) -> tuple[Prompt, EncodedPrompt]:
            encoded = self.prompting.encoded(prompt, sampling.max_new_tokens, sampling.effort)
            cut[id(prompt)] = encoded.cut
            return prompt, encoded

        return placed(prompts, encode, lambda good: self._written([prompt for prompt, _ in good], [encoded for _, encoded in good], sampling, count))

    def _written(self, prompts: list[Prompt], encoded: list[EncodedPrompt], sampling: Sampling, count: int) -> list[list[Completion]]:
        stops = [*dict.fromkeys((*sampling.stop, *(stop for prompt in prompts for stop in prompt.stop)))]
        rows = [one.ids or [self.answers.pad] for one in encoded]
        if sampling.beams > 1 or not decodes(self.model):
            return self._generated(prompts, encoded, rows, stops, sampling, count)
        if len(rows) > FEW:
            self._steps += max(one.room for one in encoded)
            if self._steps > WORTH_PACKING:
                pack_linears(self.model)
        written = Decoding(
            self.model,
            rows,
            [one.room for one in encoded],
            Choice(sampling, [prompt.seed for prompt in prompts], self.device),
            self.answers.ends,
            penalty=sampling.repetition_penalty,
            stopped=Stops(self.answers, stops, [one.opened for one in encoded]) if stops else None,
            positions=self.prompting.positions,
            logprobs=sampling.logprobs,
        )()
        found = [self.answers.completion(row.tokens, len(one.ids), stops, one.opened) for row, one in zip(written, encoded, strict=True)]
        if sampling.logprobs:
            found = [replace(one, logprob=sum(row.logprobs) / len(row.logprobs)) for one, row in zip(found, written, strict=True)]
        return [[one] for one in found]

    @torch.inference_mode()
    def _generated(
        self, prompts: list[Prompt], encoded: list[EncodedPrompt], rows: list[list[int]], stops: list[str], sampling: Sampling, count: int
    ) -> list[list[Completion]]:
        """By `generate` of transformers: searches, and networks that `decodes` does not know."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        processors: list[Any] = []
        copies, beams = 1, sampling.beams
        if sampling.beams > 1 and sampling.diverse:
            # Groups of one beam each are greedy searches side by side that avoid each other's tokens.
            copies, beams = sampling.beams, 1
            processors.append(DiverseGroups(copies))
        elif sampling.beams == 1 and sampling.temperature > 0:
            processors.append(SeededSampling(sampling, [prompt.seed for prompt in prompts], self.device))
        ids, mask = self._padded([row for row in rows for _ in range(copies)])
        begun = 1 if self.seq2seq else ids.shape[1]
        rooms = [one.room for one in encoded]
        criteria: list[Any] = []
        if stops or min(rooms) < max(rooms):
            criteria.append(Endings(self.answers, stops, begun, rooms, [one.opened for one in encoded]))
        with self._inside() if min(rooms) < max(rooms) else nullcontext():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=count if beams > 1 else 1,
                max_new_tokens=max(rooms),
                repetition_penalty=sampling.repetition_penalty,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(criteria),
            )
        each = count if beams > 1 else copies
        owners = [one for one in encoded for _ in range(each)]
        written = [row[: owner.room] for row, owner in zip(output[:, begun:].tolist(), owners, strict=True)]
        found = [self.answers.completion(row, len(owner.ids), stops, owner.opened, padded=bool(stops)) for row, owner in zip(written, owners, strict=True)]
        if sampling.logprobs:
            kept = [self.answers.kept(row, padded=bool(stops))[0] for row in written]
            values = self._log_probabilities([owner.ids for owner in owners], kept)
            found = [replace(one, logprob=value) for one, value in zip(found, values, strict=True)]
        return [found[number * each : number * each + count] for number in range(len(prompts))]

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keeps rows that have come to their last position there, while others of the batch go on: nothing reads what they write."""
        last = (self.prompting.positions or 0) - 1

        def clamp(network: Any, inputs: Any, named: dict[str, Any]) -> Any:
            places = named.get("position_ids")
            return (inputs, named | {"position_ids": places.clamp(max=last)}) if isinstance(places, Tensor) else None

        hook = self.model.register_forward_pre_hook(clamp, with_kwargs=True) if last > 0 else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, [rows, tokens]. A decoder continues from its last column, so its padding stands on the left; what it is does not matter."""
        if not self.seq2seq:
            ids, mask = left_padded(rows, self.answers.pad)
            return ids.to(self.device), mask.to(self.device)
        width = max(1, *map(len, rows))
        ids = torch.tensor([row + [self.answers.pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids.to(self.device), mask.to(self.device)

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

    def likelihoods(self, prompts: list[Prompt], answers: list[str], begun: list[str] | None = None) -> list[list[float] | Exception]:
        """Log-probability, in nats, of each of the answers as the continuation of each prompt, or the prompt's fault; [prompts][answers].

        `begun` are texts that the model's turn begins with. A template that opens the reasoning has it closed, as the answers
        stand behind it. A prompt is encoded once, however many answers there are.
        """

        def encode(asked: tuple[Prompt, str]) -> tuple[list[int], list[list[int]]]:
            prompt, start = asked
            encoded = self.prompting.settled(prompt, start, answers)
            self.truncation.add([encoded.cut])
            return self.prompting.behind(prompt, encoded, answers)

        return placed(zip(prompts, begun or [""] * len(prompts), strict=True), encode, self._likelihoods)

    @torch.inference_mode()
    def _likelihoods(self, prompts: list[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        """[prompts][answers], of each prompt's head and the answers' tails."""
        heads, tails = [head for head, _ in prompts], [rows for _, rows in prompts]
        ids, mask = self._padded(heads)
        longest = max(len(tail) for rows in tails for tail in rows)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=longest > 1, logits_to_keep=1)
        first = output.logits[:, -1].float().log_softmax(-1)
        totals = torch.stack([first[number, [tail[0] for tail in rows]] for number, rows in enumerate(tails)])
        if longest > 1:
            cache = output.past_key_values
            cache.batch_repeat_interleave(len(tails[0]))
            rows = [tail for rows in tails for tail in rows]
            ids = torch.tensor([[*row, *[self.answers.pad] * (longest - len(row))] for row in rows], device=self.device)
            there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
            full = torch.cat([mask.repeat_interleave(len(tails[0]), 0), there], dim=1)
            logits = self.model(
                input_ids=ids[:, :-1], attention_mask=full[:, :-1], position_ids=_positions(full)[:, mask.shape[1] : -1], past_key_values=cache
            ).logits.float()
            rest = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * there[:, 1:]
            totals = totals + rest.sum(-1).view(totals.shape)
        return [[float(value) for value in row] for row in totals]

    def describe(self) -> dict[str, Any]:
        """Model, device and number type, and what was cut."""
        known = {"model": f"{self.spec}@{fingerprint(self.spec)}", "device": str(self.device), "dtype": str(self.dtype)}
        return known | self.truncation.describe() | self.room.describe()

    def warnings(self) -> list[str]:
        """What was cut, what the chat template does not take, and room for reasoning."""
        return [*self.truncation.warnings(self.spec), *self.prompting.warnings(), *self.room.warnings(self.spec)]


def _positions(mask: Tensor) -> Tensor:
    """The place of each token among the tokens of its row that are not padding, [rows, tokens]."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
