"""The generators inside the package: they load by name, end by themselves, do not loop, and answer in words."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import CORPUS, EXAMPLES, parsed

from blendkit.errors import NoInputError
from blendkit.models.loading import EMBEDDED_GENERATORS, locate

NAMES = [f"embedded:{name}" for name in EMBEDDED_GENERATORS]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


@pytest.fixture(scope="module")
def answered():
    """The example prompts, answered by all of them as the shell would."""
    import subprocess
    import sys

    flags = [part for name in NAMES for part in ("-m", name)]
    done = subprocess.run(
        [sys.executable, "-m", "blendkit", "generate", *flags], input=(EXAMPLES / "prompts.jsonl").read_bytes(), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return parsed(done.stdout.decode())


def test_they_answer_every_prompt_in_words(answered):
    assert [[candidate["model"] for candidate in record["candidates"]] for record in answered] == [NAMES] * 12
    for name in NAMES:
        texts = [candidate["text"] for record in answered for candidate in record["candidates"] if candidate["model"] == name]
        assert all(len(words(text)) >= 3 for text in texts)
        assert len(set(texts)) == len(texts)
        # Words of our own examples and the commonest of English are most of what any English text is made of.
        known = set(words(" ".join(CORPUS))) | COMMON
        said = [word for text in texts for word in words(text)]
        assert sum(word in known for word in said) / len(said) > 0.4


COMMON = set(words("the of and to a in is that for it as was with be by on not he i this are or his from at which but have an had they you were"))


def test_they_end_and_do_not_loop(answered):
    candidates = [candidate for record in answered for candidate in record["candidates"]]
    assert sum(candidate["finish_reason"] == "stop" for candidate in candidates) / len(candidates) > 0.6
    for candidate in candidates:
        said = words(candidate["text"])
        runs = Counter(tuple(said[start : start + 8]) for start in range(len(said) - 7))
        assert all(count == 1 for count in runs.values())


def test_the_same_seed_gives_the_same_answers(blendkit):
    runs = [blendkit("generate", "-m", "embedded:b", "--seed", seed, stdin='{"instruction":"Name three rivers."}').stdout for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_each_is_small():
    for name in NAMES:
        folder = locate(name)
        assert sum(path.stat().st_size for path in folder.iterdir()) < 8 << 20
    whole = sum(path.stat().st_size for path in Path(locate("embedded")).glob("*") if path.is_file())
    assert whole <= 48 << 20


def test_no_such_embedded_model(blendkit):
    with pytest.raises(NoInputError, match=r"no model 'embedded:z': the embedded generators are embedded:a, embedded:b, embedded:c"):
        locate("embedded:z")
    listed = blendkit("generate", "--list").stdout
    assert all(name in listed for name in NAMES)
    done = blendkit("generate", "-m", "embedded:z", stdin='{"instruction":"x"}')
    assert done.returncode == 66 and len(done.stderr.splitlines()) == 1
