"""Intervals, paired tests, checks for CI, changes beyond noise, and the forms of the tables."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from conftest import lines, parsed

from blendkit.errors import CheckFailed, DataError, UsageError
from blendkit.evaluation.checks import find, outcomes, raise_failed
from blendkit.evaluation.checks import parsed as check_of
from blendkit.evaluation.comparing import compared_with, read_rows
from blendkit.evaluation.statistics import bootstrap, holm, randomization


def stream(count=60, gain=0.3, seed=0):
    """Two LLMs and a ranker on made-up records: n is better than m by `gain`, the ranker always takes n."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(count):
        m = float(generator.normal())
        n = m + gain + 0.2 * float(generator.normal())
        candidates = [{"model": "m", "text": "1", "scores": {"q": m}}, {"model": "n.5", "text": "2", "scores": {"q": n}}]
        verdicts = [{"a": 0, "b": 1, "verdict": "B" if n > m else "A"}]
        records.append({"id": str(number), "candidates": candidates, "verdicts": {"j": verdicts}, "ranks": {"r": [2, 1]}})
    return records


def test_bootstrap_intervals_are_those_of_a_plain_loop():
    values = np.random.default_rng(3).normal(size=(40, 2))
    values[5:10, 1] = np.nan
    found = bootstrap(values, 7, 400)
    generator = np.random.default_rng(7)
    means = []
    for _ in range(400):
        drawn = generator.integers(40, size=40)
        means.append([np.nanmean(values[drawn, cell]) for cell in range(2)])
    np.testing.assert_allclose(found, np.percentile(means, (2.5, 97.5), axis=0).T, atol=1e-12)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (bootstrap(generator.normal(size=(80, 1)), seed, 300)[0] for seed in range(150))]
    assert 0.87 <= np.mean(covered) <= 0.99


def test_randomization_is_near_the_exact_permutation_test():
    differences = np.array([0.4, 0.1, -0.2, 0.5, 0.3, 0.2, -0.1, 0.6])
    exact = np.mean(
        [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= differences.sum() - 1e-9 for signs in itertools.product((1, -1), repeat=8)]
    )
    assert randomization(differences[:, None], 0)[0] == pytest.approx(exact, abs=0.01)
    assert randomization(np.zeros((5, 1)), 0)[0] == 1
    assert math.isnan(randomization(np.full((5, 1), np.nan), 0)[0])


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan, 0.5])), [0.04, 0.09, 0.09, np.nan, 0.5])


def test_every_figure_has_its_interval_in_the_rows(blendkit):
    done = blendkit("evaluate", "--intervals", "--versus", "m", stdin=lines(stream()))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in parsed(done.stdout) if row["table"] == 2}
    assert set(rows["n.5"]["intervals"]) == {"q", "judge_rank", "not_worse_than_m", "top3", "characters"}
    for row in rows.values():
        for column, (low, high) in row["intervals"].items():
            assert low <= row[column] <= high
    values = np.array([record["candidates"][1]["scores"]["q"] for record in stream()])
    low, high = rows["n.5"]["intervals"]["q"]
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / math.sqrt(60), rel=0.15)
    assert "–" in done.stderr
    again = blendkit("evaluate", "--versus", "m", stdin=lines(stream()))
    assert again.stdout == done.stdout
    other = blendkit("evaluate", "--versus", "m", "--seed", 1, stdin=lines(stream()))
    assert other.stdout != done.stdout


def test_paired_tests_see_what_unpaired_intervals_do_not(blendkit):
    done = blendkit("evaluate", "--baseline", "m", stdin=lines(stream()))
    rows = parsed(done.stdout)
    table2 = {row["method"]: row for row in rows if row["table"] == 2}
    assert table2["m"]["intervals"]["q"][1] > table2["n.5"]["intervals"]["q"][0]  # they overlap
    test = next(row for row in rows if row["table"] == "tests" and row["method"] == "n.5" and row["column"] == "q")
    assert test["difference"] == pytest.approx(table2["n.5"]["q"] - table2["m"]["q"], abs=2e-4)
    assert test["low"] > 0 and test["p_holm"] < 0.01 and test["examples"] == 60
    assert "Against m. Bootstrap" in done.stderr
    wrong = blendkit("evaluate", "--baseline", "zz", stdin=lines(stream(4)))
    assert wrong.returncode == 2
    assert "--baseline zz: no such method; there are" in wrong.stderr


