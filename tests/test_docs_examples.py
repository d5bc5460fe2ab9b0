"""What the documents show can be done: every command of README.md and docs/ is one that there is, and runs where it can run here.

A block of commands runs, line by line, in a folder that has the files it reads. A comment before it says why it does not
(`<!-- not run: REASON -->`), or which of its lines do (`<!-- run lines 1, 3: WHY NOT THE OTHERS -->`).
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
from conftest import ROOT, examples, lines
from made_up import made_up

from blendkit.cli import COMMANDS, load

PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "cli.md")]
COMMAND = re.compile(rf"\bblendkit (?:{'|'.join(COMMANDS)})\b(?!:)")
COMMENT = re.compile(r"<!-- (?:not run|run lines? ([\d, ]+)): (.+) -->")


@dataclass
class Block:
    """An indented block of a page that has commands; `run` are the numbers of the lines that run, None for all."""

    name: str
    text: str
    run: list[int] | None

    @property
    def commands(self) -> list[str]:
        """Its command lines, each whole, without comments."""
        joined = re.sub(r"\\\n\s*|(?<=\|)\n\s*", " ", self.text)
        found = (re.sub(r"(^|\s+)# .*|\s+#$", "", line).strip() for line in joined.splitlines())
        return [line for line in found if line]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for match in re.finditer(r"(?m)(?:^ *(<!-- .* -->)\n\n)?((?:^(?: {4}|\t).*\n|^\n(?= {4}))+)", page.read_text()):
            text = re.sub(r"(?m)^ {4}", "", match[2]).strip("\n")
            if not COMMAND.search(text) or not text.strip():
                continue
            said = COMMENT.fullmatch(match[1]) if match[1] else None
            run = None if said is None else [int(number) for number in said[1].split(",")] if said[1] else []
            found.append(Block(f"{page.name}: {text.splitlines()[0].strip()[:60]}", text, run))
    return found


BLOCKS = blocks()


def stages(command: str) -> list[tuple[list[str], dict[str, str]]]:
    """(arguments, redirections) of each command of a pipe; no quotes are left."""
    found: list[tuple[list[str], dict[str, str]]] = []
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected: dict[str, str] = {}
    tokens = list(lexer)
    for place, token in enumerate(tokens):
        if token in ("|", ";", "&&"):
            found, words, redirected = [*found, (words, redirected)], [], {}
        elif token in ("<", ">", ">>"):
            redirected[token] = tokens[place + 1]
        elif not place or tokens[place - 1] not in ("<", ">", ">>"):
            words.append(token)
    return [*found, (words, redirected)]


def spoken(text: str) -> list[list[str]]:
    """The arguments of each blendkit command in a text, up to where a shell's own signs end it; what a shell or make puts in is `1`."""
    text = re.sub(r"\$\$?\{\{?.*?\}\}?|\$\$?\([^)]*\)|\$[<@*\w]+", "1", text)
    return [shlex.split(match[0])[1:] for match in re.finditer(COMMAND.pattern + r"""(?:'[^'\n]*'|"[^"\n]*"|[^|<>;&\n`'")])*""", text)]


