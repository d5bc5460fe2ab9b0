"""What `evaluate` keeps of a long stream: columns in a file, intervals and agreement a block at a time, ids on disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from array import array

import numpy as np
import pytest
from scipy import stats

from blendkit.errors import OutputError
from blendkit.evaluation.agreement import RankerAgreement
from blendkit.evaluation.spilled_columns import BLOCK, ROWS, ColumnFile, Computed, SpilledColumns, counted
from blendkit.evaluation.statistics import bootstrap, randomization
from blendkit.streams.unique_ids import UniqueIds

LONG = 2 * BLOCK + 123


def test_columns_give_back_what_was_put_in_whatever_part_is_asked_for():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(LONG, 3))
    values[generator.random((LONG, 3)) < 0.3] = np.nan
    there = generator.random(LONG) < 0.7
    there[ROWS - 5 : 3 * ROWS + 5] = False  # whole blocks with nothing in them
    values[~there] = np.nan
    values[: 4 * ROWS + 17, 2] = np.nan  # a column that comes late
    table = SpilledColumns(ColumnFile())
    for number in np.nonzero(there)[0].tolist():
        row = array("d", values[number].tolist())
        table.put(number, row if number >= 4 * ROWS + 17 else row[:2])
    table.put(LONG, array("d", [7.0]))  # a row that ends early
    for place in range(3):
        whole = table.column(place, LONG)
        for start, stop in ((0, LONG), (0, BLOCK), (BLOCK - 7, BLOCK + 3), (5, 6), (LONG - 1, LONG + 50), (ROWS, 2 * ROWS)):
            np.testing.assert_array_equal(whole[start:stop], values[start:stop, place])
        assert counted(whole) == (int((~np.isnan(values[:, place])).sum()), pytest.approx(np.nanmean(values[:, place]), abs=1e-12))
        longer = table.column(place, LONG + 9)[LONG : LONG + 9]
        np.testing.assert_array_equal(longer, [7.0 if place == 0 else np.nan, *[np.nan] * 8])
    assert np.isnan(table.column(5, LONG)[0:LONG]).all()
    doubled = Computed(np.add, whole, whole)
    np.testing.assert_array_equal(doubled[3:LONG], 2 * values[3:, 2])
    assert len(doubled) == LONG


def test_a_full_temporary_folder_is_said_so(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    table = SpilledColumns(ColumnFile())
    with pytest.raises(OutputError, match=r"No space left on device; set TMPDIR"):
        for number in range(ROWS):
            table.put(number, array("d", [1.0]))


def test_intervals_of_many_examples_are_those_of_theory():
    values = np.random.default_rng(1).normal(3, 2, size=(LONG, 1))
    low, high = bootstrap(values, 0)[0]
    half = 1.96 * values.std() / np.sqrt(LONG)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=half / 4), pytest.approx(values.mean() + half, abs=half / 4))


def test_every_resample_of_many_examples_draws_as_many():
    # A constant has the same mean in each of them, whatever block an example is in; half of them missing changes nothing.
    values = np.full((LONG, 2), 5.0)
    values[::2, 1] = np.nan
    np.testing.assert_allclose(bootstrap(values, 0, 300), 5.0)
    # The share of examples of the first block varies as a binomial does.
    first = np.zeros((LONG, 1))
    first[:BLOCK] = 1
    share = BLOCK / LONG
    low, high = bootstrap(first, 0)[0]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / LONG), rel=0.12)


def test_randomization_of_many_examples_is_near_the_normal_test():
    differences = np.random.default_rng(2).normal(0.02, 1, size=(LONG, 1))
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert randomization(differences, 0)[0] == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)


def test_the_agreement_of_many_examples_is_that_of_all_at_once():
    generator = np.random.default_rng(3)
    oracle = np.argsort(generator.random((LONG, 5)), axis=1) + 1
    noisy = oracle + generator.normal(0, 2, size=oracle.shape)
    ranks = 1 + (noisy[:, None, :] < noisy[:, :, None]).sum(axis=2)
    ranks[ranks == 4] = 3  # ties
    models = tuple("abcde")
    ranking = RankerAgreement(models)
    for mine, theirs in zip(ranks.tolist(), oracle.tolist(), strict=True):
        ranking.add(mine, theirs, models)
    row = ranking.row("r")
    assert row["examples"] == LONG
    assert row["pearson"] == pytest.approx(100 * np.mean([np.corrcoef(ranks[:, k], oracle[:, k])[0, 1] for k in range(5)]), abs=1e-4)
    assert row["spearman"] == pytest.approx(100 * np.mean([stats.spearmanr(ranks[:, k], oracle[:, k]).statistic for k in range(5)]), abs=1e-4)
    assert row["spearman_per_example"] == pytest.approx(100 * np.mean([stats.spearmanr(m, o).statistic for m, o in zip(ranks, oracle, strict=True)]), abs=1e-4)
    assert row["footrule"] == pytest.approx(np.abs(ranks - oracle).sum(axis=1).mean(), abs=1e-4)


@pytest.mark.parametrize("in_memory", [1, 7, 10_000])
def test_an_id_is_new_once_in_memory_and_on_disk(in_memory):
    seen = UniqueIds(in_memory)
    ids = [f"{number * number % 701}" for number in range(1500)]
    before = set()
    for identity in ids:
        assert seen.add(identity) is (identity not in before)
        before.add(identity)


def test_no_room_for_ids_is_said_so(monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: (_ for _ in ()).throw(sqlite3.OperationalError("database or disk is full")))
    seen = UniqueIds(2)
    assert seen.add("a")
    with pytest.raises(OutputError, match=r"disk is full; set TMPDIR"):
        seen.add("b")
