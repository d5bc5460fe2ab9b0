"""The losses of LLM-Blender and its baselines, as the reference code computes them; checked against its values in the tests.

Scores of candidates are [B, T] for T tasks (Q functions), labels the same; higher is better in both.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bce(left: Tensor, right: Tensor, left_labels: Tensor, right_labels: Tensor) -> Tensor:
    """The paper's loss (section 3.2): whether the left one is better and whether the right one is better are two questions."""
    is_left = functional.binary_cross_entropy_with_logits(left, (left_labels > right_labels).to(left.dtype), reduction="none")
    is_right = functional.binary_cross_entropy_with_logits(right, (right_labels > left_labels).to(right.dtype), reduction="none")
    return (is_left + is_right) / 2


def instructgpt(left: Tensor, right: Tensor, left_labels: Tensor, right_labels: Tensor) -> Tensor:
    """The public checkpoints' loss: -log σ(s_better - s_worse); equal labels give log 2 and no gradient."""
    return -functional.logsigmoid((left - right) * (left_labels - right_labels).sign())


def soft(left: Tensor, right: Tensor, left_labels: Tensor, right_labels: Tensor) -> Tensor:
    """Bradley-Terry with soft labels: the target is σ of the margin between the labels, so that a tie pulls the logit to 0."""
    return functional.binary_cross_entropy_with_logits(left - right, (left_labels - right_labels).sigmoid(), reduction="none")


def mse(left: Tensor, right: Tensor, left_labels: Tensor, right_labels: Tensor) -> Tensor:
    """Squared errors of both scores, less twice the product of predicted and true difference."""
    return (left - left_labels) ** 2 + (right - right_labels) ** 2 - 2 * (left - right) * (left_labels - right_labels)


PAIR_LOSSES = {"instructgpt": instructgpt, "bce": bce, "soft": soft, "mse": mse}


def simcls(similarities: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """SimCLS's margin ranking (Liu and Liu 2021): the reference above all, and each above a worse one by their distance in rank over N.

    `similarities` and `labels` are [B, N] (labels summed over tasks), `reference`, [B], is the reference's similarity.
    """
    n = similarities.shape[1]
    best_first = similarities.gather(1, labels.argsort(dim=1, descending=True))
    loss = (similarities - reference[:, None]).relu().mean()
    for distance in range(1, n):
        gaps = best_first[:, distance:] - best_first[:, :-distance] + distance / n
        loss = loss + gaps.relu().mean(dim=0).sum()
    return loss


def best_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """SummaReranker's loss (Ravaut et al. 2022): for each task, a candidate is the best of its group or is not. Both are [N, T]."""
    return functional.binary_cross_entropy_with_logits(logits, (labels == labels.amax(dim=0)).to(logits.dtype))