def parse(arguments: list[str]) -> None:
    """Raises what typer says of flags and values that there are not; nothing runs."""
    command = load(arguments[0])
    rest = arguments[1:]
    while hasattr(command, "commands") and rest:
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(arguments[0], rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, called):
    """The files that the examples read."""
    folder = tmp_path_factory.mktemp("examples")
    judged = made_up(8)
    for number, record in enumerate(judged):
        names = {"a": "vicuna", "b": "alpaca", "c": "c", "d": "d"}
        for candidate in record["candidates"]:
            candidate["model"] = names[candidate["model"]]
        order = [1, 2, 3, 4] if number % 2 else [2, 1, 3, 4]
        verdicts = [{"a": a, "b": b, "verdict": "A" if order[a] < order[b] else "B", "shown": [a, b]} for a in range(4) for b in range(a + 1, 4)]
        record["verdicts"] = {"j": [*verdicts, {"a": 0, "b": 4, "verdict": "B"}]}
        for candidate in record["candidates"]:
            candidate["usage"] = {"prompt_tokens": 50, "completion_tokens": 10 * number + len(candidate["text"])}
        record["candidates"].append({"model": "blend", "text": "x", "sources": [0, 1], "scores": {"bleu": 25.0, "perplexity": 4.0}})
        record |= {"ranks": {"pairrm": order}, "cmp_results": None}
    streams = {"judged": judged, "records": examples(2), "test": examples(2), "candidates": examples(4)}
    scored = examples(2)
    for record in scored:
        for number, candidate in enumerate(record["candidates"]):
            candidate["scores"] = {"bertscore": number / 10}
    streams |= {"scored": scored, "ranked": [record | {"top": [0, 1, 2]} for record in examples(2)]}
    streams["fused"] = examples(2)
    for record in streams["fused"]:
        record["candidates"].append({"model": "consensus", "text": "x", "sources": [0, 1]})
    streams["pairs"] = [{"id": "p", "prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]}]
    streams["pairs"][0]["rejected"] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}]
    for name, records in streams.items():
        (folder / f"{name}.jsonl").write_text(lines(records))
    for name in ("vicuna", "alpaca"):
        (folder / f"{name}.json").write_text(json.dumps([{"instruction": "i", "output": name, "generator": name}]))
    for part in range(2):
        code, out, err = called("rank", "--by", "score:bertscore", "--shard", f"{part}/2", stdin=lines(scored))
        assert code == 0, err
        (folder / f"part-{part}.jsonl").write_text(out)
    # What the whole of `candidates.jsonl` is for `merge`.
    (folder / "candidates.jsonl").write_text(lines(scored))
    (folder / "main.jsonl").write_text(called("evaluate", "-q", stdin=lines(judged))[1])
    (folder / "prices.toml").write_text("".join(f"[{name}]\nprice_in = 1\nprice_out = 2\n" for name in ("vicuna", "alpaca", "c", "d")))
    # Forms that people filled in, who are of the judge's opinion.
    said = {(record["id"], row["a"], row["b"]): row["verdict"] for record in judged for row in record["verdicts"]["j"]}
    assert called("evaluate", "-q", "--label-next", folder / "filled.csv", stdin=lines(judged))[0] == 0
    with (folder / "filled.csv").open(newline="") as file:
        heading, *forms = csv.reader(file)
    for form in forms:
        a, b = int(form[1]), int(form[2])
        form[heading.index("verdict")] = said[form[0], a, b] if a < b else {"A": "B", "B": "A"}[said[form[0], b, a]]
    with (folder / "filled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([heading, *forms])
    return folder


def run(command: str, folder, called, stdin: str = "") -> None:
    """Runs a pipe in the folder, each command in this process."""
    for words, redirected in stages(command):
        if words and "=" in words[0]:
            words = words[1:]
        assert words[0] == "blendkit", words
        if "<" in redirected:
            stdin = (folder / redirected["<"]).read_text()
        arguments = [file for word in words[1:] for file in (sorted(glob.glob(word)) or [word] if "*" in word else [word])]
        if "--expect" in arguments:
            arguments[arguments.index("--expect") + 1] = str(stdin.count("\n"))
        code, stdin, err = called(*arguments, stdin=stdin)
        assert code == 0, f"{command}: {err}"
        for sign in (">", ">>"):
            if sign in redirected and not redirected[sign].startswith("$"):
                (folder / f"made-{redirected[sign]}").write_text(stdin)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run != [] and not block.text.startswith("$ ")], ids=lambda block: block.name)
def test_an_example_runs(block, folder, called, monkeypatch):
    if "--report" in block.text:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    chosen = [line for number, line in enumerate(block.commands, 1) if block.run is None or number in block.run]
    assert chosen, "no such lines"
    for command in chosen:
        if not command.startswith("set -"):
            run(command, folder, called)


