"""Rows of a step, cut into what goes through the network at a time."""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of the rows by length, shortest first, in groups of at most `budget` tokens with their padding.

    A row that is longer than the budget is a group of its own. Rows of one length keep their order.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if not groups or lengths[place] * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(place)
    return groups
