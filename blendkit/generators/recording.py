"""What a stage that writes answers notes of them: where their reasoning goes, and how many are empty."""

from __future__ import annotations

from collections import Counter
from typing import Any

from blendkit.generators.base import Completion
from blendkit.generators.reasoning import check_reasoning, kept
from blendkit.terminal_text import count_of, shown


class Recording:
    """Counts the answers of each model that are empty, by the reason why they ended: refusals, filters, calls of tools.

    Raises:
        UsageError: `keep` is none of field, text, none.
    """

    def __init__(self, keep: str = "field") -> None:
        check_reasoning(keep)
        self.keep = keep
        self.empty: dict[str, Counter[str]] = {}

    def taken(self, model: str, completion: Completion) -> Completion:
        """The completion as it is recorded."""
        if not completion.text.strip():
            self.empty.setdefault(model, Counter())[completion.finish_reason or "unknown"] += 1
        return kept(completion, self.keep)

    def describe(self) -> dict[str, Any]:
        """For the manifest: empty answers by model and finish_reason."""
        return {"empty": {model: dict(reasons) for model, reasons in self.empty.items()}} if self.empty else {}

    def warnings(self) -> list[str]:
        """One line a model."""
        found = []
        for model, reasons in self.empty.items():
            parts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            longer = "; a reasoning model may need more --max-new-tokens, or less --reasoning-effort" if "length" in reasons else ""
            found.append(
                f"{count_of(reasons.total(), 'answer')} of {shown(model)} {'is' if reasons.total() == 1 else 'are'} empty (finish_reason {parts}){longer}"
            )
        return found