def test_a_session_that_is_shown_is_what_happens(called):
    (block,) = [block for block in BLOCKS if block.text.startswith("$ blendkit pair")]
    records = [{"id": str(number), "instruction": "i", "candidates": [{"model": "m", "text": "t"}] * 2} for number in range(17)]
    records[16]["candidates"] = [*records[16]["candidates"], {"model": "m", "text": None}]
    for record in records[:16]:
        del record["candidates"][1:]
    code, _, err = called("pair", stdin=lines(records))
    assert f"$ blendkit pair < candidates.jsonl\n{err}$ echo $?\n{code}" == block.text


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_each_command_that_is_shown_is_one_that_there_is(block):
    for command in block.commands:
        for arguments in spoken(command):
            if "…" not in arguments:
                parse(arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_commands_help_is_one_that_there_is(name):
    command = load(name)
    kinds = command.commands.values() if hasattr(command, "commands") else [command]
    for kind in kinds:
        example = re.search(r"Example: (.*)", kind.help, re.DOTALL)
        assert example, name
        for arguments in spoken(" ".join(example[1].split())):
            parse(arguments)


def test_a_pipe_that_ends_in_tables_does_not_hide_what_failed_before_it():
    ending = [block for block in BLOCKS if re.search(r"\| *(\\\n)?\s*blendkit evaluate", block.text)]
    assert len(ending) >= 4
    for block in ending:
        assert "pipefail" in block.text or "shell: bash" in block.text, block.name
        assert "--expect" in block.text, block.name


def recipes() -> dict[str, str]:
    """What docs/scaling.md gives a scheduler to run, by what runs it."""
    found = {}
    for block in BLOCKS:
        kind = "make" if ".SHELLFLAGS" in block.text else "bash" if block.text.startswith("#!/bin/bash") else "actions" if "runs-on" in block.text else ""
        if kind:
            found[f"{kind} {sum(name.startswith(kind) for name in found)}"] = block.text
    return found


def test_recipes_are_what_a_shell_and_make_can_read(tmp_path):
    yaml = pytest.importorskip("yaml")
    found = recipes()
    assert list(found) == ["bash 0", "bash 1", "make 0", "actions 0"]
    actions = yaml.safe_load(found["actions 0"])
    assert actions["defaults"]["run"]["shell"] == "bash"
    scripts = [step["run"] for job in actions["jobs"].values() for step in job["steps"] if "run" in step]
    for text in (*scripts, found["bash 0"], found["bash 1"]):
        assert subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True).returncode == 0, text
    assert all("set -euo pipefail" in found[name] for name in ("bash 0", "bash 1"))
    if shutil.which("make"):
        (tmp_path / "Makefile").write_text(found["make 0"] + "\n")
        (tmp_path / "candidates.jsonl").write_text("")
        done = subprocess.run(["make", "-n", "tables.jsonl"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count("blendkit pair --shard") == 4, done.stderr


@pytest.mark.slow
def test_the_makefile_and_the_last_job_run(tmp_path):
    """As they are, but on the CPU; a record that is missing ends them with an error."""
    if not shutil.which("make"):
        pytest.skip("no make")
    found = recipes()
    shim = tmp_path / "bin" / "blendkit"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m blendkit "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    (tmp_path / "Makefile").write_text(found["make 0"].replace(" --device cuda:$*", "") + "\n")
    (tmp_path / "candidates.jsonl").write_text(lines(examples(6)))
    done = subprocess.run(["make", "tables.jsonl"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "tables.jsonl").stat().st_size, done.stderr
    job = ["bash", "-c", found["bash 1"]]
    assert subprocess.run(job, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
    (tmp_path / "part-0.jsonl").write_text("")
    assert subprocess.run(job, cwd=tmp_path, env=environment, capture_output=True).returncode == 65
