"""Scalar reward models (Ouyang et al. 2022): how good an answer is, as people's preferences taught a model."""

from __future__ import annotations

from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.scorers.base import Item
from blendkit.scorers.regression import Input, RegressionScorer, text_pairs


class Reward(RegressionScorer):
    """The conversation by the tokenizer's chat template; x and candidate as a pair of texts where it has none."""

    about = "a reward model with one label: chat template, or the pair (x, candidate) without one"
    paper = "Ouyang et al. 2022"
    needs_reference, needs_source = False, True
    default_model = "OpenAssistant/reward-model-deberta-v3-large-v2"

    def encoded(self, items: list[Item]) -> list[Input]:
        return reward_inputs(self.regressor.texts, items, self.regressor.longest)


def reward_inputs(tokenizer: TextTokenizer, items: list[Item], longest: int) -> list[Input]:
    """Token ids and token types of each item."""
    if not tokenizer.templated:
        return text_pairs(tokenizer, [item.source for item in items], [item.candidate for item in items], longest)
    rows: list[Input] = []
    for item in items:
        messages = [*({"role": role, "content": text} for role, text in item.messages), {"role": "assistant", "content": item.candidate}]
        # A template spells its special tokens itself; a second start of text would be one too many. Cut at the front: the answer counts.
        ids = tokenizer.read(tokenizer.chat(messages), add_special_tokens=False)
        rows.append((tuple(ids[-longest:]), None))
    return rows
