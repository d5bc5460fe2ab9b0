"""Writes docs/cli.md, docs/scorers.md and docs/record.schema.json from the code: `python -m blendkit.documentation`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

from blendkit.cli import COMMANDS, load
from blendkit.records import json_schema
from blendkit.scorers import scorer_rows

DOCS = Path(__file__).parent.parent / "docs"


def help_text(*command: str) -> str:
    """What `blendkit COMMAND --help` prints at 100 columns."""
    # GITHUB_ACTIONS and FORCE_COLOR make rich think of a terminal, and so would colour the page.
    plain = {key: value for key, value in os.environ.items() if key not in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS")}
    environment = {**plain, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-m", "blendkit", *command, "--help"], env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()).strip("\n")


def pages() -> list[str]:
    """Every command that does something, those within a group by their whole name."""
    found = []
    for name in COMMANDS:
        commands = getattr(load(name), "commands", None)
        found += [f"{name} {inner}" for inner in commands] if commands else [name]
    return found


def cli_page() -> str:
    """All commands and their help, as Markdown."""
    parts = ["# Commands\n\nMade from `--help` by `make docs`; do not edit.\n", f"```\n{help_text()}\n```\n"]
    for name in pages():
        parts.append(f"## blendkit {name}\n\n```\n{help_text(*name.split())}\n```\n")
    return "\n".join(parts)


SCORERS_HEAD = """# Scorers

Made from the registry by `make docs`; do not edit.

`blendkit score --metric [LABEL=]NAME[:MODEL]`, several in one pass. A model is a hub id or a directory. Every value is finite:
what an empty candidate or reference gets is in the table, a text longer than the encoder is cut. `rank --by score:NAME` ranks
by any of them, in the direction that is better. Each score's signature goes into the record (`signatures`), the manifest and
under `evaluate`'s tables.

"""

REWARDS = """
## Reward models

`reward:MODEL` takes a sequence classifier of transformers (`…ForSequenceClassification`), an encoder or a causal LM, such as
Skywork-Reward-V2. The conversation with the candidate as its last turn is written by the model's chat template, default system
prompt included; of several templates the one called `default` is taken, and a model without one reads the pair (x, candidate). A
system message moves into the user's turn where the template has no system role. A candidate's `reasoning` is not read. The score is
the head's logit at the last token that is no padding token, as in transformers for one row at a time; it does not depend on the batch.

- **Several labels**: one is named, by its name or index: `--metric helpful=reward:MODEL#helpfulness --metric long=reward:MODEL#4`. The
  score is that label's logit, before any softmax or sigmoid, and the signature names the label. A classifier of two classes needs a
  label, too. Labels of one model are one pass.
- **Nemotron's reward models** (causal LMs, whose reward is the logit of token 0 behind the answer): `reward:MODEL#0`; any other token
  by its id or text.
- **Dates**: a template that asks for the date (Llama 3.2's) is told 26 July 2024, the one that it writes where there is no clock, so
  that a score is the same tomorrow. `perplexity` does the same.
- **Too long** conversations are cut at the front, a start of text stays; how many were cut is told at the end and in the manifest
  (`truncation`). Pairs of texts lose the end of the longer text.
- Refused, with a line that says why: models with code of their own (ArmoRM, QRM, InternLM2: nothing runs it here), heads that judge
  each token (process reward models), adapters, and models that write text, for which there is `judge`.
"""


def scorers_page() -> str:
    """One row a scorer, as Markdown."""
    rows = [{key: f"`{value}`" if key == "metric" else value.replace("|", "\\|") for key, value in row.items()} for row in scorer_rows(own=True)]
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return SCORERS_HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + REWARDS


def schema_page() -> bytes:
    """The record's JSON Schema."""
    return orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(cli_page())
    (DOCS / "scorers.md").write_text(scorers_page())
    (DOCS / "record.schema.json").write_bytes(schema_page())
