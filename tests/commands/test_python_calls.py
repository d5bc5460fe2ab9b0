"""Calls from Python: wrong ones fail at once and in one line, and right ones leave the caller's records and standard error alone."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import EXAMPLES, ROOT, examples
from transformers.utils import logging

import blendkit as library
from blendkit.errors import BlendkitError

ONE = {"id": "a", "instruction": "x", "candidates": [{"model": "m", "text": "y"}]}


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("generate", {"records": ONE}, "records: expected records (a list or another iterable of dicts), got a dict; a list of one is [record]"),
        ("evaluate", {"records": "records.jsonl"}, "records: expected records (a list or another iterable of dicts), got a str"),
        ("rank", {"records": None}, "records: expected records (a list or another iterable of dicts), got None"),
        (
            "train_ranker",
            {"records": ONE, "output": "o"},
            "records: expected records (a list or another iterable of dicts), got a dict; a list of one is [record]",
        ),
        ("train_ranker", {"output": "o", "evaluation": 3}, "evaluation: expected records (a list or another iterable of dicts) or None, got an int"),
        ("generate", {"models": "x"}, "models: expected a list of strings or paths or None, got a str; a list of one is [text]"),
        ("generate", {"models": 7}, "models: expected a list of strings or paths or None, got an int"),
        ("generate", {"models": {"a": "b"}}, "models: expected a list of strings or paths or None, got a dict"),
        ("generate", {"models": ["a", None]}, "models[1]: expected a string or a path, got None"),
        ("generate", {"system": 3}, "system: expected a string or None, got an int"),
        ("generate", {"temperature": "0.7"}, "temperature: expected a number or None, got a str"),
        ("generate", {"max_new_tokens": 1.5}, "max_new_tokens: expected a whole number or None, got a float"),
        ("generate", {"num_return": True}, "num_return: expected a whole number, got a bool"),
        ("generate", {"logprobs": 1}, "logprobs: expected True or False, got an int"),
        ("generate", {"extra_body": "{}"}, "extra_body: expected a dict or None, got a str"),
        ("generate", {"extra_header": {"Authorization": "Bearer secret"}}, "extra_header: expected a string, a list of strings or None, got a dict"),
        ("score", {"metrics": None}, "metrics: expected a list of strings, got None"),
        ("score", {"metrics": "bleu"}, "metrics: expected a list of strings, got a str; a list of one is [text]"),
        ("evaluate", {"checks": "a < 1"}, "checks: expected a list of strings or None, got a str; a list of one is [text]"),
        ("pair", {"model": ["embedded"]}, "model: expected a string or a path, got a list"),
        ("fuse", {"model": b"x"}, "model: expected a string, a path or a list of them, got a bytes"),
        ("judge", {"max_unparsed": None}, "max_unparsed: expected a number, got None"),
        ("train_fuser", {"output": 3, "backbone": "b"}, "output: expected a string or a path, got an int"),
    ],
)
def test_a_wrong_type_fails_at_the_call(function, arguments, said):
    with pytest.raises(library.ArgumentError) as error:
        getattr(library, function)(**{"records": [ONE], **({"metrics": ["bleu"]} if function == "score" else {}), **arguments})
    assert str(error.value) == f"{function}() {said}" and isinstance(error.value, TypeError)


def test_what_is_missing_or_too_much_is_told():
    for call, said in ((library.score, "missing a required argument: 'metrics'"), (lambda x: library.score(x, ["bleu"], 5), "too many positional arguments")):
        with pytest.raises(library.ArgumentError, match=rf"^score\(\): {said}$"):
            call([ONE])


def test_a_record_that_is_none_is_told_with_its_place(tiny_encoder):
    for wrong, kind in (("text", "a str"), (["x"], "a list"), (None, "None")):
        for function, arguments in ((library.rank, {"by": "judge:j"}), (library.evaluate, {}), (library.train_ranker, {"output": "o", "labels": ["q"]})):
            with pytest.raises(library.RecordError, match=rf"^records\[1\]: expected a dict, got {kind}$"):
                function([ONE, wrong], **arguments)
    with pytest.raises(library.DataError, match=r"^records\[1\]: expected a dict, got an int$"):
        library.train_ranker(iter([ONE, 3]), output="o", labels=["q"], backbone=str(tiny_encoder))
    ranked = library.rank(iter([ONE, {**ONE, "candidates": 3}]), "oracle:q")
    with pytest.raises(library.RecordError, match=r"^candidates\[0\]\.q: "):
        next(ranked)
    with pytest.raises(library.RecordError, match=r"^records\[1\]: candidates: expected"):
        list(library.score(iter([ONE, {**ONE, "candidates": 3}]), ["length"]))
    with pytest.raises(library.RecordError, match=r"^records\[1\]: expected a dict, got an int$"):
        list(library.score(iter([ONE, 3]), ["length"]))


def test_what_means_the_same_will_do(tiny_ranker):
    records = examples(2)
    expected = list(library.rank(library.pair(records, str(tiny_ranker), device="cpu"), top=1))
    assert list(library.rank(library.pair(tuple(records), Path(tiny_ranker), device="cpu"), top=np.int64(1))) == expected
    texts = [{**record, "candidates": tuple(record["candidates"])} for record in records]
    one, several = (list(library.score(records, metrics)) for metrics in (["length"], ("length",)))
    assert one == several == list(library.score(texts, ["length"]))
    with pytest.raises(library.UsageError, match="--decoding gready"):
        next(library.generate(records, ["openai:x"], base_url="http://127.0.0.1:9/v1", decoding="gready"))
    with pytest.raises(library.UsageError, match="window: expected at least 1, got 0"):
        next(library.score(records, ["length"], window=0))


def test_one_header_is_a_list_of_one(serve):
    server = serve()
    list(library.generate([{"id": "a", "instruction": "x"}], ["openai:x"], base_url=server.url, extra_header="X-Team: a"))
    assert "X-Team: a" in server.headers[-1]


def test_what_one_should_know_is_a_warning(tiny_ranker):
    long = {**ONE, "instruction": "a " * 3000, "candidates": [{"model": "m", "text": "y"}, {"model": "n", "text": "z"}]}
    with pytest.warns(library.BlendkitWarning, match="^cut to the model's length: 1 of 1 x") as found:
        list(library.pair([long], tiny_ranker, device="cpu"))
    # Others' tests may have left something that is collected meanwhile.
    assert [warning.filename for warning in found if warning.category is library.BlendkitWarning] == [__file__]
    with pytest.warns(library.BlendkitWarning, match="no judge's verdicts in the stream") as found:
        library.evaluate(library.score([ONE], ["length"]))
    assert {warning.filename for warning in found if warning.category is library.BlendkitWarning} == {__file__}


def test_the_documents_examples_run_print_nothing_and_change_nothing(tmp_path, monkeypatch, capfd, tiny_chat, tiny_encoder, tiny_t5):
    code = "\n".join(re.findall(r"```python\n((?!\w+\().*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL))
    assert code.count("blendkit.") == 12
    # Small models and short runs stand for those that the page names.
    for long, short in (
        ("docs/examples/candidates.jsonl", "candidates.jsonl"), ("smollm2", str(tiny_chat)), ("microsoft/deberta-v3-base", str(tiny_encoder)),
        ("google/flan-t5-base", str(tiny_t5)), ("steps=1000", "steps=2"), ("max_new_tokens=64", "max_new_tokens=4"),
    ):  # fmt: skip
        assert code.count(long) == (2 if long == "steps=1000" else 1)
        code = code.replace(long, short)
    # What a stage is given is the same behind it.
    names = ("records", "prompts", "scored", "compared", "ranked", "fused", "judged")
    for name in names:
        code = re.sub(rf"^({name} = .*)$", rf"\1\nkept['{name}'] = copy.deepcopy({name})", code, flags=re.MULTILINE)
    (tmp_path / "candidates.jsonl").write_text("".join((EXAMPLES / "candidates.jsonl").read_text().splitlines(keepends=True)[:2]))
    monkeypatch.chdir(tmp_path)
    scope: dict = {"copy": copy, "kept": {}}
    # Another test may have told the libraries to be silent; here they are as they come.
    silent, level = not logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.enable_progress_bar()
    logging.set_verbosity_warning()
    capfd.readouterr()
    try:
        exec(code, scope)
        assert logging.is_progress_bar_enabled() and logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(level)
        if silent:
            logging.disable_progress_bar()
    out, err = capfd.readouterr()
    assert err == "" and len(out.splitlines()) >= 8
    assert set(scope["kept"]) == set(names) and all(scope[name] == kept for name, kept in scope["kept"].items())
    assert (tmp_path / "my-ranker" / "config.json").exists() and (tmp_path / "my-fuser" / "config.json").exists()


def test_the_callers_records_are_not_held_in_what_comes_back():
    record = copy.deepcopy(ONE)
    (scored,) = library.score([record], ["length"])
    scored["candidates"][0]["text"] = "another"
    assert record == ONE


def test_all_errors_are_of_one_class_and_told():
    page = (ROOT / "docs" / "python.md").read_text()
    raised = set(re.findall(r"^- `(\w+(?:Error|Failed|Unparsed|Memory))`", page, re.MULTILINE))
    assert raised and all(issubclass(getattr(library, name), BlendkitError) and f"| `{name}` |" in page for name in raised)


@pytest.mark.slow  # mypy reads the whole package
def test_types_are_part_of_the_package(tmp_path):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["blendkit"]} and (ROOT / "blendkit" / "py.typed").read_bytes() == b""
    (tmp_path / "user.py").write_text("""
