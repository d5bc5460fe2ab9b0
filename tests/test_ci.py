"""What CI runs: the README's test command, and with it the slow tests that a plain one leaves out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import settings

CI = (ROOT / ".ci" / "run").read_text()
THREE = """
import pytest

def test_quick(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.gpu
def test_gpu(): pass
"""


def flags_of_ci() -> list[str]:
    """What .ci/run gives to bin/test, and bin/test to pytest."""
    (command,) = re.findall(r"^bin/test.*$", CI, re.MULTILINE)
    return shlex.split(command.partition("<")[0])[1:]


@pytest.mark.parametrize(("flags", "expected"), [([], {"quick", "gpu"}), (flags_of_ci(), {"quick", "slow", "gpu"})], ids=["plain", "CI"])
def test_slow_tests_run_in_ci_and_nowhere_else(tmp_path, flags, expected):
    (tmp_path / "test_three.py").write_text(THREE)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p", "no:cacheprovider", "--collect-only"]
    done = subprocess.run([*map(str, command), *flags, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert set(re.findall(r"::test_(\w+)", done.stdout)) == expected, done.stdout + done.stderr


def test_ci_calls_the_command_of_the_readme():
    assert re.search(r"^    bin/test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert '"$@"' in (ROOT / "bin" / "test").read_text()


def test_fuzzing_draws_the_same_cases_everywhere(request):
    chosen = settings()
    assert (chosen.derandomize, chosen.database, chosen.deadline) == (True, None, None)
    assert chosen.max_examples == (60 if request.config.option.markexpr == "not slow" else 400)
