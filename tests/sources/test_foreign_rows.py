"""Rows and tables of any shape: they become records that `check` takes, or one fault that names their place."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import strategies as st
from shapes import budget, changed

from blendkit.errors import BlendkitError
from blendkit.records import parse, verdicts_of
from blendkit.sources import FORMS, TASKS
from blendkit.sources.forms import read_form
from blendkit.sources.mixinstruct import SOURCES, read_source
from blendkit.sources.reading import rows
from blendkit.sources.tasks import read_task


def talk(last: str) -> list[dict]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": last}]


# A row of each form as it is published.
ROWS = {
    "ultrafeedback": {
        "instruction": "i",
        "source": "s",
        "completions": [{"model": "m", "response": "r", "overall_score": 7.5, "annotations": {"honesty": {"Rating": "5"}}}],
    },
    "binarized": {"prompt": "p", "prompt_id": "1", "chosen": talk("a"), "rejected": talk("b"), "score_chosen": 2, "score_rejected": 1.0},
    "unifiedfeedback": {"id": 1, "conv_A": talk("a"), "conv_B": talk("b"), "conv_A_rating": 1, "conv_B_rating": "0", "source": "s"},
    "rewardbench": {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n", "subset": "s", "id": 7},
    "alpacaeval": {"instruction": "i", "output": "o", "generator": "m", "dataset": "d"},
    "alpacaeval-annotations": {
        "instruction": "i",
        "output_1": "a",
        "output_2": "b",
        "generator_1": "m",
        "generator_2": "n",
        "preference": 1.2,
        "annotator": "j",
    },
    "mtbench": {
        "question_id": 1,
        "model_a": "m",
        "model_b": "n",
        "winner": "model_a",
        "judge": ["j", 1],
        "turn": 1,
        "conversation_a": talk("a"),
        "conversation_b": talk("b"),
    },
    "hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "csv": {"id": "1", "instruction": "i", "input": "", "output": "o", "m": "a"},
    "alpaca-gpt4": {"instruction": "i", "input": "x", "output": "o"},
    "dolly-15k": {"instruction": "i", "context": "c", "response": "r"},
    "gpt4all-laion": {"prompt": "p", "response": "r", "source": "laion"},
    "records": {"instruction": "i", "candidates": [{"model": "m", "text": "a"}, {"model": "n", "text": "b"}], "ranks": {"r": [1, 2]}},
    "messages": {"messages": talk("a")},
    "sft": {"prompt": talk("q")[:1], "completion": "a"},
    "dpo": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "kto": {"prompt": "p", "completion": "a", "label": True},
    "reward-bench-2": {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "models": ["m", "n", "o"]},
    "arena": {
        "id": 1,
        "model_a": "m",
        "model_b": "n",
        "prompt": '["p"]',
        "response_a": '["a"]',
        "response_b": '["b"]',
        "winner_model_a": 0,
        "winner_model_b": 0,
        "winner_tie": 1,
    },
    "lm-eval": {"doc_id": 1, "arguments": {"gen_args_0": {"arg_0": "p"}}, "resps": [["a"]], "target": "t", "metrics": ["m"], "m": 0.5, "filter": "f"},
    "openai-batch": {"custom_id": "1", "body": {"messages": talk("q")[:1], "model": "m"}},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "cnn-dailymail": {"article": "a", "highlights": "h", "id": "1"},
    "wmt18-zh-en": {"translation": {"zh": "z", "en": "e"}},
    "commongen": {"concepts": ["a", "b"], "target": "t", "concept_set_idx": 3},
}
READERS = {"form": (FORMS, read_form), "source": (SOURCES, read_source), "task": (TASKS, read_task)}


def test_there_is_a_row_of_every_form():
    assert set(ROWS) == {*FORMS, *SOURCES, *TASKS}


@budget(250, 1000, st.data())
def test_a_row_of_any_shape_of_every_form(data):
    """A converter gives records that `check` takes, or names the row."""
    name = data.draw(st.sampled_from(sorted(ROWS)))
    read = next(read for known, read in READERS.values() if name in known)
    row = changed(data.draw, ROWS[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(orjson.dumps(ROWS[name]) + b"\n" + json.dumps(row).encode(errors="surrogatepass") + b"\n")
        try:
            for number, found in enumerate(read(name, rows(str(path))), 1):
                record = found if isinstance(found, dict) else found[1]
                verdicts_of(parse(orjson.dumps(record), number))
        except BlendkitError as error:
            assert error.exit_code == 65 and str(error).startswith(f"{path}:2: ")


@budget(150, 600, st.binary(max_size=80), st.sampled_from([",", "\t", '"', "\n", "\r", "\x00"]), st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_a_table_of_any_bytes(tail, delimiter, cells):
    file = io.StringIO()
    with contextlib.suppress(csv.Error):
        csv.writer(file).writerow(cells)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(b"instruction,m,n\n" + file.getvalue().encode(errors="surrogatepass") + delimiter.encode() + tail)
        try:
            for number, (_, record) in enumerate(read_form("csv", rows(str(path))), 1):
                parse(orjson.dumps(record), number)
        except BlendkitError as error:
            assert error.exit_code == 65 and str(error).startswith(str(path))


BAD_FILES = {
    "cells.csv": ("instruction,m\nx,a\ny,b,c\n", "cells.csv:3: expected 2 cells, as the heading has, got 3"),
    "twice.csv": ("instruction,m,m\nx,a,b\n", "twice.csv:1: the column 'm' is there twice"),
    "quote.csv": ('instruction,m\nx,a\ny,"b\n', "quote.csv:3: unexpected end of data"),
    "none.csv": ("m,n\nx,y\n", "none.csv:2: instruction: expected a value, but the field is missing; csv is a table"),
    "bytes.csv": (b"instruction,m\nx,\xff\n", "codec can't decode byte 0xff"),
    "deep.json": ("[" * 5000, "deep.json: not JSON"),
    "deep.jsonl": ('{"a":' * 5000, "deep.jsonl:1: not JSON"),
    "digits.jsonl": ("1" * 5000, "digits.jsonl:1: not JSON"),
    "number.jsonl": ("1\n", "number.jsonl:1: expected an object, got an integer"),
    "cut.csv.gz": (b"\x1f\x8b\x08\x00\x00\x00", "cut.csv.gz: cut off"),
    "flipped.csv.gz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff\xff", "flipped.csv.gz: not compressed data"),
    "no.parquet": ("PAR1 nothing", "no.parquet: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_of_a_form_is_told_by_its_line(blendkit, tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BlendkitError) as fault:
        list(read_form("csv", rows(str(path))))
    assert fault.value.exit_code == 65 and message in str(fault.value)
    if name in ("cells.csv", "deep.jsonl"):
        done = blendkit("data", "convert", "--from", "csv", path)
        assert done.returncode == 65 and message in done.stderr and done.stderr.count("\n") == 1


def test_long_cells_and_nothing_lost_in_a_table(blendkit, tmp_path):
    path = tmp_path / "t.csv"
    records = [{"id": "1", "instruction": "x\r\ny", "candidates": [{"model": "m", "text": "\x00a\rb" * 100_000}, {"model": "n", "text": '"'}]}]
    done = blendkit("data", "convert", "--to", "csv", "-o", path, stdin=json.dumps(records[0]))
    assert done.returncode == 0, done.stderr
    back = json.loads(blendkit("data", "convert", "--from", "csv", path).stdout)
    assert back["candidates"] == records[0]["candidates"] and back["instruction"] == "x\r\ny"
    record = {"id": "1", "instruction": "x", "candidates": [{"model": model, "text": "t"} for model in ("m", "instruction")]}
    done = blendkit("data", "convert", "--to", "csv", stdin=json.dumps(record))
    assert done.returncode == 65 and "candidates[1].model: expected a name that is a column of its own" in done.stderr


def test_values_that_json_has_none_of(tmp_path):
    """Parquet has bytes and decimals."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["x", "y"], "output": ["t", "u"], "generator": ["m", "m"], "dataset": [b"\xff", b"a"]}), path)
    with pytest.raises(BlendkitError, match="cannot be written as JSON") as fault:
        list(read_form("alpacaeval", rows(str(path))))
    assert fault.value.exit_code == 65
