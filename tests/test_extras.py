"""A plain installation: what an extra brings is asked for in one line, and nothing else needs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, lines, parsed
from made_up import made_up

from blendkit.errors import UsageError, require

EXTRAS = ("accelerate", "aiohttp", "choix", "cloudpickle", "krippendorff", "matplotlib", "peft", "ray", "scipy", "sklearn")


def without(modules, *arguments, stdin=""):
    """The command where these modules are not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r})); sys.argv[0] = 'blendkit'; from blendkit.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("sklearn", ["evaluate", "--length-controlled", "a"], "evaluate: --length-controlled needs scikit-learn: pip install 'blendkit[stats]'"),
        ("matplotlib", ["evaluate", "--report", "out"], "evaluate: --report needs matplotlib: pip install 'blendkit[plots]'"),
        ("matplotlib", ["evaluate", "--plot", "x.png"], "evaluate: --plot needs matplotlib: pip install 'blendkit[plots]'"),
        ("cloudpickle", ["pair", "--workers", "2"], "pair: work in other processes needs cloudpickle: pip install 'blendkit[engines]'"),
        ("MeCab", ["score", "--metric", "bleu:ja-mecab"], "score: the tokenizer ja-mecab needs mecab-python3: pip install 'blendkit[languages]'"),
        ("mecab_ko", ["score", "--metric", "rouge1:ko-mecab"], "score: the tokenizer ko-mecab needs mecab-ko: pip install 'blendkit[languages]'"),
        (
            "sentencepiece",
            ["score", "--metric", "token-f1", "--tokenize", "flores200"],
            "score: the tokenizer flores200 needs sentencepiece: pip install 'blendkit[languages]'",
        ),
    ],
)
def test_a_missing_extra_is_one_line_before_anything_is_read(missing, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = without([missing], *arguments, stdin="not read")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"blendkit {message}\n")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_in_training_without_its_extra_says_so(monkeypatch):
    from blendkit.training.loop import TrainOptions, train

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r"--eval needs scipy: pip install 'blendkit\[train\]'"):
        train(None, [object()], TrainOptions(), None, settings={}, evaluation=[object()])


def test_ranking_and_ratings_need_no_extra():
    records = made_up(6)
    ranked = without(EXTRAS, "rank", "--by", "judge:mixinstruct", "--aggregate", "bradley-terry", stdin=lines(records))
    assert ranked.returncode == 0, ranked.stderr
    done = without(EXTRAS, "evaluate", "-q", "--ratings", "--baseline", "a", stdin=ranked.stdout)
    assert done.returncode == 0, done.stderr
    assert {row["table"] for row in parsed(done.stdout)} >= {2, 3, "tests", "ratings", "wins", "judges"}


def test_every_extra_that_a_message_names_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import re

    for path in (ROOT / "blendkit").rglob("*.py"):
        for extra in re.findall(r"blendkit\[(\w+)\]", path.read_text()) + re.findall(r"\brequire\([^()]*?, \"(\w+)\", ", path.read_text()):
            assert extra in project["optional-dependencies"], f"{path}: {extra}"


def test_what_is_installed_is_not_asked_for():
    require("json", "none", "nothing")
