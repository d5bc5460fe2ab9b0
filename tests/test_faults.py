"""What may happen to a pipe at hour nine: killed, out of disk, a node taken away, a clock that jumps. Nothing is lost, nothing is there twice."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from chaos import compare
from chaos_pipes import Pipe, damage
from conftest import examples, lines, parsed
from hostile import HostileServer

PAIR = [sys.executable, "-m", "blendkit", "pair", "--window", "1"]


def many(count: int) -> list[dict]:
    return [record | {"id": f"{n}/{record['id']}"} for n in range(count) for record in examples()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "in.jsonl"
    path.write_text(lines(many(5)))
    return path


@pytest.fixture(scope="module")
def whole(source, tiny_ranker):
    """What an undisturbed run gives."""
    return subprocess.run([*PAIR, "--model", str(tiny_ranker), "-i", str(source)], capture_output=True, text=True, check=True, timeout=120).stdout


def wait_for(path) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)


def feed(pipe, data: bytes) -> None:
    """Writes as long as there is a reader, and does not close."""
    with suppress(BrokenPipeError):
        pipe.write(data)


@pytest.mark.slow
def test_kill_9_of_a_stage_loses_nothing_that_was_written(blendkit, tmp_path, source, whole, tiny_ranker):
    out = tmp_path / "out.jsonl"
    command = [*PAIR, "--model", str(tiny_ranker), "-i", str(source), "-o", str(out)]
    for _ in range(2):
        process = subprocess.Popen([*command, "--resume"], stderr=subprocess.DEVNULL)
        before = out.stat().st_size if out.exists() else 0
        while process.poll() is None and not (out.exists() and out.stat().st_size > before):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert whole.encode().startswith(out.read_bytes())
    assert subprocess.run([*command, "--resume"], stderr=subprocess.DEVNULL).returncode == 0
    assert out.read_text() == whole


@pytest.mark.parametrize("kept", [0.13, 0.57, 0.93])
def test_a_writer_killed_in_the_middle_of_a_line(blendkit, tmp_path, source, whole, tiny_ranker, kept):
    out = tmp_path / "out.jsonl"
    cut = whole.encode()[: int(len(whole.encode()) * kept)]
    assert not cut.endswith(b"\n")
    out.write_bytes(cut)
    assert blendkit("pair", "--model", tiny_ranker, "--window", 1, "-i", source, "-o", out, "--resume").returncode == 0
    assert out.read_text() == whole


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way(blendkit, tmp_path, source, whole, tiny_ranker):
    out = tmp_path / "out.jsonl"
    room = len(whole.encode()) // 2

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    flags = ["pair", "--model", tiny_ranker, "--window", 1, "-i", source, "-o", out]
    done = blendkit(*flags, preexec_fn=small_disk)
    assert done.returncode == 74
    (told,) = (line for line in done.stderr.splitlines() if "cannot write" in line)
    assert str(out) in told
    assert out.stat().st_size <= room
    assert blendkit(*flags, "--resume").returncode == 0
    assert out.read_text() == whole


def test_a_node_that_is_taken_away(tmp_path, source, whole, tiny_ranker):
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([*PAIR, "--model", str(tiny_ranker), "-o", str(out)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    # Its input does not end, so that it cannot be done before the signal comes.
    feeder = threading.Thread(target=feed, args=(process.stdin, source.read_bytes()))
    feeder.start()
    wait_for(out)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    feeder.join()
    assert out.read_bytes().endswith(b"\n") and whole.encode().startswith(out.read_bytes())


def test_a_server_that_hangs_does_not_hold_up_sigterm(tmp_path):
    server = HostileServer(lambda prompt, attempt: "late", late=3600)
    try:
        source = tmp_path / "in.jsonl"
        source.write_text(lines([{"id": "a", "instruction": "x"}]))
        command = [sys.executable, "-m", "blendkit", "generate", "-m", "openai:m", "--base-url", server.url, "-i", str(source)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        server.stop()


def test_an_upstream_that_dies_in_the_middle_of_a_line(tiny_ranker):
    records = lines(many(1)[:3])
    process = subprocess.Popen([*PAIR, "--model", str(tiny_ranker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, said = process.communicate((records + lines(many(1)[3:4])[:100]).encode(), timeout=120)
    assert process.returncode == 65
    assert [record["id"] for record in parsed(out.decode())] == [record["id"] for record in many(1)[:3]]
    assert b"<stdin>:4: not JSON: the line ends in the middle of a value" in said


@pytest.mark.slow
def test_a_downstream_that_leaves_workers_alone(tmp_path, source, tiny_ranker):
    command = f"set -o pipefail; {' '.join(PAIR)} --model {tiny_ranker} --workers 2 -q -i {source} 2>{tmp_path}/said | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "Error" not in (tmp_path / "said").read_text() and "Traceback" not in (tmp_path / "said").read_text()


HOOKED = """
import sys
from blendkit.rankers.pairranker import PairRanker