def test_holm_runs_over_what_was_asked_and_the_table_says_how_many(called):
    records = stream(12)
    for record in records:
        record["candidates"][0]["scores"]["same"] = record["candidates"][1]["scores"]["same"] = 1.0
        record["candidates"].append({"model": "fused", "text": "3", "sources": [0, 1], "scores": {"q": 5.0, "same": 1.0}})
        record["verdicts"]["j"].append({"a": 0, "b": 2, "verdict": "B"})
    _, out, err = called("evaluate", "--baseline", "m", stdin=lines(records))
    tests = [row for row in parsed(out) if row["table"] == "tests"]
    # Neither the oracles, nor Top-3 of two candidates, nor a score that never varies.
    assert {(row["method"], row["column"]) for row in tests} == {(method, column) for method in ("n.5", "r", "fused") for column in ("q", "judge_rank")}
    assert {row["comparisons"] for row in tests} == {6} and "p (Holm) by Holm's correction over 6 comparisons: no oracles" in err
    np.testing.assert_allclose([row["p_holm"] for row in tests], holm(np.array([row["p"] for row in tests])), atol=6e-6)
    _, markdown, _ = called("evaluate", "--baseline", "m", "--format", "markdown", stdin=lines(records))
    assert "correction over 6 comparisons" in markdown
    code, out, _ = called("evaluate", "--baseline", "oracle (q)", stdin=lines(records))
    assert code == 0 and {row["method"] for row in parsed(out) if row["table"] == "tests"} == {"m", "n.5", "r", "fused"}


def test_an_assert_that_holds_and_one_that_does_not(blendkit, tmp_path):
    checks = ["--assert", "rankers.r.q > llms.m.q", "--assert", "llms.n.5.gpt_rank <= 1.5", "--assert", "llms.best.q == llms.n.5.q"]
    assert blendkit("evaluate", *checks, stdin=lines(stream())).returncode == 0
    done = blendkit("evaluate", *checks, "--assert", "llms.best.gpt_rank > 1.9", "-o", tmp_path / "tables.jsonl", stdin=lines(stream()))
    assert done.returncode == 3
    assert "blendkit evaluate: 1 of 4 checks does not hold: llms.best.gpt_rank > 1.9 (1" in done.stderr
    assert len(parsed((tmp_path / "tables.jsonl").read_text())) > 4
    for check, said in (
        ("nonsense", "expected GROUP.METHOD.COLUMN OP"),
        ("llms.zz.q > 1", "no llms of the name 'zz'; there are"),
        ("llms.m.bleu > 1", "no llms with a figure 'bleu'; there are characters, judge_rank, q, top3"),
        ("models.m.q > 1", "groups are llms, oracles, rankers, fused, agreement and judges"),
    ):
        wrong = blendkit("evaluate", "--assert", check, stdin=lines(stream(4)))
        assert wrong.returncode == 2, check
        assert said in wrong.stderr


def test_best_and_worst_know_which_way_is_better():
    rows = [{"table": 2, "kind": "model", "method": name, "q": value, "gpt_rank": 3 - value, "perplexity": value} for name, value in (("a", 1), ("b", 2))]
    assert find("llms.best.q", rows).value == find("llms.worst.gpt_rank", rows).value == 2
    assert find("llms.best.gpt_rank", rows).value == find("llms.best.perplexity", rows).value == 1
    assert find("llms.mean.q", rows).value == 1.5
    with pytest.raises(CheckFailed, match=r"1 of 1 check does not hold: 2 < 1 \(2 against 1\)"):
        raise_failed(*outcomes([check_of("2 < 1")], rows))
    with pytest.raises(UsageError):
        raise_failed(*outcomes([check_of("llms.a < 1")], rows))


def test_compare_tells_a_change_from_noise(blendkit, tmp_path):
    old = tmp_path / "old.jsonl"
    old.write_text(blendkit("evaluate", stdin=lines(stream())).stdout)
    same = blendkit("evaluate", "--compare", old, stdin=lines(stream(seed=1)))
    assert same.returncode == 0, same.stderr
    assert "Changes since the earlier run" in same.stderr
    assert not any(row["beyond_noise"] for row in parsed(same.stdout) if row["table"] == "compare" and row["column"] == "q")
    moved = blendkit("evaluate", "--compare", old, stdin=lines(stream(gain=3.0)))
    change = next(row for row in parsed(moved.stdout) if row["table"] == "compare" and row["method"] == "n.5" and row["column"] == "q")
    assert change["beyond_noise"] is True
    assert change["change"] == pytest.approx(2.7, abs=0.01)
    (tmp_path / "text").write_text("no rows")
    assert blendkit("evaluate", "--compare", tmp_path / "text", stdin=lines(stream(4))).returncode == 65
    assert blendkit("evaluate", "--compare", tmp_path / "nowhere", stdin=lines(stream(4))).returncode == 66
    with pytest.raises(DataError):
        read_rows(str(tmp_path / "text"))
    without = [{"table": 2, "kind": "model", "method": "m", "q": 1.0}]
    now = [{**without[0], "intervals": {"q": [0.5, 1.5]}}]
    assert compared_with(without, now)[0]["beyond_noise"] is None


