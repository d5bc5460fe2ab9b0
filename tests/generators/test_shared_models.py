"""Several names of one local model: it is loaded once, what is drawn alike shares batches, and each name has its own draws."""

from __future__ import annotations

import pytest
from conftest import lines, parsed

from blendkit.generators.generating import Generating

RECORDS = [{"id": "a", "instruction": "Why is the sky blue?"}, {"id": "b", "instruction": "Name three rivers."}]
TABLE = """
[plain]
model = "{model}"
[brief]
model = "{model}"
system = "Be brief."
[greedy]
model = "{model}"
temperature = 0.0
"""


@pytest.fixture
def table(tmp_path, tiny_chat):
    path = tmp_path / "models.toml"
    path.write_text(TABLE.format(model=tiny_chat))
    return path


def test_one_network_and_a_job_for_each_way_of_drawing(table):
    from blendkit.generators.options import EndpointOptions

    stage = Generating(None, None, EndpointOptions(models_file=str(table)), device="cpu")
    assert len({id(model) for model in stage.models.values()}) == 1
    jobs = {name: job for name, (job,) in stage.jobs.items()}
    assert jobs["plain"] is jobs["brief"] is not jobs["greedy"]


def test_each_answers_as_it_does_alone(called, table, tiny_chat):
    flags = ("--max-new-tokens", "8", "--device", "cpu", "-q")
    code, out, err = called("generate", "--models", table, *flags, stdin=lines(RECORDS))
    assert (code, err) == (0, "")
    together = [[candidate["text"] for candidate in record["candidates"]] for record in parsed(out)]
    for place, name in enumerate(("plain", "brief", "greedy")):
        code, out, err = called("generate", "--models", table, "-m", name, *flags, stdin=lines(RECORDS))
        assert (code, err) == (0, "")
        assert [record["candidates"][0]["text"] for record in parsed(out)] == [texts[place] for texts in together]


def test_names_without_any_difference_draw_for_themselves(called, tiny_chat):
    code, out, err = called("generate", "-m", f"a={tiny_chat}", "-m", f"b={tiny_chat}", "--max-new-tokens", "12", "--device", "cpu", stdin=lines(RECORDS))
    assert (code, err) == (0, "")
    assert all(record["candidates"][0]["text"] != record["candidates"][1]["text"] for record in parsed(out))


def test_formats_that_end_elsewhere_share_no_batch(tiny_chat):
    stage = Generating([f"a=vicuna:{tiny_chat}", f"b=alpaca:{tiny_chat}", f"c={tiny_chat}"], device="cpu", temperature=0.7)
    assert len({id(job) for (job,) in stage.jobs.values()}) == 3


def test_a_model_of_no_name_is_no_model():
    from blendkit.errors import UsageError

    with pytest.raises(UsageError, match="expected at least one model"):
        Generating([])