import torch
true = PairRanker._logits

def logits(self, scorer, payloads):
    if len(payloads) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return true(self, scorer, payloads)

PairRanker._logits = logits
from blendkit.cli import main
main()
"""


@pytest.mark.slow
def test_a_gpu_that_runs_out_of_memory_halves_the_budget_and_goes_on(blendkit, tmp_path, source, whole, tiny_ranker):
    flags = ["pair", "--model", str(tiny_ranker), "--window", "1", "-i", str(source), "--manifest", str(tmp_path / "m.json")]
    done = subprocess.run([sys.executable, "-c", HOOKED, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "m.json").read_text())["counts"]["budget_halvings"] > 0
    for one, other in zip(parsed(done.stdout), parsed(whole), strict=True):
        pairs, expected = (record["comparisons"]["pairrm"]["pairs"] for record in (one, other))
        assert [pair[:2] for pair in pairs] == [pair[:2] for pair in expected]
        assert [pair[2] for pair in pairs] == pytest.approx([pair[2] for pair in expected], abs=1e-4)


@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
@pytest.mark.parametrize("command", [["pair", "--model"], ["generate", "-m"]])
def test_damaged_weights(blendkit, tmp_path, tiny_ranker, tiny_chat, command, how):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_ranker if command[0] == "pair" else tiny_chat, folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes({"cut": data[: len(data) // 2], "garbage": b"\xff" * 1000, "empty": b""}[how])
    done = blendkit(*command, folder, stdin=lines(examples(1)))
    assert done.returncode == 66, done.stderr
    assert str(folder) in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_cache_that_cannot_be_written():
    server = HostileServer()
    try:
        flags = ["generate", "-m", "openai:m", "--base-url", server.url, "--cache", "/proc/no-such-place.sqlite"]
        done = subprocess.run([sys.executable, "-m", "blendkit", *flags], input='{"instruction":"x"}', capture_output=True, text=True, timeout=60)
        assert done.returncode == 74
        assert "/proc/no-such-place.sqlite" in done.stderr and len(done.stderr.splitlines()) == 1
        assert not server.asked, "an answer was paid for that could not be kept"
    finally:
        server.stop()


JUMPING = """
import random, time
true = time.time
time.time = lambda: true() + random.choice((-86400.0, 0.0, 86400.0))
"""


def test_a_clock_that_jumps(blendkit, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    server = HostileServer(lambda prompt, attempt: "429" if attempt == 1 else None)
    try:
        flags = ["generate", "-m", "openai:m", "--base-url", server.url, "--requests-per-minute", 6000, "--progress", "json", "--manifest", tmp_path / "m.json"]
        stream = lines([{"id": str(n), "instruction": f"say {n}"} for n in range(20)])
        done = blendkit(*flags, stdin=stream, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert [record["candidates"][0]["text"] for record in parsed(done.stdout)] == [f"Reply to say {n}" for n in range(20)]
        assert 0 < json.loads((tmp_path / "m.json").read_text())["seconds"] < 3600
    finally:
        server.stop()


def chaos(*flags: object) -> list[str]:
    """Runs the script; its last line for each scenario."""
    script = Path(__file__).parent / "chaos.py"
    done = subprocess.run([sys.executable, str(script), *map(str, flags)], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if " rounds, " in line]


def test_a_little_chaos():
    """`bin/chaos` runs twenty rounds of every command; a few of one without a model keep it from rusting, and CI has a pipe and a training."""
    (told,) = chaos("--only", "rank", "--rounds", 12, "--copies", 12)
    assert "288 records, 0 lost, 0 there twice, 0 different" in told


@pytest.mark.slow
def test_chaos_of_a_pipe_and_of_a_training(tiny_ranker):
    told = chaos("--only", "whole,train", "--rounds", 1, "--copies", 3, "--model", tiny_ranker)
    assert len(told) == 2
    assert all("0 lost, 0 there twice, 0 different" in line for line in told)


def test_chaos_sees_what_is_lost_twice_or_different(tmp_path):
    records = [{"id": str(number), "value": number} for number in range(4)]

    def compared(found):
        pipes = []
        for name, rows in (("one", found), ("other", records)):
            (tmp_path / name).write_text(lines(rows))
            pipes.append([Pipe([], tmp_path / name)])
        return compare(*pipes)

    assert compared(records) == (4, 0, 0, 0)
    assert compared(records[:3]) == (4, 1, 0, 0)
    assert compared([*records, records[3]]) == (4, 0, 1, 0)
    assert compared([*records[:3], {"id": "3", "value": 4}]) == (4, 0, 0, 1)


def test_a_damage_is_one(tmp_path):
    for seed in range(30):
        path = tmp_path / "out.jsonl.gz"
        path.write_bytes(whole := gzip.compress(b"x" * 300))
        damage(path, random.Random(seed))
        assert path.read_bytes() != whole
