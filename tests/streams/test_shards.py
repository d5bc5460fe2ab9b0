"""`--shard` takes every record once, and `merge` puts the parts together again or says why not."""

from __future__ import annotations

import os

import pytest
from conftest import lines, parsed
from hypothesis import given
from hypothesis import strategies as st

from blendkit.errors import UsageError
from blendkit.streams.lines import Line, Reader
from blendkit.streams.shards import shard_of

RECORDS = [{"id": f"r{n}", "instruction": "x", "candidates": [{"model": "m", "text": "t", "scores": {"q": n}}]} for n in range(40)]
RANK = ("rank", "--by", "score:q")


def parts_of(blendkit, tmp_path, count: int, stream: str, code: int = 0) -> list:
    paths = [tmp_path / f"part-{n}.jsonl" for n in range(count)]
    for n, path in enumerate(paths):
        assert blendkit(*RANK, "--shard", f"{n}/{count}", "-o", path, stdin=stream).returncode == code
    return paths


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=30), st.integers(1, 7))
def test_every_record_falls_to_one_shard(tmp_path_factory, ids, count):
    path = tmp_path_factory.mktemp("shards") / "in.jsonl"
    path.write_text(lines([{"id": one, "instruction": "x"} for one in ids]))
    found = [[line.record["id"] for line in Reader(str(path), (n, count)).records() if isinstance(line, Line)] for n in range(count)]
    assert sorted(one for part in found for one in part) == sorted(ids)
    assert all(part == [one for one in ids if one in part] for part in found)


def test_a_records_shard_is_the_same_for_ever(tmp_path):
    # Outputs of an earlier version must merge with those of a later one.
    path = tmp_path / "in.jsonl"
    path.write_text(lines(RECORDS[:12]))
    assert [line.record["id"] for line in Reader(str(path), (1, 2)).records()] == ["r0", "r3", "r4", "r5", "r7", "r9"]


def test_merge_gives_the_stream_back(blendkit, tmp_path):
    stream = lines([{key: value for key, value in record.items() if key != "id"} for record in RECORDS[:5]] + RECORDS[5:])
    parts = parts_of(blendkit, tmp_path, 3, stream)
    merged = blendkit("merge", *reversed(parts), stdin=stream)
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout == blendkit(*RANK, stdin=stream).stdout


def test_each_bad_line_is_the_business_of_one_shard(blendkit, tmp_path):
    stream = lines(RECORDS[:9]) + "[1]\n"
    codes = [blendkit(*RANK, "--shard", f"{n}/2", stdin=stream).returncode for n in range(2)]
    assert sorted(codes) == [0, 65]


def test_merge_refuses_gaps_and_duplicates(blendkit, tmp_path):
    stream = lines(RECORDS)
    parts = parts_of(blendkit, tmp_path, 2, stream)
    kept = parts[1].read_text().splitlines(keepends=True)

    def merged(*paths, source=stream):
        done = blendkit("merge", *paths, stdin=source)
        return done.returncode, done.stderr, [record["id"] for record in parsed(done.stdout)]

    missing = parsed(kept[3])[0]["id"]
    parts[1].write_text("".join(kept[:3] + kept[4:]))
    code, said, ids = merged(*parts)
    number = int(missing[1:])
    assert code == 65 and f"<stdin>:{number + 1}: id: no part has '{missing}' next" in said
    assert ids == [f"r{n}" for n in range(number)]
    parts[1].write_text("".join(kept + kept[-1:]))
    code, said, ids = merged(*parts)
    assert code == 65 and f"{parts[1]}:{len(kept) + 1}: id: expected a new one" in said
    parts[1].write_text("".join(kept))
    code, said, _ = merged(*parts, parts[0])
    assert code == 65 and "is in" in said and "too (line 1)" in said
    code, said, ids = merged(*parts, source=lines(RECORDS[:-1]))
    assert code == 65 and "left over at the end of the original" in said and len(ids) == len(RECORDS) - 1
    parts[1].write_text("".join(kept)[:-20])  # a torn line
    code, said, _ = merged(*parts)
    assert code == 65 and f"{parts[1]}:{len(kept)}: not JSON" in said
    assert merged(parts[0], tmp_path / "absent.jsonl")[0] == 66


def test_a_schedulers_variables(monkeypatch):
    assert shard_of("2/5") == (2, 5)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert shard_of("slurm") == (2, 4)
    assert shard_of("slurm/8") == (2, 8)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert shard_of("k8s/3") == (0, 3)


@pytest.mark.parametrize("spec", ["5/5", "-1/5", "1", "a/b", "1/0", "", "k8s", "1/2/3", "²/3", "slurm"])
def test_no_such_shard(spec, monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(UsageError, match=r"--shard .*: "):
        shard_of(spec)
