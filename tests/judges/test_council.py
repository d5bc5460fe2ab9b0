"""`judge --exclude-self`: nobody judges an answer of their own; and bin/council, which is made of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, lines, parsed
from test_judges import honest, judged, of_quality, verdicts

import blendkit as library
from blendkit.errors import DataError, NoInputError, UsageError
from blendkit.judges import make_judge


def asked_of(server) -> dict[str, set[str]]:
    """Model → the answers that it was shown."""
    found: dict[str, set[str]] = {}
    for body in server.bodies:
        found.setdefault(body["model"], set()).update(re.findall(r"quality (\d+)", body["messages"][0]["content"]))
    return found


def test_no_judge_is_shown_its_own_answer(serve):
    server = serve(reply=honest)
    record = of_quality(1, 2, 3, 4)
    for candidate, model in zip(record["candidates"], ("one", "openai:b", "c", "other"), strict=True):
        candidate["model"] = model
    # By the judge's name, by its SPEC, and by its model's name.
    found, stage = judged(server, record, model=["one=openai:a", "b=openai:b", "openai:c"], exclude_self=True, orders="random")
    assert asked_of(server) == {"a": {"2", "3", "4"}, "b": {"1", "3", "4"}, "c": {"1", "2", "4"}}
    assert {name: {(a, b) for a, b, _ in verdicts(rows)} for name, rows in found.items()} == {
        "one": {(1, 2), (1, 3), (2, 3)},
        "b": {(0, 2), (0, 3), (2, 3)},
        "openai:c": {(0, 1), (0, 3), (1, 3)},
        "panel": {(a, b) for a in range(4) for b in range(a + 1, 4)},
    }
    assert {verdict for _, _, verdict in verdicts(found["panel"])} == {"B"}
    assert all("|exclude-self:yes|kind:" in signature for signature in stage.signatures)
    assert stage.describe()["pairs_nobody_may_judge"] == 0


def test_the_majority_is_of_those_who_judged(serve):
    """Two of four judges may judge the pair; they differ, and that is a tie, whatever the excluded ones would say."""
    server = serve(reply=lambda body: honest(body) if body["model"] in "ac" else {"A": "B", "B": "A"}[honest(body)])
    record = of_quality(2, 1)
    for candidate, model in zip(record["candidates"], "ab", strict=True):
        candidate["model"] = model
    found, _ = judged(server, record, model=["a=openai:a", "b=openai:b", "c=openai:c", "d=openai:d"], exclude_self=True)
    assert verdicts(found["panel"]) == [(0, 1, "tie-good")] and found["a"] == found["b"] == []
    found, _ = judged(server, record, model=["a=openai:a", "b=openai:b", "c=openai:c"], exclude_self=True)
    assert verdicts(found["panel"]) == [(0, 1, "A")]


@pytest.mark.parametrize(("name", "content"), [("f.toml", '"m1" = "x"\nlone = "y"\n"judge" = "x"\n'), ("f.json", '{"m1": "x", "lone": "y", "judge": "x"}')])
def test_relatives_are_kept_away_too(serve, tmp_path, name, content):
    server = serve(reply=honest)
    (tmp_path / name).write_text(content)
    # m12 begins with m1, too.
    found, stage = judged(server, of_quality(1, 12, 2, 3), model="judge=openai:j", exclude_self=True, families=str(tmp_path / name), orders="random")
    assert [(a, b) for a, b, _ in verdicts(found["judge"])] == [(2, 3)]
    assert re.search(r"\|exclude-self:yes\|families:[0-9a-f]{6}\|", stage.signatures[0])


@pytest.mark.parametrize("schedule", ["full", "bubble"])
def test_a_pair_that_nobody_may_judge_is_told_once_and_ranks_all_the_same(called, serve, schedule):
    server = serve(reply=honest)
    record = of_quality(3, 2, 1)
    records = [record | {"id": str(number)} for number in range(3)]
    arguments = ["judge", "-m", "m3=openai:a", "-m", "m2=openai:b", "--base-url", server.url, "--exclude-self", "--schedule", schedule]
    code, out, err = called(*arguments, stdin=lines(records))
    assert code == 0, err
    assert err.count("judged by nobody") == 1
    assert "3 pairs were judged by nobody, in 3 records: every judge, or a relative of theirs, wrote one of the two answers" in err
    code, ranked, err = called("rank", "--by", "judge:panel", stdin=out)
    assert code == 0, err
    if schedule == "full":
        assert [done["ranks"]["judge:panel"] for done in parsed(ranked)] == [[1, 1, 3]] * 3
    code, _, err = called("evaluate", "-q", stdin=ranked)
    assert code == 0, err


def test_what_is_no_file_of_families(tmp_path):
    (tmp_path / "f.toml").write_text("a = 1")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(UsageError, match="give both"):
        make_judge(families=str(tmp_path / "f.toml"))
    with pytest.raises(DataError, match=r"f.toml: .*expected a string"):
        make_judge(exclude_self=True, families=str(tmp_path / "f.toml"))
    with pytest.raises(DataError, match="expected a name and its family"):
        make_judge(exclude_self=True, families=str(tmp_path / "none.json"))
    with pytest.raises(NoInputError, match="--families"):
        make_judge(exclude_self=True, families=str(tmp_path / "gone.json"))


def test_a_council_of_local_models(tiny_chat):
    """Without a server and without references."""
    models = [f"{name}={tiny_chat}" for name in "abc"]
    answered = library.generate([{"instruction": "Say when."}], models, max_new_tokens=4, device="cpu")
    (done,) = library.fuse(
        library.rank(library.judge(answered, models, exclude_self=True, device="cpu"), by="judge:panel"),
        str(tiny_chat),
        name="council",
        max_new_tokens=4,
        device="cpu",
    )
    assert {name: {(row["a"], row["b"]) for row in rows} for name, rows in done["verdicts"].items()} == {
        "a": {(1, 2)},
        "b": {(0, 2)},
        "c": {(0, 1)},
        "panel": {(0, 1), (0, 2), (1, 2)},
    }
    assert done["candidates"][-1]["model"] == "council" and sorted(done["candidates"][-1]["sources"]) == [0, 1, 2]


def test_bin_council_is_the_whole_pipe(serve, tmp_path):
    def reply(body):
        asked = body["messages"][0]["content"]
        if "Which answer is better?" in asked:
            return honest(body)
        return f"quality {'abc'.index(body['model'])}" if asked == "How good are you?" else "fused"

    server = serve(reply=reply)
    shim = tmp_path / "blendkit"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m blendkit "$@"\n')
    shim.chmod(0o755)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "council"
    for name in ("council", "stages"):
        (script.parent / name).write_bytes((ROOT / "bin" / name).read_bytes())
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"}
    environment |= {"MODELS": "a=openai:a b=openai:b c=openai:c", "FLAGS": f"-q --base-url {server.url}"}

    def council(**more):
        record = json.dumps({"id": "1", "instruction": "How good are you?"}) + "\n"
        return subprocess.run(["sh", script], input=record, env=environment | more, capture_output=True, text=True, timeout=120)

    done = council()
    assert done.returncode == 0, done.stderr
    (record,) = parsed(done.stdout)
    assert record["ranks"]["judge:panel"] == [3, 2, 1] and record["top"] == [2, 1, 0]
    assert (record["candidates"][-1]["model"], record["candidates"][-1]["text"]) == ("council", "fused")
    assert [body["model"] for body in server.bodies if "Write the better answer" in body["messages"][0]["content"]] == ["a"]
    few = council(MODELS="a=openai:a b=openai:b")
    assert (few.returncode, few.stdout) == (2, "") and "expected three models or more" in few.stderr