from pathlib import Path
from typing import Any, assert_type

import blendkit

records: list[dict[str, Any]] = [{"instruction": "x"}]
found = list(blendkit.generate(records, models=["a", Path("b")], max_new_tokens=8, temperature=0.7, stop="end"))
assert_type(found, list[dict[str, Any]])
assert_type(blendkit.evaluate(blendkit.judge(blendkit.fuse(blendkit.rank(blendkit.pair(found))))), list[dict[str, Any]])
blendkit.train_ranker(records, Path("out"), labels=["q"])
try:
    blendkit.generate(records, models=3)  # type: ignore[arg-type]
    blendkit.generate(records, max_tokens=3)  # type: ignore[call-arg]
    blendkit.generate("records.jsonl")  # type: ignore[arg-type]
except blendkit.BlendkitError as error:
    assert_type(error.exit_code, int)
""")
    # What the libraries' own types are is no part of ours, and takes long to read.
    config = "[mypy]\nstrict = true\n[mypy-torch.*,transformers.*,numpy.*,datasets.*,typer.*,rich.*]\nfollow_imports = skip\nignore_missing_imports = true\n"
    (tmp_path / "mypy.ini").write_text(config)
    checked = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", "user.py"]
    done = subprocess.run(checked, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "Success: no issues found in 1 source file", done.stdout
