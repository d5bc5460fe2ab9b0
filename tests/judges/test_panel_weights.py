"""`judge --panel-weights`: a panel whose judges do not count alike."""

from __future__ import annotations

import math

import orjson
import pytest
from test_judges import honest, judged, of_quality, verdicts

from blendkit.errors import DataError, NoInputError, UsageError
from blendkit.evaluation.audit.panel import Panel
from blendkit.judges import make_judge
from blendkit.judges.weighing import weights_of_file

JUDGES = ["good=openai:good", "b=openai:b", "c=openai:c"]


def rows(*weights: float, **more) -> list[dict]:
    return [{"table": "panel", "method": name, "weight": weight} | more for name, weight in zip(("good", "b", "c"), weights, strict=True)]


@pytest.fixture
def file(tmp_path):
    def write(rows):
        (tmp_path / "w.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)) + b"\n")
        return str(tmp_path / "w.jsonl")

    return write


def test_a_heavy_judge_outvotes_two(serve, file):
    server = serve(reply=lambda body: honest(body) if body["model"] == "good" else {"A": "B", "B": "A", "C": "C"}[honest(body)])
    others = [{"table": "fused", "method": "good", "weight": 9}, {"table": "panel", "method": "all judges", "alpha": 0.1}]
    path = file([*others, *rows(2.0, 0.5, 0.25)])
    found, stage = judged(server, of_quality(1, 2, 2), model=JUDGES, panel_weights=path, orders="random")
    assert [(row["a"], row["b"], row["verdict"], row["probability"]) for row in found["panel"]] == [
        (0, 1, "B", round(1 / (1 + math.exp(1.25)), 6)),
        (0, 2, "B", round(1 / (1 + math.exp(1.25)), 6)),
        (1, 2, "tie-good", 0.5),
    ]
    assert stage.describe()["panel_weights"] == {"b": 0.5, "c": 0.25, "good": 2.0}
    majority, _ = judged(server, of_quality(1, 2, 2), model=JUDGES, orders="random")
    assert verdicts(majority["panel"])[0] == (0, 1, "A")
    # A judge that cannot be read has no weight.
    found, _ = judged(
        serve(reply=lambda body: "?" if body["model"] == "good" else honest(body)), of_quality(1, 2), model=JUDGES, panel_weights=path, max_unparsed=1
    )
    assert found["panel"][0]["probability"] == round(1 / (1 + math.exp(0.75)), 6)


def test_the_table_of_a_fitted_panel_is_such_a_file(serve, file):
    panel = Panel()
    for number in range(40):
        said = {"good": "AB"[number % 2], "b": "AB"[number % 2], "c": "AB"[number % 3 == 0]}
        panel.add({"id": str(number)}, {name: [{"a": 0, "b": 1, "verdict": verdict}] for name, verdict in said.items()})
    found, stage = judged(serve(reply=honest), of_quality(1, 2), model=JUDGES, panel_weights=file(panel.fitted().rows()))
    assert found["panel"][0]["verdict"] == "B" and "|weights:" in stage._signed["judge:panel"]


def test_a_line_of_the_file_ends_where_files_end_lines(file, tmp_path):
    """JSON's strings may hold what ends lines in other texts."""
    path = file([{"table": "fused", "method": "a\u2028b\u0085c\x0bd"}, *rows(1, 2, 3)])
    assert weights_of_file(path, ["b"]).weights == {"b": 2.0}
    (tmp_path / "w.jsonl").write_bytes(b'{"table": "fused"}\n\n{"method": "\xff"}\n')
    with pytest.raises(DataError, match=r"w.jsonl:3: not JSON|w.jsonl:3: not UTF-8"):
        weights_of_file(path, ["b"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (rows(1, 1, 1)[:2], "expected the table panel with the weight of c; found good"),
        ([], "it has none"),
        (rows(1, 1, 1, method=7), r"w.jsonl:1: method: expected"),
        (rows("x", 1, 1), r"w.jsonl:1: weight: expected"),
    ],
)
def test_a_file_without_the_weights_is_refused(file, content, said):
    with pytest.raises(DataError, match=said):
        weights_of_file(file(content), ["good", "b", "c"])


def test_what_weights_need(file, tmp_path):
    with pytest.raises(UsageError, match="there is one judge"):
        make_judge(panel_weights=file(rows(1, 1, 1)))
    with pytest.raises(NoInputError, match="--panel-weights"):
        make_judge(["embedded", "x=embedded"], panel_weights=str(tmp_path / "gone.jsonl"))
