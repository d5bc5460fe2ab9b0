"""Names and messages of others on a terminal, in a sheet and on a page: they are shown, and nothing obeys them."""

from __future__ import annotations

import ast
import copy
import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from conftest import ROOT, lines, parsed

from blendkit.evaluation.formats import markdown_text
from blendkit.safe_csv import csv_text, defused
from blendkit.terminal_text import LONGEST, count_of, one_line, shown, standing

# What no byte of a terminal's stream may be: controls but the line's end, C1, separators, and what turns the direction of writing.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
EVIL = [
    "[/]",
    "[red]x",
    "[link=https://evil.example]x[/link]",
    ":skull:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;https://evil.example\x1b\\x",
    "\x9b2J",
    "\x85::error::x",
    "a\n::error::x",
    "a\r::warning::x",
    "\u202etxt.exe",
    "\u2066\u200f\u061c",
    "\u2028\u2029",
    "\x00\x7f\b",
    "\\",
]


def evil_records(count: int = 3, names: list[str] = EVIL) -> list[dict]:
    """Records whose every name is one of the names: models, scores, rankers, judges, sources, signatures, ids."""
    records = []
    for number in range(count):
        candidates = [{"model": name, "text": "t" * place, "scores": dict.fromkeys(names[:3], float(place + number))} for place, name in enumerate(names)]
        ranks = {name: list(range(1, len(names) + 1)) for name in names}
        verdicts = {names[0]: [{"a": 0, "b": place, "verdict": "A", "shown": [0, place]} for place in range(1, len(names))]}
        record = {"id": f"{names[-1]}{number}", "source": names[number % len(names)], "instruction": "x", "candidates": candidates, "ranks": ranks}
        records.append({**record, "verdicts": verdicts, "signatures": {name: name for name in names}, "human": "A"})
    return records


def harmless(text: str) -> bool:
    return not OBEYED.search(text) and not re.search(r"^(::|##\[)", text, re.MULTILINE)


def test_one_function_shows_what_a_terminal_would_obey():
    assert shown("a\x1b[31m\u202e\x9b\x07\n\u2028é😀") == r"a\x1b[31m\u202e\x9b\x07\n\u2028é😀"
    assert standing("a\nb\x1b\n ::error::\r") == "a\nb\\x1b\n\\x3a:error::\\r"
    assert shown("\ud800") == r"\ud800"
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 1_000_000)) < 2 * LONGEST
    for code in range(0x3000):
        assert harmless(shown(chr(code))), hex(code)


@pytest.mark.parametrize("more", [[], ["--ratings", "--intervals"], ["--baseline", "[/]"], ["--length-controlled", "[/]"], ["--format", "table"]])
def test_names_in_every_table(blendkit, tmp_path, more):
    records = evil_records()
    done = blendkit("evaluate", "--manifests", _manifest(tmp_path), *more, stdin=lines(records))
    assert done.returncode == 0, done.stderr
    told = done.stdout if "table" in more else done.stderr
    assert harmless(told)
    for name in ("[/]", "[red]x", ":skull:", r"\x1b[31mred\x1b[0m", r"\u202etxt.exe"):
        assert name in told
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text(blendkit("evaluate", "-q", stdin=lines(records)).stdout)
    compared = blendkit("evaluate", "--compare", earlier, stdin=lines(records))
    assert compared.returncode == 0 and harmless(compared.stderr) and "Changes since" in compared.stderr


def _manifest(folder) -> str:
    path = folder / "m.json"
    path.write_text(
        json.dumps({"command": "[/]\x1b", "counts": {"records": 1}, "seconds": 1, "models": {"[red]\u202e": {}}, "peak_memory_bytes": {"process": 1}})
    )
    return str(path)


def test_names_in_the_agreement_with_labels_and_in_data_stats(blendkit):
    records = evil_records()
    for record in records:
        record["candidates"] = record["candidates"][:2]
        record |= {"ranks": {name: [1, 2] for name in EVIL}, "verdicts": {}}
    done = blendkit("evaluate", "--agreement", "human", stdin=lines(records))
    assert done.returncode == 0 and harmless(done.stderr) and "[/]" in done.stderr, done.stderr
    done = blendkit("data", "stats", stdin=lines(records))
    assert done.returncode == 0 and harmless(done.stderr) and "[/]" in done.stderr and "[red]x" in done.stderr


@pytest.mark.parametrize("name", EVIL)
def test_names_in_errors(blendkit, tmp_path, name):
    record = {"id": name, "instruction": "x", "candidates": [{"model": name, "text": "t"}], "cmp_results": {name: name}}
    done = blendkit("check", stdin=lines([record, record]))
    assert done.returncode == 65 and harmless(done.stderr), done.stderr
    done = blendkit("rank", "--on-error", "skip", "--debug", stdin=lines([record, record]))
    assert done.returncode == 70 and harmless(done.stderr), done.stderr
    for arguments in (
        ["evaluate", "--assert", name],
        ["rank", f"--{name}"],
        ["data", "convert", "--from", name, "x"],
        ["evaluate", "--format", name, "--debug"],
    ):
        if "\x00" not in name:
            done = blendkit(*arguments, stdin=lines([record]))
            assert done.returncode == 2 and harmless(done.stdout + done.stderr), done.stderr