def test_the_forms_of_the_tables(blendkit):
    records = stream(8)
    for record in records:
        record["candidates"][0]["model"] = "a|b_<i>&%"
    markdown = blendkit("evaluate", "--format", "markdown", "--intervals", stdin=lines(records))
    assert markdown.returncode == 0, markdown.stderr
    rows = [line for line in markdown.stdout.splitlines() if line.startswith("|")]
    assert any(r"a\|b\_&lt;i>&%" in row for row in rows)
    assert len({row.replace(r"\|", "").count("|") for row in rows[:8]}) == 1
    assert " to " in markdown.stdout and "evaluate|oracle:judge:j" in markdown.stdout
    latex = blendkit("evaluate", "--format", "latex", stdin=lines(records)).stdout
    assert r"a|b\_<i>\&\%" in latex and latex.count(r"\begin{tabular}") == 4
    table = list(csv.reader(io.StringIO(blendkit("evaluate", "--format", "csv", stdin=lines(records)).stdout.split("\n\n")[2])))
    assert table[0][:4] == ["table", "method", "kind", "examples"] and "q_low" in table[0]
    assert {len(row) for row in table} == {len(table[0])}
    assert all(json.loads(line) for line in blendkit("evaluate", "--format", "json", stdin=lines(records)).stdout.splitlines())
    shown = blendkit("evaluate", "--format", "table", stdin=lines(records))
    assert "Judge rank (j)" in shown.stdout and shown.stderr == ""
    assert blendkit("evaluate", "--format", "yaml", stdin=lines(records)).returncode == 2


def test_model_names_are_no_markup(blendkit):
    records = stream(4)
    for record in records:
        record["candidates"][0]["model"] = "[bold red]m[/]"
    done = blendkit("evaluate", "--baseline", "[bold red]m[/]", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    assert "[bold red]m[/]" in done.stderr


def test_ratings_by_an_independent_fit(blendkit):
    records = stream(40)
    for record in records:
        record["candidates"].append({"model": "fused", "text": "3", "sources": [0, 1], "scores": {"q": 1.0}})
        number = int(record["id"])
        record["verdicts"]["j"] += [{"a": 0, "b": 2, "verdict": ("B", "tie-good", "A", "B")[number % 4]}, {"a": 1, "b": 2, "verdict": ("A", "B")[number % 2]}]
    done = blendkit("evaluate", "--ratings", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in parsed(done.stdout) if row["table"] == "ratings"}
    wins = np.zeros((3, 3))
    for record in records:
        for verdict in record["verdicts"]["j"]:
            share = {"A": 1.0, "B": 0.0}.get(verdict["verdict"], 0.5)
            wins[verdict["a"], verdict["b"]] += share
            wins[verdict["b"], verdict["a"]] += 1 - share
    padded = wins + (0.5 / 3) * (1 - np.eye(3))
    theta = np.zeros(3)
    for _ in range(20_000):  # gradient ascent of the Bradley-Terry log-likelihood
        p = 1 / (1 + np.exp(theta[None] - theta[:, None]))
        theta += 0.01 * (padded * (1 - p) - padded.T * p).sum(axis=1)
        theta -= theta.mean()
    for place, name in enumerate(("m", "n.5", "fused")):
        row = rows[name]
        assert row["rating"] == pytest.approx(1500 + 400 / math.log(10) * theta[place], abs=0.2)
        assert row["rating_low"] < row["rating"] < row["rating_high"]
        assert row["win_rate"] == pytest.approx(100 * wins[place].sum() / 80, abs=0.01)
        assert row["verdicts"] == 80
    firsts = sum(record["verdicts"]["j"][0]["verdict"] == "B" for record in records)
    ties = sum(record["verdicts"]["j"][0]["verdict"].startswith("tie") for record in records)
    shares = {row["method"]: row["share"] for row in parsed(done.stdout) if row["table"] == "firsts"}
    assert shares == {"n.5": pytest.approx(100 * (firsts + ties / 2) / 40), "m": pytest.approx(100 * (40 - firsts - ties / 2) / 40)}
    matrix = {row["method"]: row for row in parsed(done.stdout) if row["table"] == "wins"}
    assert matrix["m"]["over fused"] == pytest.approx(100 * wins[0, 2] / 40, abs=0.05)
    assert matrix["m"]["over m"] is None
    assert "Win rates: row over column" in done.stderr
    for record in records:
        del record["verdicts"]
    without = blendkit("evaluate", "--ratings", "--oracle", "score:q", stdin=lines(records))
    assert "no judge's verdicts in the stream, which --ratings would look at" in without.stderr


def test_a_pair_that_nobody_judged_is_no_tie(blendkit):
    records = stream(6)
    for record in records:
        record["candidates"].append({"model": "o", "text": "3", "scores": {"q": 0.0}})
        record["verdicts"]["j"].append({"a": 1, "b": 2, "verdict": "A"})
        del record["ranks"]
    done = blendkit("evaluate", "--ratings", "--versus", "o", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    rows = parsed(done.stdout)
    assert {row["method"]: row["verdicts"] for row in rows if row["table"] == "ratings"} == {"m": 6, "n.5": 12, "o": 6}
    table2 = {row["method"]: row for row in rows if row["table"] == 2}
    assert table2["m"]["not_worse_than_o"] is None
    assert table2["n.5"]["not_worse_than_o"] == table2["o"]["not_worse_than_o"] == 100
