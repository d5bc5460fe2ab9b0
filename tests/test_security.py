"""Checkpoints, streams and servers are strangers: no code of theirs runs, no key leaves, no file is open to all, no line fills the memory."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys

import pytest
from conftest import examples, limited, lines
from hostile import HostileServer

KEY = "sk-planted-0123456789"


class Payload:
    """What a pickle does when it is loaded as pickle loads it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("command", [["pair", "--model"], ["generate", "-m"], ["score", "--metric"]])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_a_pickle_checkpoint_runs_no_code(blendkit, tmp_path, tiny_ranker, tiny_chat, command, name):
    folder, mark = tmp_path / "evil", tmp_path / "ran"
    shutil.copytree(tiny_chat if command[0] == "generate" else tiny_ranker, folder)
    (folder / "model.safetensors").unlink()
    with (folder / name).open("wb") as file:
        pickle.dump({"weight": Payload(str(mark))}, file, protocol=2)
    spec = f"bertscore:{folder}" if command[0] == "score" else str(folder)
    done = blendkit(*command, spec, stdin=lines(examples(1)))
    assert done.returncode == 66, done.stderr
    assert len(done.stderr.splitlines()) == 1 and str(folder) in done.stderr
    assert not mark.exists()


def test_a_checkpoints_own_code_runs_only_when_it_is_asked_for(blendkit, tmp_path, tiny_chat):
    folder, mark = tmp_path / "custom", tmp_path / "ran"
    shutil.copytree(tiny_chat, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nfrom transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n")
    done = blendkit("generate", "-m", folder, stdin='{"instruction":"x"}')
    assert done.returncode == 66
    assert "brings code of its own, which runs under --trust-remote-code only" in done.stderr
    assert not mark.exists()


def test_a_key_is_in_nothing_that_is_left_behind(tmp_path):
    server = HostileServer(lambda prompt, attempt: "500" if attempt == 1 else "400" if prompt == "bad" else None)
    try:
        source = tmp_path / "in.jsonl"
        source.write_text(lines([{"id": str(n), "instruction": "bad" if n == 3 else f"say {n}"} for n in range(4)]))
        folder = tmp_path / "left"
        folder.mkdir()
        flags = ["generate", "-m", "openai:m", "--base-url", server.url, "-i", source, "-o", folder / "out.jsonl"]
        flags += ["--cache", folder / "cache.sqlite", "--manifest", folder / "m.json", "--on-error", "skip", "--rejects", folder / "bad.jsonl"]
        for more in ([], ["--debug"], ["--workers", "2", "--debug"]):
            command = [sys.executable, "-m", "blendkit", *map(str, flags), *more, "--progress", "json"]
            done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "OPENAI_API_KEY": KEY})
            assert done.returncode == 70, done.stderr
            assert KEY.encode() not in done.stdout + done.stderr
            for path in folder.rglob("*"):
                assert KEY.encode() not in path.read_bytes(), path
        assert any(KEY in header for header in server.headers), "the server never got the key, so nothing was tried"
    finally:
        server.stop()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_users_umask(blendkit, tmp_path, umask):
    server = HostileServer()
    try:
        flags = ["-o", tmp_path / "out.jsonl", "--cache", tmp_path / "cache.sqlite", "--manifest", tmp_path / "m.json"]
        flags += ["--on-error", "skip", "--rejects", tmp_path / "bad.jsonl"]
        stream = '{"id":"a","instruction":"x"}\n[1]\n'
        for resume in ([], ["--resume"]):
            done = blendkit("generate", "-m", "openai:m", "--base-url", server.url, *flags, *resume, stdin=stream, preexec_fn=lambda: os.umask(umask))
            assert done.returncode == 70, done.stderr
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    finally:
        server.stop()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_decompression_bomb_meets_the_limit(blendkit, tmp_path, suffix):
    path = tmp_path / f"bomb.jsonl{suffix}"
    good = b'{"id":"a","candidates":[{"model":"m","text":"t","scores":{"q":1}}]}\n'
    line = b'{"id":"b","instruction":"' + b"x" * (400 << 20) + b'"}\n'
    if suffix == ".gz":
        path.write_bytes(gzip.compress(good + line, 1))
    else:
        import zstandard

        path.write_bytes(zstandard.compress(good + line))
    del line
    done = blendkit("rank", "--by", "score:q", "-i", path, preexec_fn=limited(250))
    assert done.returncode == 65, done.stderr
    assert f"{path}:2: a line of more than 32 MB; --max-line-bytes raises the limit" in done.stderr
    assert json.loads(done.stdout)["id"] == "a"


def test_the_longest_line_is_the_users_choice(blendkit):
    line = '{"id":"a","candidates":[{"model":"m","text":"%s","scores":{"q":1}}]}\n' % ("x" * 5000)
    assert blendkit("rank", "--by", "score:q", "--max-line-bytes", 6000, stdin=line).returncode == 0
    done = blendkit("rank", "--by", "score:q", "--max-line-bytes", 3000, stdin=line)
    assert done.returncode == 65 and "<stdin>:1: a line of more than 3,000 bytes" in done.stderr
