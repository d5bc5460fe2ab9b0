"""Writes docs/cli.md, docs/python.md, docs/scorers.md and docs/record.schema.json from the code: `python -m blendkit.documentation`."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

import blendkit
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


PYTHON_HEAD = """# Python

Made from signatures and docstrings by `make docs`; do not edit.

Every command is a function. Its arguments are the command's flags, with the same names and defaults: `--max-new-tokens 8` is
`max_new_tokens=8`. A flag that is given once for each is a list in the plural, `models`, `metrics` and `labels` (one text will do for a
list of one), and `--assert` is `checks`. What the shell alone needs is left out: files of records, resuming, progress, several processes.

```python
import json
import blendkit

records = [json.loads(line) for line in open("docs/examples/candidates.jsonl")]
best = list(blendkit.rank(blendkit.pair(records), top=1))
```

- **Records** are dicts, in a list or any other iterable ([their form](record.schema.json)). Yours are not changed: what comes back are new
  ones. They come one by one, in order, as soon as a window of them is done; the models load when you ask for the first.
- **Wrong arguments** fail at the call, with one line: an unknown name (and the nearest one), a value of another type, something in a list
  of records that is no dict, as `records[3]: expected a dict, got a str`. Messages spell arguments as flags where the shell shares them.
- **Errors** are of blendkit's own classes, [all under one](#errors). Keys never stand in them.
- **Nothing is printed.** What you should know of a run that went well, such as texts that were cut, is a `blendkit.BlendkitWarning`
  of Python's `warnings` when it ends. For a progress bar, wrap the iterator: `tqdm(blendkit.pair(records), total=len(records))`.
- **Types** are part of the package (`py.typed`). `Records` is `Iterable[dict[str, Any]]`, `Texts` is `str | Sequence[str]`, `File` is
  `str | os.PathLike[str]`, and `Files` one or several of these, all in `blendkit.arguments`.
- **Keys** come from the environment, as in the shell ([security](security.md)).

"""


def python_page() -> str:
    """All public functions and errors, as Markdown."""
    exported = [(name, getattr(blendkit, name)) for name in blendkit.__all__]
    order = ["generate", "score", "pair", "rank", "fuse", "judge", "evaluate", "train_ranker", "train_fuser"]
    functions = sorted((one for one in exported if inspect.isfunction(one[1])), key=lambda one: order.index(one[0]))
    errors = [error for _, error in exported if isinstance(error, type)]
    rows = [f"| `{error.__name__}` | {_bases(error)} | {(inspect.getdoc(error) or '').partition(chr(10))[0]} |\n" for error in errors]
    head = "## Errors\n\n`from blendkit import …`; the numbers are the shell's exit codes.\n\n| class | is a | when |\n| --- | --- | --- |\n"
    return PYTHON_HEAD + "\n".join(_function(*one) for one in functions) + "\n" + head + "".join(rows)


def _bases(error: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in error.__bases__)


def _function(name: str, function: Callable[..., Any]) -> str:
    """A function's signature and docstring; lists of arguments and errors become lists."""
    signature = inspect.signature(function)
    lines = [_parameter(parameter) for parameter in signature.parameters.values()]
    star = next(place for place, parameter in enumerate(signature.parameters.values()) if parameter.kind is parameter.KEYWORD_ONLY)
    lines.insert(star, "*")
    shape = "".join(f"    {line},\n" for line in lines)
    about, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    arguments, _, rest = rest.partition("\n\nRaises:\n")
    raised, _, example = rest.partition("\n\nExample:\n")
    code = "\n".join(line[4:] for line in example.splitlines())
    parts = [f"## {name}", f"```python\n{name}(\n{shape}) -> {signature.return_annotation}\n```", about, _list(arguments), f"Raises:\n\n{_list(raised)}"]
    return "\n\n".join([*parts, f"```python\n{code}\n```"]) + "\n"


def _parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}".replace("'", '"')


def _list(text: str) -> str:
    """`name: what it is`, a line or more each, as a Markdown list."""
    return re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE).replace("\n        ", "\n  ")


SCORERS_HEAD = """# Scorers

Made from the registry by `make docs`; do not edit.

`blendkit score --metric [NAME=]METRIC[:MODEL]`, several in one pass. A model is a hub id or a directory; a metric of words takes
a tokenizer in its place, [NAME=]METRIC[:TOKENIZER] ([Languages](#languages)). Every value is finite, but for
the null of a judge that gave no grade; what an empty candidate or reference gets is in the table, a text longer than the encoder is
cut. `rank --by score:NAME` ranks by any of them, in the direction that is better. Each score's signature goes into the record (`signatures`), the manifest and
under `evaluate`'s tables.

"""

