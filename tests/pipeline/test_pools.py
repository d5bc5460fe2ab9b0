"""Pools of workers without processes or a cluster: how workers find places, and that a place is never lost."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import pytest

from blendkit.errors import DataError, SkippedRecords, UsageError, WorkerLost
from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.engines.pool import About, Distributed, Idle, Outcome, Pool, WorkerDied
from blendkit.pipeline.engines.ray import RayPool, gpu_share, places
from blendkit.pipeline.engines.worker import Asking, Served, pickled
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage
from blendkit.streams import PLAIN
from blendkit.streams.counts import Counts
from blendkit.streams.lines import Line

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from engines import simulated


class Quiet(Stage):
    name = "quiet"

    def finish(self, record, results):
        record["done"] = True


@pytest.mark.parametrize(
    ("workers", "gpus", "share"),
    [(3, 2, 1 / 2), (2, 2, 1.0), (1, 4, 1.0), (5, 2, 1 / 3), (4, 1, 1 / 4), (3, 0, 0.0), (7, 3, 1 / 3), (2, 0.5, 0.0)],
)
def test_every_worker_finds_a_gpu(workers, gpus, share):
    assert gpu_share(workers, gpus) == pytest.approx(share)
    assert places([64.0], [float(gpus)], 1.0, share) >= workers


def test_places_are_counted_by_node_and_by_gpu():
    assert places([64.0], [2.0], 1.0, 2 / 3) == 2  # an equal share of all: each GPU has room for one of them
    assert places([4.0, 4.0], [1.0, 1.0], 1.0, 2.0) == 0  # no node has two GPUs
    assert places([4.0, 4.0], [4.0, 2.0], 1.0, 2.0) == 3
    assert places([2.0, 8.0], [4.0, 4.0], 2.0, 0.5) == 1 + 4
    assert places([4.0, 4.0], [0.0, 0.0], 1.5, 0.0) == 4
    assert places([4.0], [0.0], 0.0, 0.0) == sys.maxsize


def cluster(monkeypatch, *nodes):
    """A module `ray` whose cluster has these nodes; its actors hold their place and say nothing wrong."""
    fake = types.ModuleType("ray")
    fake.calls = []
    fake.exceptions = types.SimpleNamespace(RayActorError=RuntimeError)
    fake.is_initialized = lambda: False
    fake.init = lambda **settings: fake.calls.append(("init", settings["address"]))
    fake.shutdown = lambda: fake.calls.append(("shutdown",))
    fake.nodes = lambda: [{"Alive": alive, "Resources": resources} for alive, resources in nodes]
    fake.get = lambda answer: answer
    fake.kill = lambda actor: fake.calls.append(("kill",))

    def remote(**options):
        fake.calls.append(("remote", options["num_gpus"]))

        def decorate(kind):
            def make(data):
                served = kind(data)
                return types.SimpleNamespace(answer=types.SimpleNamespace(remote=served.answer))

            return types.SimpleNamespace(remote=make)

        return decorate

    fake.remote = remote
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_three_ray_workers_share_two_gpus(monkeypatch):
    ray = cluster(monkeypatch, (True, {"CPU": 8.0, "GPU": 2.0}))
    pool = RayPool(Quiet, EngineOptions("ray", workers=3))
    assert ("remote", 0.5) in ray.calls and len(pool.workers) == 3
    assert pool.work([(1, b"{}")], 100).done == [(1, b'{"id":"1","done":true}\n')]
    pool.close()
    assert ray.calls.count(("kill",)) == 3 and ray.calls[-1] == ("shutdown",)


@pytest.mark.parametrize(
    ("address", "where", "settings"),
    [(None, "this machine", ("init", "local")), ("10.0.0.1:6379", "the cluster at 10.0.0.1:6379", ("init", "10.0.0.1:6379"))],
)
def test_workers_that_would_wait_for_ever_are_refused(monkeypatch, address, where, settings):
    """A node that is gone has no room, and a worker of two GPUs finds none on two nodes of one."""
    ray = cluster(monkeypatch, (True, {"CPU": 8.0, "GPU": 1.0}), (True, {"CPU": 8.0, "GPU": 1.0}), (False, {"CPU": 64.0, "GPU": 8.0}))
    with pytest.raises(UsageError, match=rf"--workers 2: {where} has room for 0 workers of 1 CPUs and 2 GPUs"):
        RayPool(Quiet, EngineOptions("ray", workers=2, gpus_per_worker=2, ray_address=address))
    assert ray.calls == [settings, ("shutdown",)]


class StandIn:
    """A worker that does what the next answer says: an exception is raised, an outcome is given."""

    def __init__(self, answers):
        self.answers = answers

    def about(self):
        return About("quiet", 1, 1, True)

    def work(self, window, batch_tokens):
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self):
        pass


class OneWorker(Pool):
    def __init__(self, *answers):
        self.answers, self.started = iter(answers), 0
        super().__init__(Quiet, EngineOptions())

    def start(self, place):
        self.started += 1
        return StandIn(self.answers)


def soon(call):
    """What the call gives or raises, from a thread of its own: a call that waits for ever fails the test and does not hold it up."""
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits for ever"
    return found[0]


WINDOW = [(1, b'{"id":"a"}')]
DONE = Outcome(WINDOW, [], None, Counts())


@pytest.mark.parametrize("fault", [RuntimeError("a fault of ours"), KeyboardInterrupt()])
def test_a_fault_gives_the_worker_back(fault):
    pool = OneWorker(fault, DONE, DONE)
    assert soon(lambda: pool.work(WINDOW, 1)) is fault
    assert soon(lambda: pool.work(WINDOW, 1)) is DONE and soon(lambda: pool.work(WINDOW, 1)) is DONE
    assert pool.started == 1


def test_a_dead_workers_place_is_taken_by_another():
    pool = OneWorker(WorkerDied("by signal 9"), DONE)
    assert soon(lambda: pool.work(WINDOW, 1)) is DONE and pool.started == 2
    pool = OneWorker(*[WorkerDied("by signal 9")] * 3, DONE)
    lost = soon(lambda: pool.work(WINDOW, 1))
    assert isinstance(lost, WorkerLost) and "by signal 9" in str(lost)
    assert soon(lambda: pool.work(WINDOW, 1)) is DONE


def test_a_worker_that_cannot_be_started_anew_leaves_no_window_waiting():
    pool = OneWorker(WorkerDied("by signal 9"), DONE)
    pool.start = lambda place: (_ for _ in ()).throw(OSError("no more processes"))
    assert isinstance(soon(lambda: pool.work(WINDOW, 1)), OSError)
    assert soon(lambda: pool.work(WINDOW, 1)) is DONE


def test_the_earliest_window_that_waits_gets_the_next_worker():
    idle, got = Idle(), []
    idle.put(3, "worker")
    place, worker = idle.get(1)

    def wait(line):
        got.append((line, idle.get(line)))
        idle.put(*got[-1][1])

    threads = [threading.Thread(target=wait, args=(line,)) for line in (33, 17, 25, 9)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(idle._waiting) <= number:
            time.sleep(0.001)
    idle.put(place, worker)
    for thread in threads:
        thread.join(60)
    assert got == [(line, (3, "worker")) for line in (9, 17, 25, 33)]
    assert idle.all() == {3: "worker"} and idle.all() == {}


class InThreads(Pool):
    """Workers in this process; what they are asked and answer is pickled, as on its way to others."""

    def start(self, place):
        served = Served(pickled(self.make))
        return Asking(lambda *question: pickle.loads(pickle.dumps(served.answer(*pickle.loads(pickle.dumps(question))))), lambda: None)


def test_workers_write_the_bytes_that_one_process_writes(tmp_path):
    numbers = '"large":123456789012345678901234567890,"small":-0.0,"float":1e5,"null":null'
    given = [
        '\ufeff{"id":"a","instruction":"é \\u00e9 \\ud83d\\ude00 \\u2028","candidates":[{"model":"m","text":"\\t"}]}',
        '{"instruction":"without an id",' + numbers + "}",
        '{"id":"blanks behind it"} \t ',
        '{"id":"carriage return","instruction":"first"}\r',
        '\t {"id":"blanks before it"}',
        "[1]",
        '{"id":"not a number","score":NaN}\r',
        '{"id":"a","instruction":"an id again"}',
        "  ",
        '{"instruction":"its fields in another order","id":"b","id":"c"}',
        '{"id":"d","instruction":5}',
        *(f'{{"id":"{number}"}}' for number in range(40)),
    ]
    source = tmp_path / "in.jsonl"

    def run(workers, out, raised, **flags):
        options = RunOptions("quiet", str(source), output=str(out), flags={}, window=3, quiet=True, **flags)
        with pytest.raises(raised) as error:
            run_stage(partial(Distributed, InThreads(Quiet, EngineOptions(workers=workers))) if workers else Quiet, options)
        return str(error.value)

    found = []
    for workers in (0, 1, 3):
        whole, cut, rejects = tmp_path / f"{workers}.jsonl", tmp_path / f"{workers}.cut.jsonl", tmp_path / f"{workers}.rejects"
        source.write_bytes(("\n".join(given) + "\n").encode())
        run(workers, whole, SkippedRecords, on_error="skip", rejects=str(rejects))
        found.append([path.read_bytes() for path in (whole, rejects, tmp_path / f"{whole.name}.run.ndjson")])
        found[-1] += [run(workers, cut, DataError).encode(), cut.read_bytes()]
        # What was edited is done again, in its place.
        source.write_bytes(source.read_bytes().replace(b"first", b"second "))
        run(workers, cut, SkippedRecords, on_error="skip", resume=PLAIN)
        found[-1] += [path.read_bytes() for path in (cut, tmp_path / f"{cut.name}.run.ndjson")]
    assert found[0] == found[1] == found[2]
    written, rejected, _, said, before, after, _ = found[0]
    # The id that the second line gets is there again, as is "a".
    assert written.count(b'"done":true') == 45 and rejected.count(b"\n") == 5
    assert said.startswith(f"{source}:6: ".encode()) and before == b"".join(written.splitlines(True)[:5])
    assert b'"first"' in written and after == written.replace(b"first", b"second ")


def test_records_on_their_way_are_held_as_lines(monkeypatch):
    stage = Distributed(InThreads(Quiet, EngineOptions(workers=2)))
    window = [Line(1, b'{"id":"a","output":"long"}', {"id": "a", "output": "long"}), Line(2, b'{"output":"long"}', {"id": "2", "output": "long"})]
    work = stage.pool.work

    def watched(*sent):
        assert [line.record for line in window] == [{"id": "a"}, {"id": "2"}]
        return work(*sent)

    monkeypatch.setattr(stage.pool, "work", watched)
    done, fault = stage.elsewhere(window, Plan())
    assert fault is None and [line.record for line in done] == [{"id": "a"}, {"id": "2"}]
    assert [line.written() for line in done] == [b'{"id":"a","output":"long","done":true}\n', b'{"id":"2","output":"long","done":true}\n']


def test_a_simulated_cluster_keeps_its_order_and_its_workers_busy(tmp_path):
    count, seconds, busy = simulated(tmp_path, workers=4, rate=500, pairs=20, seconds=2.08, window=4)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in written] == [f"simulated/{number}" for number in range(count)]
    assert all(len(record["comparisons"]["pairrm"]["pairs"]) == 20 for record in written)
    # 208 records of 40 ms each by four workers take two seconds; a driver that has one of them work at a time would need eight.
    assert count == 208 and busy > 0.3 and seconds >= 2.08
