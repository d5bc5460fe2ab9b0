"""What other packages bring by entry points: the examples of docs/extending.md, installed as a package manager would."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, examples, lines, parsed

PAGE = ROOT / "docs" / "extending.md"
GROUPS = ("scorers", "fusers", "judges", "generators")


def install(folder, module: str, code: str, points: dict[str, dict[str, str]]):
    """A module and the metadata of its package, in a folder that shall be on the path."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    parts = [f"[blendkit.{group}]\n" + "".join(f"{name} = {target}\n" for name, target in found.items()) for group, found in points.items()]
    (info / "entry_points.txt").write_text("\n".join(parts))
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """`extended("score", …, stdin=…)` runs blendkit where the packages of the page, and one that is broken, are installed."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    folder = tmp_path_factory.mktemp("site")
    code = "\n".join(text for language, text in blocks if language == "python")
    toml = "\n".join(text for language, text in blocks if language == "toml")
    points = {
        group: dict(re.findall(r'^(\S+) = "(\S+)"$', part, re.MULTILINE)) for group, part in re.findall(r'entry-points."blendkit.(\w+)"\]\n([^\[]*)', toml)
    }
    assert set(points) == set(GROUPS)
    install(folder, "my_blend", code, points)
    install(folder, "broken", "raise RuntimeError('no licence')", {"scorers": {"broken": "broken:Scorer", "bleu": "broken:Scorer", "number": "math:pi"}})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}

    def run(*arguments: object, stdin: str = ""):
        done = subprocess.run(
            [sys.executable, "-m", "blendkit", *map(str, arguments)], input=stdin, env=environment, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def stream():
    return lines([record | {"top": [0, 1]} for record in examples(2)])


def test_a_scorer_of_another_package(extended, stream):
    code, out, err = extended("score", "--metric", "commas", "--metric", "few=length", stdin=stream)
    assert code == 0, err
    for record in parsed(out):
        assert all(candidate["scores"]["commas"] == candidate["text"].count(",") for candidate in record["candidates"])
        assert record["signatures"]["score:commas"].startswith("commas")
    code, ranked, err = extended("rank", "--by", "score:commas", stdin=out)
    assert code == 0, err
    for record in parsed(ranked):
        counts = [candidate["scores"]["commas"] for candidate in record["candidates"]]
        # The class says that fewer are better.
        assert counts[record["top"][0]] == min(counts) < max(counts)


def test_an_error_suggests_it(extended, stream):
    code, out, err = extended("score", "--metric", "comas", stdin=stream)
    assert (code, out) == (2, "")
    assert err.endswith("; did you mean commas?\n") and err.count("\n") == 1


def test_the_list_shows_it_and_a_broken_one_is_told(extended, stream):
    code, out, err = extended("score", "--list")
    assert code == 0 and re.search(r"(?m)^commas .*number of commas$", out), err
    assert re.search(r"(?m)^broken .*cannot be imported", out), err
    code, _, err = extended("score", "--metric", "broken", stdin=stream)
    assert (code, err) == (2, "blendkit score: broken:Scorer of the package broken cannot be imported: RuntimeError: no licence\n")
    code, _, err = extended("score", "--metric", "number", stdin=stream)
    assert (code, err) == (2, "blendkit score: --metric number: math:pi is no Scorer, as blendkit.scorers asks of it\n")


def test_our_own_names_cannot_be_taken(extended, stream):
    code, out, _ = extended("score", "--metric", "bleu", stdin=stream)
    assert code == 0 and parsed(out)[0]["signatures"]["score:bleu"].startswith("bleu|")


def test_a_fuser_of_another_package(extended, stream):
    code, out, err = extended("fuse", "-m", "longest", stdin=stream)
    assert code == 0, err
    for record in parsed(out):
        fused = record["candidates"][-1]
        assert (fused["model"], fused["sources"]) == ("longest", record["top"])
        assert fused["text"] == max((record["candidates"][index]["text"] for index in record["top"]), key=len)
    code, _, err = extended("fuse", "-m", "longest", "--beams", "2", stdin=stream)
    assert (code, err) == (2, "blendkit fuse: --num-beams: longest has no such option; GenFuser has\n")
    code, _, err = extended("fuse", "-m", "longest:x", stdin=stream)
    assert (code, err) == (2, "blendkit fuse: --model longest:x: longest takes no model\n")


def test_a_judge_and_a_generator_of_another_package(extended, stream):
    code, out, err = extended("judge", "-m", "brief", "-m", "s=brief", stdin=stream)
    assert code == 0, err
    verdicts = parsed(out)[0]["verdicts"]
    assert verdicts["brief"] == verdicts["s"] and set(verdicts) == {"brief", "s", "panel"}
    code, out, err = extended("judge", "-m", "e=echo:loud", "--max-unparsed", "1", stdin=stream)
    assert code == 0 and {verdict["verdict"] for verdict in parsed(out)[0]["verdicts"]["e"]} == {"unparsed"}, err
    code, out, err = extended("generate", "-m", "e=echo:loud", stdin=stream)
    assert code == 0, err
    record = parsed(out)[0]
    assert record["candidates"][-1]["model"] == "e" and record["instruction"].upper() in record["candidates"][-1]["text"]
    assert "echo:MODEL  from the package my_blend\n" in extended("generate", "--list")[1]
    code, _, err = extended("generate", "-m", "e=echo:loud", "--decoding", "beam", stdin=stream)
    assert (code, err) == (2, "blendkit generate: --decoding beam(4): e has no such method\n")
