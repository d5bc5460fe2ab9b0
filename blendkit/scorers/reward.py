"""Scalar reward models (Ouyang et al. 2022): how good an answer is, as people's preferences taught a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from blendkit.errors import UsageError
from blendkit.models.chat_inputs import chat_ids, cut_front, dated
from blendkit.models.conversations import Conversations
from blendkit.models.cuts import Cuts
from blendkit.models.loading import shared
from blendkit.registry import nearest
from blendkit.scorers.base import Item
from blendkit.scorers.regression import Input, RegressionScorer, text_pairs

if TYPE_CHECKING:
    from blendkit.models.regression import Regressor
    from blendkit.models.token_logit import TokenLogit

# Labels that an error names.
NAMED = 24


class Reward(RegressionScorer):
    """The conversation by the tokenizer's chat template; x and candidate as a pair of texts where it has none.

    `reward:MODEL#LABEL` takes one label of several, by its name or its index; its number is the logit, before any softmax. Of a
    causal LM it is the logit of a token behind the answer, `reward:MODEL#TOKEN`.
    """

    about = "a reward model: chat template, or the pair (x, candidate) without one; of several labels the logit of one, reward:MODEL#LABEL"
    paper = "Ouyang et al. 2022"
    needs_reference, needs_source = False, True
    default_model = "OpenAssistant/reward-model-deberta-v3-large-v2"

    def __init__(self, name: str, model: str = default_model, device: str = "auto", dtype: str = "auto") -> None:
        self.spec = model
        model, self.label = split_label(model)
        super().__init__(name, model, device, dtype)
        self.chats = Conversations(self.regressor.texts)

    def loaded(self, device: str, dtype: str) -> Regressor | TokenLogit:
        from blendkit.models.loading import architecture
        from blendkit.models.regression import WRITERS

        if not self.label or not architecture(self.model_name).endswith(WRITERS):
            return super().loaded(device, dtype)
        from blendkit.models.token_logit import TokenLogit

        name, token = self.model_name, self.label
        self.label = None
        return shared(("token", name, token, device, dtype), lambda: TokenLogit(name, token, device, dtype))

    def encoded(self, items: list[Item]) -> list[Input]:
        return reward_inputs(self.chats, items, self.regressor.longest, self.cuts)

    def warnings(self) -> list[str]:
        return [*super().warnings(), *self.chats.warnings(self.model_name)]

    def label_place(self) -> int:
        """The place of the label that the metric names.

        Raises:
            UsageError: it names none of several, or one that the model does not have.
        """
        labels = self.regressor.labels
        if self.label is None and len(labels) == 1:
            return 0
        places = [place for place, label in enumerate(labels) if label == self.label]
        if self.label and not places:
            places = [place for place, label in enumerate(labels) if label.casefold() == self.label.casefold()]
        if len(places) == 1:
            return places[0]
        if self.label and self.label.isascii() and self.label.isdigit() and int(self.label[:9]) < len(labels):
            return int(self.label)
        shown = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else "")
        has = f"{self.model_name} has {len(labels):,} {'label' if len(labels) == 1 else 'labels'} ({shown})"
        if not self.label:
            raise UsageError(f"--metric reward:{self.spec}: {has}; say which is the score, by its name or index: reward:{self.model_name}#LABEL")
        what = "several" if places else "none"
        raise UsageError(f"--metric reward:{self.spec}: {has}, {what} of them called {self.label!r}{nearest(self.label, labels)}")

    def facts(self) -> dict[str, Any]:
        labels, texts = self.regressor.labels, self.regressor.texts
        label: Any = labels[self.place] if labels.count(labels[self.place]) == 1 else self.place
        return {"label": label if self.spec != self.model_name else None, "prompt": "chat" if texts.templated else "pair", "date": dated(texts)}


def split_label(model: str) -> tuple[str, str | None]:
    """Model and label of `MODEL[#LABEL]`; a directory's name may hold a #."""
    name, sharp, label = model.rpartition("#")
    return (name, label) if sharp and not os.path.isdir(model) else (model, None)


def reward_inputs(chats: Conversations, items: list[Item], longest: int, cuts: Cuts | None = None) -> list[Input]:
    """Token ids and token types of each item; `cuts` counts what was too long."""
    if not chats.texts.templated:
        return text_pairs(chats.texts, [item.source for item in items], [item.candidate for item in items], longest, cuts)
    rows: list[Input] = []
    for item in items:
        ids = chat_ids(chats, [*item.messages, ("assistant", item.candidate)])
        if cuts is not None:
            cuts.count(len(ids), longest)
        rows.append((tuple(cut_front(ids, longest, chats.texts.tokenizer)), None))
    return rows