def test_a_models_name_as_markup_on_a_real_terminal():
    """Through a pseudo-terminal, where rich colours what it prints: no sequence of the name's own."""
    pty = pytest.importorskip("pty")
    import os

    mine, its = pty.openpty()
    records = evil_records(2)
    with subprocess.Popen([sys.executable, "-m", "blendkit", "evaluate"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        process.stdin.write(lines(records).encode())
        process.stdin.close()
        told = b""
        while True:
            try:
                part = os.read(mine, 1 << 16)
            except OSError:
                break
            if not part:
                break
            told += part
    os.close(mine)
    assert process.returncode == 0
    text = told.decode()
    assert "[/]" in text and "\x1b]" not in text and "\u202e" not in text and "\x9b" not in text
    # Rich's own colours and the bar's cursor are the only sequences; red is the name's.
    assert not re.search("\x1b\\[[0-9;]*31m", text)


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|' /C calc'!A0", "- an item of a list"]


def test_no_cell_of_a_sheet_is_a_formula(blendkit, tmp_path):
    for text in FORMULAS:
        assert defused(text) == f"'{text}"
    for plain in ("a", "-5", "+1.5e3", "-.5", "a=b", "", None, -1.5, 3, True):
        assert defused(plain) is plain
    text, marked = csv_text([["a", "=b"], [-1.0, "@c"]])
    assert text == "a,'=b\n-1.0,'@c\n" and marked == 2
    records = evil_records(3, FORMULAS)
    table = list(csv.reader(io.StringIO(blendkit("evaluate", "-q", "--format", "csv", stdin=lines(records)).stdout.split("\n\n")[1])))
    names = [row[1] for row in table]
    assert "'=1+1" in names and not any(name.startswith(("=", "@", "+")) for row in table for name in row)
    record = {"id": "=1", "instruction": "-5", "candidates": [{"model": "@m", "text": "- one\n- two"}, {"model": "n", "text": "fine"}]}
    done = blendkit("data", "convert", "--to", "csv", stdin=lines([record]))
    heading, row = csv.reader(io.StringIO(done.stdout))
    assert heading == ["id", "instruction", "input", "output", "'@m", "n"] and row == ["'=1", "-5", "", "", "'- one\n- two", "fine"]
    assert "3 cells begin as a formula does" in done.stderr
    (tmp_path / "t.csv").write_bytes(done.stdout.encode())
    back = parsed(blendkit("data", "convert", "--from", "csv", tmp_path / "t.csv").stdout)
    # The marks are taken away again.
    assert back[0]["candidates"][0] == {"model": "@m", "text": "- one\n- two"} and back[0]["id"] == "=1"


MARKUP = [
    "a|b",
    "`code",
    "[link](https://evil.example)",
    "![i](https://evil.example/i.png)",
    "<img src=x>",
    "&lt;b&gt;",
    "**b**",
    "_e_",
    "~~s~~",
    "\\|x",
    "https://evil.example",
    "a\nb",
]


@pytest.mark.parametrize("name", [*MARKUP, *EVIL])
def test_a_name_in_markdown_is_text(name):
    markdown = pytest.importorskip("markdown_it")
    page = markdown.MarkdownIt("gfm-like", {"linkify": False}).render(f"| a | b |\n| --- | --- |\n| {markdown_text(name)} | c |\n")
    (cell,) = re.findall(r"<tbody>\s*<tr>\s*<td>(.*?)</td>\s*<td>c</td>\s*</tr>", page, re.DOTALL)
    from html import unescape

    assert "<" not in cell and unescape(cell) == shown(name)


def test_a_name_in_latex_is_text(blendkit):
    records = evil_records(2, ["[red]x", "*", "\\input{x}", "a%b", "\x1b$x$"])
    latex = blendkit("evaluate", "-q", "--format", "latex", stdin=lines(records)).stdout
    assert harmless(latex)
    # A row's end takes no argument, nothing is a command or a comment.
    assert not re.search(r"\\\\\s*[\[*]", latex) and "{[}red{]}x" in latex and r"\textbackslash{}input\{x\}" in latex and r"a\%b" in latex


def test_a_name_on_the_page_and_in_a_figure(blendkit, tmp_path):
    pytest.importorskip("matplotlib")
    names = ["</script><script>x", "\x1b[31m", "\u202eevil", "$\\frac{$", '" onmouseover="x', "<!--"]
    done = blendkit("evaluate", "--report", tmp_path, "--plot", tmp_path / "f.svg", "-q", stdin=lines(evil_records(3, names)))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "index.html").read_text()
    markup = page.replace(re.search(r'<script type="application/json".*?</script>', page, re.DOTALL)[0], "")
    assert markup.count("<script") == 1 and not OBEYED.search(markup.replace("\t", ""))
    handlers: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, given: handlers.extend(name for name, _ in given if name.startswith("on"))
    parser.feed(page)
    assert not handlers
    import xml.etree.ElementTree as ElementTree

    ElementTree.fromstring((tmp_path / "f.svg").read_bytes())


def test_bounds_of_the_tables(blendkit):
    def stream(make) -> str:
        return lines([{"id": str(number), "instruction": "x", **make(number)} for number in range(20_000 if make is models else 2000)])

    def models(number: int) -> dict:
        return {"candidates": [{"model": f"{side}{number}", "text": "t"} for side in "ab"], "verdicts": {"j": [{"a": 0, "b": 1, "verdict": "A"}]}}

    def with_names(part: dict) -> dict:
        return {"candidates": [{"model": side, "text": "t"} for side in "ab"], **copy.deepcopy(part)}

    cases = {
        "1,001 methods and": models,
        "columns with the": lambda number: {"candidates": [{"model": side, "text": "t", "scores": {f"s{number}": 1.0}} for side in "ab"]},
        "1,001 methods and 1 col": lambda number: with_names({"ranks": {f"r{number}": [1, 2]}}),
        "more than 1,000 signatures": lambda number: with_names({"signatures": {"q": f"s{number}"}}),
    }
    for message, make in cases.items():
        done = blendkit("evaluate", stdin=stream(make))
        assert done.returncode == 65 and message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr
    done = blendkit("evaluate", "--ratings", stdin=stream(lambda n: with_names({"verdicts": {"j": [{"a": 0, "b": 1, "verdict": "A"}], f"j{n}": []}})))
    assert done.returncode == 65 and "more than 1,000 judges" in done.stderr
    whole = dict.fromkeys(map(str, range(20_000)), 1.0)
    done = blendkit("evaluate", stdin=lines([{"id": "0", "instruction": "x", "candidates": [{"model": side, "text": "t", "scores": whole} for side in "ab"]}]))
    assert done.returncode == 65 and "1,001 columns" in done.stderr
    done = blendkit("evaluate", stdin=lines([{"id": "0", "instruction": "x", "candidates": [{"model": "a", "text": ""}] * 5000}]))
    assert done.returncode == 65 and "<stdin>:1: candidates: expected at most 4,096, got 5,000" in done.stderr


def test_many_models_within_the_bounds_have_a_table_and_no_ratings(blendkit):
    records = [
        {
            "id": str(number),
            "instruction": "x",
            "candidates": [{"model": f"m{(number + side) % 300}", "text": "t"} for side in (0, 1)],
            "verdicts": {"j": [{"a": 0, "b": 1, "verdict": "A"}]},
        }
        for number in range(300)
    ]
    done = blendkit("evaluate", "--ratings", stdin=lines(records))
    assert done.returncode == 0 and "no ratings and no win rates: they are computed of at most 200 models, and there are 300" in done.stderr
    assert len([row for row in parsed(done.stdout) if row["table"] == 2]) == 301


def test_a_score_may_not_be_named_as_a_column(blendkit):
    for name in ("table", "method", "kind", "intervals", "gpt_rank", "stand_in_rank", "judge_rank"):
        record = {"id": "0", "instruction": "x", "candidates": [{"model": "a", "text": "t", "scores": {name: 3.0}}]}
        done = blendkit("evaluate", stdin=lines([record]))
        assert done.returncode == 65 and f"candidates[0].scores.{name}: expected another name" in done.stderr


# Words behind a name or a value in a message that end as plurals do.
VERBS = re.compile(
    "(allow|answer|ask|beat|begin|bring|claim|compare|describe|doe|fail|give|goe|hold|lack|let|list|lose|name|need|read|reason|redirect|refuse|say|sample|scale|"
    "stand|start|take|tell|write)s|as|for|had|has|is|its|points|theirs|this|times|was"
)


def test_one_of_a_kind_is_no_plural():
    assert [count_of(number, "row") for number in (0, 1, 2, 1200)] == ["0 rows", "1 row", "2 rows", "1,200 rows"]
    assert [count_of(number, "reply is", "replies are") for number in (1, 2)] == ["1 reply is", "2 replies are"]
    wrong = []
    for path in sorted((ROOT / "blendkit").rglob("*.py")):
        for text in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)):
            for value, behind in pairwise(text.values):
                if not isinstance(value, ast.FormattedValue) or not isinstance(behind, ast.Constant) or value.conversion != -1:
                    continue
                found = re.match(r" (?:[a-z-]+ )?([a-z]+s)\b(?!/)", behind.value)
                shown = ast.unparse(value.value)
                # Limits are constants of more than one, and fractions are plurals.
                if found and not any(map(VERBS.fullmatch, found[0].split())) and not shown.isupper() and not shown.startswith("count_of("):
                    wrong.append(f"{path.name}:{text.lineno}: {{{shown}}}{behind.value[:30]}")
    assert wrong == []
