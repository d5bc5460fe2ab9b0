"""Reward models that are causal LMs: the reward is the logit of one token right behind the answer (Nemotron's, Wang et al. 2024: token 0)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from blendkit.errors import UsageError
from blendkit.models.encoder import load_pretrained
from blendkit.models.encoder_reader import Ids, expect_embeddings, longest_input
from blendkit.models.fast.int8 import placed
from blendkit.models.loading import choose_device
from blendkit.models.number_type import encoder_dtype
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.terminal_text import count_of


class TokenLogit:
    """As a `Regressor` with one label, which is a token: its id, or a text that is one token.

    Raises:
        NoInputError: there is no such model.
        UsageError: there is no such token.
    """

    def __init__(self, name: str, token: str, device: str = "auto", dtype: str = "auto") -> None:
        from transformers import AutoModelForCausalLM

        self.name = name
        self.device = choose_device(device)
        model, self.tokenizer = load_pretrained(AutoModelForCausalLM, name, "causal language model")
        self.hints: list[str] = []
        self.dtype = encoder_dtype(dtype, self.device, model.config, self.hints, packed=False)
        placed(model.base_model, self.device, self.dtype)
        self.model = model.to(self.device, torch.float32 if self.dtype == torch.int8 else self.dtype)
        self.size = model.get_input_embeddings().num_embeddings
        self.texts = TextTokenizer(self.tokenizer)
        self.longest = longest_input(model, self.tokenizer, otherwise=1 << 24)
        self.token = self._found(token)
        self.labels = [f"token {self.token}"]

    def _found(self, token: str) -> int:
        number = token.isascii() and token.isdigit()
        found = [int(token[:9])] if number else list(self.tokenizer(token, add_special_tokens=False)["input_ids"])
        if len(found) != 1 or found[0] >= self.size:
            problem = count_of(len(found), "token") if len(found) != 1 else f"none of its {count_of(self.size, 'token')}"
            raise UsageError(f"--metric reward:{self.name}#{token}: {self.name} writes text, and {token!r} is {problem} of it; name one, by text or id")
        return found[0]

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> list[list[float]]:
        """The token's logit behind each input. Inputs of one length go together, so that nothing is padded."""
        expect_embeddings(rows, self.size, self.name)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        numbers: dict[int, list[float]] = {}
        for _, group in groupby(order, key=lambda place: len(rows[place])):
            places = list(group)
            ids = torch.tensor([list(rows[place]) for place in places], device=self.device)
            logits = self.model(input_ids=ids, logits_to_keep=1).logits[:, -1, self.token]
            numbers |= {place: [number] for place, number in zip(places, logits.float().tolist(), strict=True)}
        return [numbers[place] for place in range(len(rows))]
