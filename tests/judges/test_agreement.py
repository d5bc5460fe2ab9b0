"""The agreement of a panel: Krippendorff's alpha against a published example, and memory that does not grow."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from blendkit.aggregate import Settled
from blendkit.judges.agreement import PanelAgreement, ordinal_alpha

WORDS = ("A", "B", "tie-good", "tie-bad", "unparsed")


def test_alpha_of_the_published_example():
    """Krippendorff (2011), section C: four observers, twelve units, five values, some missing; ordinal alpha = 0.815."""
    data = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    patterns = Counter(tuple(unit.count(value) for value in range(1, 6)) for unit in zip(*data, strict=True))
    assert ordinal_alpha(patterns) == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_the_librarys_and_memory_is_bounded():
    krippendorff = pytest.importorskip("krippendorff")
    generator = np.random.default_rng(0)
    agreement, table = PanelAgreement(), []
    for _ in range(3000):
        truth = generator.integers(3)
        words = [WORDS[truth] if generator.random() < 0.6 else WORDS[generator.integers(5)] for _ in range(4)]
        agreement.add([{(0, 1): Settled(word)} for word in words])
        table.append([{"A": 1.0, "B": -1.0, "unparsed": np.nan}.get(word, 0.0) for word in words])
    assert agreement.alpha == pytest.approx(krippendorff.alpha(reliability_data=np.array(table).T, level_of_measurement="ordinal"), abs=1e-12)
    assert agreement.pairs == 3000
    kinds = sum(1 for counts in itertools.product(range(5), repeat=3) if sum(counts) <= 4)
    assert sum(len(held) for held in vars(agreement).values() if isinstance(held, dict | list | set)) <= kinds


@pytest.mark.parametrize("verdicts", [[], ["A"], ["A", "unparsed"], ["A", "A"], ["tie-good", "tie-bad"]])
def test_where_alpha_is_not_defined_there_is_none(verdicts):
    agreement = PanelAgreement()
    agreement.add([{(0, 1): Settled(word)} for word in verdicts])
    assert agreement.alpha is None
    assert agreement.message() == []
