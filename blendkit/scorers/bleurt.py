"""BLEURT (Sellam et al. 2020): a regression model that reads reference and candidate together."""

from __future__ import annotations

from blendkit.scorers.base import Item
from blendkit.scorers.regression import RegressionScorer, text_pairs


class Bleurt(RegressionScorer):
    """Checkpoints in Hugging Face form: BERT with a regression head, or the RemBERT port (BLEURT-20)."""

    about = "BLEURT; ports with a BERT or RemBERT regression head, such as lucadiliello/BLEURT-20"
    paper, bounds = "Sellam et al. 2020", "about 0 to 1"
    default_model = "Elron/bleurt-base-128"

    def encoded(self, items: list[Item]) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
        return text_pairs(self.regressor.texts, [item.reference for item in items], [item.candidate for item in items], self.regressor.longest, self.cuts)
