"""`--prompt auto`: the reference is shown where there is one."""

from __future__ import annotations

import json

import pytest
from conftest import lines
from test_judges import honest, of_quality

import blendkit as library


@pytest.mark.parametrize("way", ["text", "json"])
def test_the_reference_is_shown_where_a_record_has_one(called, serve, tmp_path, way):
    server = serve(reply=honest)
    records = [of_quality(1, 2) | {"id": str(number), "output": output} for number, output in enumerate(("nine", "", " \n", None))]
    del records[3]["output"]
    arguments = ["judge", "-m", "j=openai:x", "--base-url", server.url, "--verdict-by", way, "--manifest", tmp_path / "m.json"]
    code, out, err = called(*arguments, "--orders", "random", stdin=lines(records))
    assert code == 0, err
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert sum("REFERENCE\nnine\n" in prompt for prompt in prompts) == sum("REFERENCE" in prompt for prompt in prompts) == 1 < len(prompts)
    assert "--prompt auto: 3 records have no reference and were judged without, 1 with theirs\n" in err
    assert json.loads((tmp_path / "m.json").read_text())["models"]["j"]["references"] == {"shown": 1, "none": 3}
    assert all(json.loads(line)["signatures"]["judge:j"].count("|prompt:auto|") == 1 for line in out.splitlines())


def test_nothing_is_said_where_all_have_one_or_none_was_asked_for(called, serve):
    server = serve(reply=honest)
    arguments = ["judge", "-q", "-m", "j=openai:x", "--base-url", server.url, "--orders", "random"]
    assert called(*arguments, stdin=lines([of_quality(1, 2)]))[2].count("reference") == 0
    assert called(*arguments, "--prompt", "pairwise", stdin=lines([of_quality(1, 2)]))[2].count("reference") == 0


def test_a_local_judge_needs_no_reference(tiny_chat):
    record = of_quality(1, 2)
    del record["output"]
    (done,) = library.judge([record], model=f"j={tiny_chat}", device="cpu")
    assert [row["verdict"] != "unparsed" for row in done["verdicts"]["j"]] == [True, True]
