"""Several processes, a Ray cluster and shards give what one process gives; workers may die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from comparing import close
from conftest import examples, lines, parsed
from hostile import HostileServer

ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'blendkit[ray]'")
ENGINES = {"local": ("--workers", "2"), "ray": ("--engine", "ray", "--workers", "2")}
BOTH = [pytest.param("local"), pytest.param("ray", marks=ray)]


def many(count: int) -> list[dict]:
    return [record | {"id": f"{n}/{record['id']}"} for n in range(count) for record in examples()]


@pytest.mark.slow
def test_engines_and_merged_shards_give_the_same_output(blendkit, tmp_path, tiny_ranker):
    source = tmp_path / "in.jsonl"
    source.write_text(lines(many(2)))
    command = ["pair", "--model", tiny_ranker, "--window", 3, "-i", source]
    whole = blendkit(*command)
    assert whole.returncode == 0, whole.stderr
    expected = parsed(whole.stdout)
    parts = []
    for shard in range(2):
        parts.append(tmp_path / f"part-{shard}.jsonl.gz")
        assert blendkit(*command, "--shard", f"{shard}/2", "-o", parts[-1]).returncode == 0
    found = {"shards": blendkit("merge", *parts, "-i", source)}
    for engine, flags in ENGINES.items():
        if engine != "ray" or find_spec("ray"):
            found[engine] = blendkit(*command, *flags, "--manifest", tmp_path / f"{engine}.json")
    for name, done in found.items():
        assert done.returncode == 0, (name, done.stderr)
        assert close(parsed(done.stdout), expected), name
    for engine in found.keys() - {"shards"}:
        manifest = json.loads((tmp_path / f"{engine}.json").read_text())
        assert (manifest["engine"], manifest["workers"], len(manifest["by_worker"])) == (engine, 2, 2)
        # Equal candidates of a window are one, so this counts windows' work as one process does.
        assert manifest["counts"]["records"] == 24 and manifest["counts"]["works"] == 24 * 20


@pytest.mark.slow
@pytest.mark.parametrize("engine", BOTH)
def test_bad_records_are_told_as_by_one_process(blendkit, tmp_path, tiny_ranker, engine):
    good = lines(many(1)).splitlines()
    # The last one is found only when the stage looks at it.
    bad = [*good[:4], "[1]", *good[4:7], '{"id":"x","candidates":[{"model":"m"}]}', good[7], '{"id":"y","instruction":"x","candidates":[]}', good[8]]
    stream = "\n".join(bad) + "\n"
    command = ["pair", "--model", tiny_ranker, "--window", 2]
    # What ends a run is this side's, whichever engine has the workers; a cluster takes its time to start.
    for flags in (["--on-error", "skip", "--rejects"], *([[]] if engine == "local" else [])):
        done = {}
        for name, how in (("one", ()), (engine, ENGINES[engine])):
            rejects = tmp_path / "rejects.jsonl"
            done[name] = blendkit(*command, *how, *flags, *([rejects] if flags else []), stdin=stream), rejects.read_text() if flags else ""
        (one, kept), (other, kept_too) = done.values()
        told = [[line for line in run.stderr.splitlines() if "cut to" not in line] for run in (one, other)]
        assert told[0] == told[1]
        assert (one.returncode, kept) == (other.returncode, kept_too)
        assert one.returncode == (70 if flags else 65)
        assert close(parsed(one.stdout), parsed(other.stdout)) and one.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", BOTH)
def test_no_such_model_is_said_as_by_one_process(blendkit, engine):
    done = blendkit("pair", "--model", "/nowhere/at-all", *ENGINES[engine], stdin=lines(examples(1)))
    assert done.returncode == 66
    assert done.stderr.startswith("blendkit pair: no model '/nowhere/at-all'") and len(done.stderr.splitlines()) == 1


def descendants(pid: int) -> list[int]:
    """Of a process, by Linux's list of children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def workers_of(pid: int, mark: str) -> list[int]:
    found = []
    for child in descendants(pid):
        try:
            if mark in Path(f"/proc/{child}/cmdline").read_bytes().decode().replace("\0", " "):
                found.append(child)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
