"""Stages compute one at a time, and wait for nobody who does not compute."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import examples, lines

from blendkit import cli
from blendkit.pipeline import run, turns
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import process
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.turns import Turns, cores, turns_of
from blendkit.pipeline.work import Job, Work
from blendkit.streams.lines import Line


def free(folder, which=""):
    """Whether nobody has a turn, or whether nobody is `-next`."""
    (name,) = (path for path in folder.iterdir() if path.name.endswith("-next") == bool(which))
    with name.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Computing(Stage):
    """Has one batch a record, computed by `run`."""

    name = "computing"

    def __init__(self, run, budgeted=True):
        self.job = Job("computing", run, budgeted)

    def plan(self, record):
        return [Work(self.job, record["id"], 1, record["id"])]

    def finish(self, record, results):
        record["computed"] = results


def run_all(stage, plan, count, look=lambda: None):
    """The computed records; `look` is called where a process would wait for its reader or its writer."""

    def given():
        for number in range(count):
            look()
            yield Line(number, b"", {"id": str(number)})

    found = []
    for done in process(stage, given(), plan):
        look()
        found += [line.record["computed"] for line in done]
    return found


@pytest.mark.parametrize("taken", [True, False])
def test_two_stages_compute_one_after_the_other_and_have_no_turn_while_they_read_and_write(tmp_path, taken):
    met, mistakes, both = [], [], threading.Barrier(2)

    def one():
        own = Turns(str(tmp_path))
        held = threading.local()

        def compute(rows):
            held.now = True
            if taken and free(tmp_path):
                mistakes.append("computes without a turn")
            try:
                # Both are here at once, or the first to come waits in vain.
                both.wait(0.1 if taken else 60)
                met.append(True)
            except threading.BrokenBarrierError:
                both.reset()
            held.now = False
            return rows

        found = run_all(Computing(compute), Plan(window=1, turn=own.turn if taken else nullcontext), 3)
        if found != [["0"], ["1"], ["2"]]:
            mistakes.append(found)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not mistakes and len(met) == (0 if taken else 6)


def test_a_stage_that_reads_or_writes_keeps_nobody_from_computing(tmp_path):
    own, seen = Turns(str(tmp_path)), []

    def compute(rows):
        seen.append(free(tmp_path))
        return rows

    run_all(Computing(compute), Plan(window=2, batch_tokens=1, turn=own.turn), 4, lambda: seen.append(free(tmp_path)))
    # Two records are read, computed in a batch each, and written; the end of the input is not looked at.
    assert seen == [True, True, False, False, True] * 2


def test_whoever_waits_is_next(tmp_path):
    had = Turns(str(tmp_path))
    order = []

    def other():
        with Turns(str(tmp_path)).turn():
            order.append("waited")

    thread = threading.Thread(target=other)
    with had.turn():
        thread.start()
        while free(tmp_path, "-next"):
            time.sleep(0.001)
    with had.turn():
        order.append("had one")
    thread.join()
    assert order == ["waited", "had one"]


def test_a_turn_ends_with_its_batch_however_that_ends(tmp_path):
    own = Turns(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), own.turn():
        raise KeyboardInterrupt
    assert free(tmp_path) and free(tmp_path, "-next")


def test_nobody_waits_for_a_stage_that_is_stopped_or_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "LOOK", 0.01)
    code = "import sys; from blendkit.pipeline.turns import Turns\nwith Turns(sys.argv[1]).turn(): print('has it', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"has it\n" and not free(tmp_path)
    own = Turns(str(tmp_path))
    if sys.platform == "linux":
        holder.send_signal(signal.SIGSTOP)
        with own.turn():
            assert not free(tmp_path)
        assert not free(tmp_path) and free(tmp_path, "-next")
    monkeypatch.setattr(turns, "PATIENCE", 0.02)
    holder.send_signal(signal.SIGCONT)
    with own.turn():
        assert not free(tmp_path)
    monkeypatch.undo()
    holder.kill()
    with own.turn():
        assert not free(tmp_path)
    holder.wait()
    assert free(tmp_path)


def test_where_there_can_be_no_locks_nobody_waits(tmp_path):
    with Turns(str(tmp_path / "nowhere")).turn():
        pass
    (tmp_path / "victim").write_text("kept")
    Turns(str(tmp_path))
    for path in [path for path in tmp_path.iterdir() if path.name != "victim"]:
        path.unlink()
        path.symlink_to(tmp_path / "victim")
    with Turns(str(tmp_path)).turn():
        pass
    assert (tmp_path / "victim").read_text() == "kept"


def test_another_users_file_is_not_taken(tmp_path, monkeypatch):
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with Turns(str(tmp_path)).turn():
        assert free(tmp_path)


@pytest.mark.parametrize(
    ("device", "threads", "limited", "computing", "waits"),
    [
        ("cpu", "auto", True, 2, True), ("auto", "auto", True, 2, True), ("cpu", "auto", True, 1, False), ("cpu", "2", True, 2, False),
        # Two threads of each core: by itself torch takes one.
        ("cpu", "auto", False, 1, True), ("cuda", "auto", False, 2, False),
    ],
)  # fmt: skip
def test_turns_are_taken_on_the_cpu_unless_a_variable_leaves_half_of_it(tmp_path, monkeypatch, device, threads, limited, computing, waits):
    for name in turns.LIMITS:
        monkeypatch.delenv(name, raising=False)
    if limited:
        monkeypatch.setenv(turns.LIMITS[0], str(computing))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(turns, "cores", lambda: [0, 1])
    monkeypatch.setattr(turns, "choose_device", lambda name: torch.device({"auto": "cpu"}.get(name, name)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: computing)
    with turns_of(device, threads)():
        assert [free(tmp_path)] == [False] if waits else not list(tmp_path.iterdir())


def test_servers_and_metrics_without_a_model_take_no_turn():
    def turn():
        raise AssertionError("took a turn")

    assert run_all(Computing(lambda rows: rows, budgeted=False), Plan(turn=turn), 1) == [["0"]]


def test_a_command_takes_turns_unless_it_is_told_its_threads(called, tiny_ranker, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(turns, "cores", lambda: [0])  # so that one thread is more than half of them
    told = []
    monkeypatch.setattr(run, "use_threads", told.append)
    pair = ("pair", "--device", "cpu", "--model", tiny_ranker)
    given = lines(examples(1))
    code, written, err = called(*pair, "--threads", "3", stdin=given)
    assert code == 0, err
    assert told == [3, 3] and not list(tmp_path.glob("blendkit-turns*"))
    assert called(*pair, stdin=given)[:2] == (0, written)
    assert told == [3, 3] and free(tmp_path)
    for flags, said in (
        (["0"], "--threads 0: expected auto, or a number from 1 to 1024"),
        (["some"], "--threads some: expected auto"),
        (["2", "--workers", "2"], "--cpus-per-worker"),
    ):
        code, out, err = called(*pair, "--threads", *flags, stdin=given)
        assert (code, out) == (2, "") and said in err


def test_threads_are_set_before_and_after_torch_is_loaded():
    code = "import sys; from blendkit.pipeline.turns import use_threads; use_threads(1); import torch; n = torch.get_num_threads(); use_threads(2)"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(n, torch.get_num_threads())"], capture_output=True, text=True)
    assert done.stdout == "1 2\n", done.stderr


@pytest.mark.parametrize(("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_idle_threads_wait_shortly_unless_the_user_says_otherwise(monkeypatch, given, found):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        cli.quiet_libraries()
    assert os.environ.get("GOMP_SPINCOUNT") == found


def test_there_is_a_core():
    assert cores() and cores() == sorted(set(cores()))
