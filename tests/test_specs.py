"""`[NAME=]SPEC` is read alike by every command: the same names, the same errors, and a path's last part where there is no name."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT, lines

import blendkit as library
from blendkit.errors import UsageError
from blendkit.specs import default_name, one_name, split_name

CANDIDATES = [{"model": "a", "text": "Yes, it is."}, {"model": "b", "text": "No."}]
RECORD = {"id": "1", "instruction": "x", "output": "yes", "candidates": CANDIDATES, "ranks": {"r": [1, 2]}, "top": [0, 1]}
# A command, its flag, and what it can be given offline.
COMMANDS = [("generate", "-m", "openai:x"), ("pair", "-m", "embedded"), ("score", "--metric", "bleu"), ("fuse", "-m", "consensus"), ("judge", "-m", "embedded")]


@pytest.mark.parametrize(
    ("given", "name", "spec"),
    [
        ("gpt=openai:x", "gpt", "openai:x"),
        ("a b·c=x=y", "a b·c", "x=y"),
        ("openai:x", "", "openai:x"),
        ("openai:x=y", "", "openai:x=y"),
        ("openai:x@http://h/?a=b", "", "openai:x@http://h/?a=b"),
        ("n=openai:x@http://h/?a=b", "n", "openai:x@http://h/?a=b"),
        ("./lr=0.1/best", "", "./lr=0.1/best"),
        ("runs/lr=0.1", "", "runs/lr=0.1"),
        ("C:\\runs\\lr=0.1", "", "C:\\runs\\lr=0.1"),
        ("x?y=z", "", "x?y=z"),
    ],
)
def test_a_name_stands_before_the_first_equals_sign(given, name, spec):
    assert split_name(given, "-m") == (name, spec)


@pytest.mark.parametrize(("command", "flag", "spec"), COMMANDS)
def test_every_command_refuses_the_same_names(called, command, flag, spec):
    server = ["--base-url", "http://127.0.0.1:9/v1"] if command == "generate" else []
    shown = "-m" if flag == "-m" and command in ("generate", "judge") else "--model" if flag == "-m" else flag
    for wrong, said in (
        (f"={spec}", "expected a name that is printable and not empty, without a space at its ends, got ''"),
        (f" n={spec}", "expected a name that is printable and not empty, without a space at its ends, got ' n'"),
        (f"a\tb={spec}", "expected a name that is printable and not empty"),
        ("n=", "expected NAME=SPEC, got nothing behind the ="),
    ):
        code, out, err = called(command, *server, flag, wrong, stdin=lines([RECORD]))
        assert (code, out) == (2, "") and err.startswith(f"blendkit {command}: {shown} ") and said in err and err.count("\n") == 1, err
    if command in ("fuse", "judge", "pair"):
        code, out, err = called(command, flag, f"n={spec}", "--name", "other", stdin=lines([RECORD]))
        assert (code, out) == (2, "") and f"--name other: {shown} n=… names it, too; leave one of them out" in err
        code, out, err = called(command, flag, spec, "--name", "", stdin=lines([RECORD]))
        assert (code, out) == (2, "") and "--name: expected a name" in err
    if command != "pair":
        many = ["openai:x", "openai:y"] if command == "fuse" else [spec, spec]
        given = [part for one in many for part in (flag, f"n={one}")]
        code, out, err = called(command, *(["--base-url", "http://127.0.0.1:9/v1"] if command in ("generate", "fuse") else []), *given, stdin=lines([RECORD]))
        assert (code, out) == (2, "") and f"{shown} n={many[1]}: the name n is given twice; give one another, NAME={many[1]}" in err


def test_every_help_says_it_alike():
    page = (ROOT / "docs" / "cli.md").read_text()
    for command, flag, _ in COMMANDS:
        text = page.partition(f"## blendkit {command}\n")[2].partition("\n## ")[0]
        option = text[text.index("--model" if flag == "-m" else flag) :]
        assert "[NAME=]" in option[:200], command


def test_what_a_name_names():
    (record,) = library.judge(library.fuse(library.score(library.pair([RECORD], "mine=embedded"), ["len=length"]), "mix=consensus"), "by=embedded")
    assert list(record["comparisons"]) == ["mine"] and record["comparisons"]["mine"]["model"] == "embedded"
    assert all(list(candidate["scores"]) == ["len"] for candidate in record["candidates"][:2])
    assert record["candidates"][2]["model"] == "mix" and list(record["verdicts"]) == ["by"]
    assert one_name("n", "n", "-m") == "n"


def test_a_path_is_called_by_its_last_part(called, tiny_chat, tiny_t5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "foo").symlink_to(tiny_chat)
    (tmp_path / "fuser").symlink_to(tiny_t5)
    assert [default_name(spec) for spec in ("a/foo", "./a/foo/", str(tmp_path / "a/foo"), "vllm:a/foo", "openai:a/foo", "no/foo", ".")] == [
        "foo", "foo", "foo", "vllm:foo", "openai:a/foo", "no/foo", tmp_path.name
    ]  # fmt: skip
    small = {"device": "cpu", "max_new_tokens": 2}
    (record,) = library.generate([RECORD], ["./a/foo/", "b=b/foo", "alpaca:a/foo"], temperature=0, **small)
    assert [candidate["model"] for candidate in record["candidates"][2:]] == ["foo", "b", "alpaca:foo"]
    (fused,) = library.fuse(library.fuse([RECORD], "./fuser/", **small), "b/foo", **small)
    assert [candidate["model"] for candidate in fused["candidates"][2:]] == ["fuser", "foo"]
    (judged,) = library.judge([RECORD], ["a/foo", "b=b/foo"], device="cpu", orders="random")
    assert list(judged["verdicts"]) == ["foo", "b", "panel"]
    for command in ("generate", "fuse", "judge"):
        code, out, err = called(command, "-m", "a/foo", "-m", "./b/foo", stdin=lines([RECORD]))
        assert (code, out) == (2, "") and "./b/foo: the name foo is given twice; give one another, NAME=./b/foo" in err


def test_a_table_of_models_is_named_as_it_is(tmp_path):
    table = tmp_path / "models.toml"
    table.write_text('["a:b"]\nmodel = "openai:x"\n')
    stage_error = pytest.raises(UsageError, match="the name a:b is given twice")
    with stage_error:
        next(library.generate([json.loads(json.dumps(RECORD))], ["a:b", "a:b"], models_file=table, base_url="http://127.0.0.1:9/v1"))