@pytest.mark.parametrize(("engine", "mark"), [pytest.param("local", "blendkit.pipeline.engines.local"), pytest.param("ray", "ray::Served", marks=ray)])
def test_a_killed_workers_window_goes_to_another(blendkit, tmp_path, tiny_ranker, engine, mark):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(many(12)))
    command = ["pair", "--model", str(tiny_ranker), "--window", "2", "-i", str(source)]
    process = subprocess.Popen([sys.executable, "-m", "blendkit", *command, *ENGINES[engine], "-o", str(out)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while (not out.exists() or not out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed = workers_of(process.pid, mark)
    assert killed
    os.kill(killed[0], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert [record["id"] for record in parsed(out.read_text())] == [record["id"] for record in many(12)]
    assert close(parsed(out.read_text()), parsed(blendkit(*command).stdout))


def test_a_record_that_kills_its_workers_ends_the_run_and_keeps_what_was_done():
    from blendkit.errors import WorkerLost
    from blendkit.pipeline.engines import distributed
    from blendkit.pipeline.engines.options import EngineOptions
    from blendkit.pipeline.plan import Plan
    from blendkit.pipeline.runner import process
    from blendkit.pipeline.stage import Stage
    from blendkit.streams.lines import Line

    class Deadly(Stage):
        name = "deadly"
        window = 1

        def finish(self, record, results):
            if record["id"] == "3":
                os.kill(os.getpid(), signal.SIGKILL)
            record["done"] = True

    stage = distributed(Deadly, EngineOptions(workers=2))
    done = []
    try:
        with pytest.raises(WorkerLost, match=r"3 workers ended over the records of the lines 3 to 3 \(by signal 9, SIGKILL\)"):
            for window in process(stage, (Line(n, b'{"id":"%d"}' % n, {"id": str(n)}) for n in range(1, 9)), Plan(window=1)):
                done += [line.record["id"] for line in window]
    finally:
        stage.close()
    assert done == ["1", "2"]


def test_memory_that_runs_out_in_a_worker_is_told_as_such():
    from blendkit.errors import OutOfMemory
    from blendkit.pipeline.engines.worker import Served, pickled
    from blendkit.pipeline.stage import Stage

    class Large(Stage):
        name = "large"

        def finish(self, record, results):
            raise MemoryError

    fine, error = Served(pickled(Large)).answer("work", ([(1, b'{"id":"1"}')], 100))
    assert not fine and isinstance(error, OutOfMemory) and "MemoryError" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "engine"),
    [(signal.SIGTERM, 143, "local"), (signal.SIGINT, 130, "local"), pytest.param(signal.SIGTERM, 143, "ray", marks=ray)],
)
def test_a_signal_ends_workers_too(tmp_path, tiny_ranker, engine, number, code):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(many(60)))
    command = [sys.executable, "-m", "blendkit", "pair", "--model", str(tiny_ranker), "--window", "2", "-i", str(source), "-o", str(out), *ENGINES[engine]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while (not out.exists() or not out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    mine = descendants(process.pid) if Path("/proc/self/task").is_dir() else []
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert b"interrupted; what was done is written" in said
    ids = [record["id"] for record in parsed(out.read_text())]
    assert ids == [record["id"] for record in many(60)][: len(ids)]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in mine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in mine)


def test_endpoints_share_their_limits_among_workers(blendkit):
    server = HostileServer()
    try:
        flags = ["-m", "openai:m", "--base-url", server.url, "--workers", 2, "--window", 3]
        done = blendkit("generate", *flags, stdin=lines([{"id": str(n), "instruction": f"say {n}"} for n in range(12)]))
        assert done.returncode == 0, done.stderr
        assert [record["candidates"][0]["text"] for record in parsed(done.stdout)] == [f"Reply to say {n}" for n in range(12)]
        assert sum(server.answered.values()) == 12
    finally:
        server.stop()


def test_flags_that_do_not_go_together(blendkit):
    for flags, words in (
        (["--engine", "spark"], "--engine spark: expected one of local, ray"),
        (["--ray-address", "auto"], "--ray-address needs --engine ray"),
        (["--workers", "2", "-m", "openai:m", "--base-url", "http://localhost:1", "--emit-batch", "x"], "--emit-batch: one process writes the file"),
    ):
        done = blendkit("generate", "-m", "x", *flags)
        assert done.returncode == 2 and words in done.stderr


def test_without_ray_a_line_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['ray'] = None; sys.argv = ['blendkit', 'pair', '--engine', 'ray']; from blendkit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "blendkit pair: --engine ray needs Ray: pip install 'blendkit[ray]'\n")
