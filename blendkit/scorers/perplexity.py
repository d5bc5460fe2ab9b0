"""Perplexity of a candidate under a causal language model, given x (Jelinek et al. 1977). Lower is better."""

from __future__ import annotations

import math
from typing import Any

from blendkit.models.chat_inputs import chat_ids, cut_front, dated, started
from blendkit.models.conversations import Conversations
from blendkit.models.loading import choose_device, choose_dtype, to_device
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature

# What an empty candidate gets, and the most that any gets: e^100 says no more than this.
WORST = 1e6


class Perplexity(ModelScorer):
    """exp of the mean negative log-probability of the candidate's tokens; x stands before them, by the chat template where there is one."""

    about = "perplexity of the candidate, given x, under a causal LM"
    paper, bounds = "Jelinek et al. 1977", f"1 to {WORST:g}"
    needs_reference, needs_source, lower_is_better = False, True, True
    default_model = "gpt2"
    plans_ahead = True
    empty = f"{WORST:g}"

    def __init__(self, name: str, model: str = default_model, device: str = "auto", dtype: str = "auto") -> None:
        from transformers import AutoModelForCausalLM

        from blendkit.models.encoder import load_pretrained
        from blendkit.models.encoder_reader import longest_input

        super().__init__(name, model)
        self.device = choose_device(device)
        network, self.tokenizer = load_pretrained(AutoModelForCausalLM, model, "causal language model")
        self.texts = TextTokenizer(self.tokenizer)
        self.chats = Conversations(self.texts)
        self.network = network.to(self.device, choose_dtype(dtype, self.device, "the metric perplexity"))
        self.longest = longest_input(network, self.tokenizer, otherwise=1 << 24)
        self.job = Job(f"perplexity:{model}", self._perplexities)

    def rounds(self, items: list[Item]) -> Scores:
        """One work a distinct (x, candidate) with at least one token to predict."""
        prompts = {item.messages: self._prompt(item) for item in items}
        works, empty = [], []
        for item in items:
            prompt = prompts[item.messages]
            whole = self.texts([item.candidate], add_special_tokens=False)["input_ids"][0]
            answer = whole[: self.longest - 1]
            empty.append(not answer)
            if answer:
                self.cuts.count(len(prompt) + len(whole), self.longest)
                kept = cut_front(prompt, self.longest - len(answer), self.tokenizer)
                row = (tuple(kept), tuple(answer))
                works.append(Work(self.job, row, len(kept) + len(answer), row))
        found = iter((yield works))
        return [WORST if nothing else next(found) for nothing in empty]

    def _prompt(self, item: Item) -> list[int]:
        """Token ids that stand before the answer; at least one, because the first token cannot be predicted from nothing."""
        if self.texts.templated:
            return chat_ids(self.chats, item.messages, add_generation_prompt=True)
        return started(self.texts([f"{item.source}\n" if item.source else ""])["input_ids"][0], self.tokenizer)

    def _perplexities(self, payloads: list[Any]) -> list[float]:
        """Perplexity of each answer."""
        import torch

        from blendkit.models.encoder_reader import expect_embeddings, padded

        rows = [[*prompt, *answer] for prompt, answer in payloads]
        expect_embeddings(rows, self.network.get_input_embeddings().num_embeddings, self.model_name)
        with torch.inference_mode():
            logits = self.network(**to_device(padded(rows, 0), self.device)).logits
            values = []
            for number, (prompt, answer) in enumerate(payloads):
                part = logits[number, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
                gold = torch.tensor(answer, device=part.device)
                values.append((part.logsumexp(-1) - part.gather(1, gold[:, None])[:, 0]).mean())
            losses = torch.stack(values).tolist()
        return [min(math.exp(min(loss, 100.0)), WORST) for loss in losses]

    def warnings(self) -> list[str]:
        return [*super().warnings(), *self.chats.warnings(self.model_name)]

    @property
    def signature(self) -> str:
        template = "chat" if self.texts.templated else "plain"
        return str(Signature("perplexity", model=self.model_at, prompt=template, date=dated(self.texts), max=self.longest))
