"""Scalar reward models (Ouyang et al. 2022): how good an answer is, as people's preferences taught a model."""

from __future__ import annotations

from blendkit.scorers.base import Item
from blendkit.scorers.regression import RegressionScorer


class Reward(RegressionScorer):
    """The conversation by the tokenizer's chat template; x and candidate as a pair of texts where it has none."""

    about = "a reward model with one label: chat template, or the pair (x, candidate) without one"
    paper = "Ouyang et al. 2022"
    needs_reference, needs_source = False, True
    default_model = "OpenAssistant/reward-model-deberta-v3-large-v2"

    def encoded(self, items: list[Item]) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
        tokenizer = self.regressor.tokenizer
        if not tokenizer.chat_template:
            return self.pairs([item.source for item in items], [item.candidate for item in items])
        rows: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
        for item in items:
            messages = [*({"role": role, "content": text} for role, text in item.messages), {"role": "assistant", "content": item.candidate}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            # A template spells its special tokens itself; a second start of text would be one too many. Cut at the front: the answer counts.
            rows.append((tuple(tokenizer(text, add_special_tokens=False)["input_ids"][-self.regressor.longest :]), None))
        return rows
