"""The tables of what a flag names: every row leads to something, and help, hints and documents come from the rows."""

from __future__ import annotations

import pytest

from blendkit.pipeline.engines.options import ENGINES
from blendkit.rankers import REFERENCES, SCHEDULES
from blendkit.sources import FORMS, TASKS
from blendkit.training.kinds import TRAINERS

# Each table with the command whose help names its rows, and whether the help explains them, too.
TABLES = {
    "schedules": (SCHEDULES, "pair", True),
    "references": (REFERENCES, "rank", False),
    "engines": (ENGINES, "pair", True),
    "forms": (FORMS, "data convert", True),
    "tasks": (TASKS, "data build", True),
    "trainers": (TRAINERS, "train ranker", True),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_loads_and_says_what_it_is(table):
    registry, _, _ = TABLES[table]
    assert registry.group == f"blendkit.{table}"
    for name, row in registry.items():
        assert row.about, name
        assert row.load() is not None, name


@pytest.mark.parametrize("table", TABLES)
def test_help_is_made_from_the_rows(blendkit, table):
    registry, command, explained = TABLES[table]
    shown = "".join(blendkit(*command.split(), "--help").stdout.split()).replace("-", "")
    for name, row in registry.items():
        assert (row.form or name).replace("-", "") in shown, name
        assert not explained or "".join(row.about.split()).replace("-", "") in shown, name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["pair", "--schedule", "buble:2"], "--schedule buble: expected one of full, single, bubble[:K], sort, swiss:R, active:B; did you mean bubble?"),
        (["pair", "--engine", "rai"], "--engine rai: expected one of local, ray; did you mean ray?"),
        (["data", "convert", "--from", "rewardbnch", "x"], "--from rewardbnch: expected one of records, csv, "),
        (["data", "convert", "--to", "rewardbnch"], "did you mean rewardbench?"),
        (["data", "build", "comongen", "-o", "x"], "did you mean commongen?"),
        (["train", "ranker", "--kind", "simcl", "--label", "q", "--backbone", "x", "-o", "x"], "did you mean simcls?"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(called, tmp_path, monkeypatch, command, words):
    records = tmp_path / "in.jsonl"
    records.write_text('{"id":"1","instruction":"q","candidates":[{"model":"a","text":"x","scores":{"q":1}},{"model":"b","text":"y","scores":{"q":2}}]}\n')
    files = ["-i", records] if command[0] != "data" else []
    monkeypatch.chdir(tmp_path)
    code, _, said = called(*command, *files, stdin=records.read_text())
    assert code == 2 and words in said and len(said.splitlines()) == 1, said
