"""Scalar reward models (Ouyang et al. 2022): how good an answer is, as people's preferences taught a model."""

from __future__ import annotations

from typing import Any

from blendkit.models.templates import rendered
from blendkit.scorers.base import Item
from blendkit.scorers.regression import Input, RegressionScorer, text_pairs


class Reward(RegressionScorer):
    """The conversation by the tokenizer's chat template; x and candidate as a pair of texts where it has none."""

    about = "a reward model with one label: chat template, or the pair (x, candidate) without one"
    paper = "Ouyang et al. 2022"
    needs_reference, needs_source = False, True
    default_model = "OpenAssistant/reward-model-deberta-v3-large-v2"

    def encoded(self, items: list[Item]) -> list[Input]:
        return reward_inputs(self.regressor.tokenizer, items, self.regressor.longest)


def reward_inputs(tokenizer: Any, items: list[Item], longest: int) -> list[Input]:
    """Token ids and token types of each item."""
    if not tokenizer.chat_template:
        return text_pairs(tokenizer, [item.source for item in items], [item.candidate for item in items], longest)
    rows: list[Input] = []
    for item in items:
        messages = [*({"role": role, "content": text} for role, text in item.messages), {"role": "assistant", "content": item.candidate}]
        text = rendered(tokenizer, messages)
        # A template spells its special tokens itself; a second start of text would be one too many. Cut at the front: the answer counts.
        rows.append((tuple(tokenizer(text, add_special_tokens=False)["input_ids"][-longest:]), None))
    return rows