LANGUAGES = """
## Languages

BLEU, ROUGE, token F1 and exact match compare words, and their usual tokenizers know words of Latin script between spaces. Another
tokenizer is named behind the metric (`rouge1:lang`, `bleu:zh`, `mbr:rouge2:lang`), or for all metrics that name none by `--tokenize`:

    blendkit score --metric bleu --metric rougeL --metric token-f1 --tokenize auto < records.jsonl

| tokenizer | words are |
| --- | --- |
| `lang` | by Unicode's rules (UAX 29) in any language; of Chinese, Japanese, Thai, Lao, Khmer and Burmese each character, with its marks. Case and the form of Unicode do not count, but for BLEU; nothing is stemmed |
| `auto` | by the script of the record's reference. ROUGE, token F1, exact match: their own where most words are Latin, else `lang`. BLEU: `zh` for Chinese, `char` for Japanese, Thai, Lao, Khmer and Burmese, else `13a`. The record's signature names the one that was taken |
| `zh`, `char`, `13a`, `intl` | those of sacrebleu, whose BLEU is that of `sacrebleu --tokenize`. ROUGE, token F1 and exact match leave out case and punctuation |
| `ja-mecab`, `ko-mecab` | words and morphemes of Japanese and Korean, as sacrebleu has them; `pip install 'blendkit[languages]'` |
| `flores200` | pieces of a SentencePiece model for 200 languages (spBLEU), as sacrebleu has it: the same extra, and a file that the error names |
| `rouge`, `squad` | ROUGE's own, which knows a to z and 0 to 9; SQuAD's own, between spaces |

What each metric does with a language that writes no spaces between words, such as Chinese, Japanese or Thai:

| metric | as it is | name instead |
| --- | --- | --- |
| `bleu` | a sentence is one word: 100 for the same sentence, else near 0 | `bleu:zh`, `bleu:ja-mecab`, `bleu:flores200`, `bleu:auto` |
| `chrf` | works: it compares characters, and takes no tokenizer | |
| `rouge1`, `rouge2`, `rougeL`, `rougeLsum` | only a to z and 0 to 9 are left, so that equal texts of other scripts score 0; letters with marks are lost in any language | `rouge1:lang` |
| `exact-match` | works: the same text | `exact-match:lang`, for which punctuation does not count |
| `token-f1` | a sentence is one word: 1 for the same sentence, else near 0 | `token-f1:lang` |
| `bertscore`, `bertscore-precision`, `bertscore-recall`, `cosine` | as the encoder does; the embedded one is English, and hardly tells two sentences apart | `bertscore:xlm-roberta-large`; `cosine:` a multilingual sentence encoder |
| `bartscore`, `bartscore-precision`, `bartscore-recall`, `bartscore-source`, `bleurt`, `mlm`, `mlm-norm`, `reward`, `perplexity`, `simcls`, `summareranker` | as the model does: the defaults are English | a multilingual model, such as `bleurt:lucadiliello/BLEURT-20` or `mlm:xlm-roberta-large` |
| `mbr` | as its metric does | `mbr:rouge2:lang`, `mbr:chrf` |
| `length` | characters: a Chinese text has fewer than an English one that says the same | |
| `random` | works | |
| `judge` | as the model does | |

Where ROUGE's own tokenizer leaves nothing of a text, or less than half of its letters, the record's signature says `lost:letters`, and
a line at the end how many texts there were and in which record the first. Where more than half of a text's tokens are unknown to
the encoder of `bertscore` or `cosine`, to the ranker of `pair`, to the embedded judge or to `fuse -m consensus`, a line at the end
says so. Both counts are in the manifest (`unread`).
"""  # noqa: E501

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
  (`truncation`), as for every metric that reads texts with a model. Pairs of texts lose the end of the longer text.
- Refused, with a line that says why: models with code of their own (ArmoRM, QRM, InternLM2: nothing runs it here), heads that judge
  each token (process reward models), adapters, and models that write text, for which there is `judge`.
"""


def scorers_page() -> str:
    """One row a scorer, as Markdown."""
    rows = [{key: f"`{value}`" if key == "metric" else value.replace("|", "\\|") for key, value in row.items()} for row in scorer_rows(own=True)]
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return SCORERS_HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + LANGUAGES + REWARDS


def schema_page() -> bytes:
    """The record's JSON Schema."""
    return orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(cli_page())
    (DOCS / "python.md").write_text(python_page())
    (DOCS / "scorers.md").write_text(scorers_page())
    (DOCS / "record.schema.json").write_bytes(schema_page())
