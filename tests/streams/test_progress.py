"""Progress in a log, and what an interrupt keeps of the window in work."""

from __future__ import annotations

import json
import signal
import time

import pytest

from blendkit.commands.options import WINDOWS
from blendkit.errors import Interrupted
from blendkit.fusers.chat import ChatFuser
from blendkit.fusers.genfuser import GenFuser
from blendkit.generators.generating import Generating
from blendkit.judges.judging import Judging
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import do_window, process
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.work import Job, Work
from blendkit.rankers.pairranker import PairRanker
from blendkit.rankers.ranking import Ranking
from blendkit.scorers.scoring import Scoring
from blendkit.streams import progress
from blendkit.streams.lines import Line


class Slow(Stage):
    """A work a letter of the record's id, a batch a work; `pause` is called before each."""

    name = "slow"

    def __init__(self, pause):
        self.pause = pause
        self.job = Job("slow", self.run)

    def run(self, payloads):
        self.pause()
        return [payload.upper() for payload in payloads]

    def plan(self, record):
        return [Work(self.job, (record["id"], place), 1, letter) for place, letter in enumerate(record["id"])]

    def finish(self, record, results):
        record["done"] = "".join(results)


def window(*ids):
    return [Line(number, b"x" * 9, {"id": name, "candidates": []}) for number, name in enumerate(ids, 1)]


def test_json_lines_move_within_a_window_and_the_last_one_says_how_it_ended(monkeypatch, capsys):
    monkeypatch.setattr(progress, "JSON_SECONDS", 3600)
    told = progress.Progress("slow", "json", 60)

    def pause():
        told._tell(None)

    plan = Plan(window=2, batch_tokens=1, tick=told.update)
    with pytest.raises(ZeroDivisionError), told:
        for _ in process(Slow(pause), window("ab", "cd", "ef", "gh", "ij", "kl"), plan):
            pass
        raise ZeroDivisionError
    *rows, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert [row["in_hand"]["computed"] for row in rows] == [0, 1, 2, 3] * 3
    assert {row["in_hand"]["records"] for row in rows[1:]} == {2} and {row["in_hand"]["works"] for row in rows[1:]} == {4}
    assert [row["input_bytes"] for row in rows[1:]] == [5 * number for number in range(1, 12)]
    assert {row["total_bytes"] for row in rows} == {60} and all(row["eta_seconds"] >= 0 for row in rows[1:])
    assert (last["ended"], last["records"], last["input_bytes"]) == ("ZeroDivisionError", 6, 60) and "in_hand" not in last


def test_a_pipe_has_no_total_and_an_empty_one_ends_with_a_line(called):
    code, out, err = called("rank", "--by", "score:q", "--progress", "json", stdin="")
    (row,) = map(json.loads, err.splitlines())
    assert (code, out, row["ended"], row["records"]) == (0, "", "done", 0) and "total_bytes" not in row


def test_a_long_batch_does_not_keep_the_log_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "JSON_SECONDS", 0.01)
    spoken = []

    def pause():
        until = time.monotonic() + 30
        while not spoken and time.monotonic() < until:
            time.sleep(0.01)
            spoken.extend(capsys.readouterr().err.splitlines())

    with progress.Progress("slow", "json", None) as told:
        list(process(Slow(pause), window("a"), Plan(tick=told.update)))
    assert spoken


@pytest.mark.parametrize(("after", "kept"), [(1, []), (2, ["ab"]), (3, ["ab"]), (5, ["ab", "cd"])])
def test_an_interrupt_keeps_the_finished_records_of_its_window(after, kept):
    calls = iter(range(100))

    def tick(counts):
        if next(calls) == after - 1:
            raise Interrupted(signal.SIGINT)

    done, fault = do_window(Slow(lambda: None), window("ab", "cd", "ef"), Plan(batch_tokens=1, tick=tick))
    assert [line.record["done"] for line in done] == [name.upper() for name in kept]
    assert isinstance(fault, Interrupted)


def test_the_help_of_window_says_the_stages_own():
    pair, scored, written, others = (int(part.split(" (")[0].rsplit(" ", 1)[1]) for part in WINDOWS.split(", "))
    assert pair == PairRanker.window and scored == Scoring.window == Judging.window
    assert written == Generating.window == ChatFuser.window == GenFuser.window and others == Ranking.window == Stage.window
