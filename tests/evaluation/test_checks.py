"""What a CI job asks of the tables: figures, intervals, changes, how many records; and that every form shows the same tables."""

from __future__ import annotations

import re

import pytest
from conftest import lines, parsed
from made_up import made_up

import blendkit as library
from blendkit.errors import CheckFailed, DataError, UsageError
from blendkit.evaluation.checks import all_figures, find, outcomes
from blendkit.evaluation.checks import parsed as check_of
from blendkit.evaluation.comparing import worse
from blendkit.evaluation.formats import rendered
from blendkit.evaluation.layout import laid_out


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    records = made_up(40)
    for record in records:
        record["candidates"].append({"model": "mix", "text": "x", "sources": [0, 1]})
    return library.evaluate(records, versus=["b"])


@pytest.fixture
def earlier(rows, tmp_path):
    """The same run with all of `llms.a` shifted by `gain` in bleu."""

    def write(gain: float):
        shifted = [dict(row) for row in rows]
        row = next(row for row in shifted if row["table"] == 2 and row["method"] == "a")
        row["bleu"] += gain
        row["intervals"] = row["intervals"] | {"bleu": [bound + gain for bound in row["intervals"]["bleu"]]}
        path = tmp_path / "main.jsonl"
        path.write_text(lines(shifted))
        return path

    return write


def cell(rows, method, column):
    return next(row[column] for row in rows if row["table"] == 2 and row["method"] == method)


def test_bounds_of_intervals(rows):
    low, high = cell(rows, "a", "intervals")["bleu"]
    assert (find("llms.a.bleu.low", rows).value, find("llms.a.bleu.high", rows).value) == (low, high)
    best = max("abcd", key=lambda model: cell(rows, model, "bleu"))
    assert find("llms.best.bleu.low", rows).value == cell(rows, best, "intervals")["bleu"][0]
    assert find("llms.best.bleu.low", rows).words == f"lower bound of bleu of the best LLM, {best}"
    for path, said in (("llms.mean.bleu.low", "a mean over methods has no interval"), ("llms.a.low", "no llms with a figure")):
        with pytest.raises(UsageError, match=said):
            find(path, rows)
    with pytest.raises(DataError, match=r"pearson of r has no interval"):
        find("agreement.r.pearson.low", rows)
    # A column of this name is meant before a bound.
    assert find("llms.m.low", [{"table": 2, "kind": "model", "method": "m", "low": 3.0}]).value == 3


def test_a_figure_that_is_null_says_why(rows):
    with pytest.raises(DataError, match=r"--assert fused.mix.bleu: bleu is null for mix because 40 of its 40 examples have no value of it"):
        find("fused.mix.bleu", rows)
    with pytest.raises(DataError, match=r"gpt_rank is null for mix because 40 of its 40 examples have no value: the judge compared it with none there"):
        find("fused.best.gpt_rank", rows)


def test_every_figure_that_is_listed_can_be_asserted(called, rows):
    records = made_up(5)
    code, out, err = called("evaluate", "--list-columns", stdin=lines(records))
    assert (code, err) == (0, "")
    now = library.evaluate(records)
    listed = dict(line.split("\t") for line in out.splitlines())
    assert {"llms.a.bleu", "llms.a.bleu.low", "oracles.oracle (bleu).gpt_rank.high", "rankers.r.examples", "agreement.r.footrule"} <= set(listed)
    assert all(find(path, now).value == float(value) for path, value in listed.items())
    assert "fused.mix.bleu\tnull" in all_figures(rows).splitlines()
    code, _, err = called("evaluate", "--list-columns", "--format", "csv", stdin=lines(records))
    assert code == 2 and "give one of them" in err


def test_the_words_of_an_earlier_figure_name_the_earlier_judge():
    def run(judge: str, at_chance: bool) -> list[dict]:
        worth = {"table": "judge", "method": judge, "column": "judge_rank", "is_oracle": True, "at_chance": at_chance}
        return [worth, {"table": 2, "kind": "model", "method": "a", "judge_rank": 1.5}]

    both = run("new", False), run("old", True)
    assert find("llms.a.judge_rank", *both).words == "Judge rank (new) of a"
    assert find("earlier.llms.a.judge_rank", *both).words == "earlier Judge rank (old) (at chance) of a"


def test_every_cell_of_csv_is_a_word_or_a_figure(rows):
    assert any("missing" in row for row in rows)
    table = next(part for part in rendered(rows, "csv", [], True).split("\n\n") if "2,mix,fused," in part)
    names = table.splitlines()[0].split(",")
    assert "bleu_low" in names and not {"intervals", "missing"} & set(names)
    assert "{" not in table


def test_expect_counts_the_records(called):
    assert called("evaluate", "-q", "--expect", 5, stdin=lines(made_up(5)))[0] == 0
    code, out, err = called("evaluate", "-q", "--expect", 6, stdin=lines(made_up(5)))
    assert code == 3 and "1 of 1 check does not hold: --expect 6 (5 against 6)" in err
    assert parsed(out)[-1] == {
        "table": "checks",
        "method": "--expect 6",
        "holds": False,
        "result": "does not hold",
        "means": "6 records",
        "left": 5,
        "right": 6,
    }


@pytest.mark.parametrize(
    ("check", "gain", "holds"),
    [
        ("llms.a.bleu >= earlier.llms.a.bleu", 0.5, False),
        ("llms.a.bleu >= earlier.llms.a.bleu within noise", 0.5, True),
        ("llms.a.bleu >= earlier.llms.a.bleu within noise", 9, False),
        ("llms.a.bleu <= earlier.llms.a.bleu within noise", 9, True),
        ("llms.a.bleu == earlier.llms.a.bleu within noise", -0.5, True),
        ("llms.a.bleu == earlier.llms.a.bleu within noise", -9, False),
        ("llms.a.bleu > earlier.llms.a.bleu beyond noise", -0.5, False),
        ("llms.a.bleu > earlier.llms.a.bleu beyond noise", -9, True),
        ("llms.a.bleu < earlier.llms.a.bleu beyond noise", 9, True),
        ("rankers.r.gpt_rank < llms.d.gpt_rank beyond noise", 0, True),
        ("llms.a.bleu < 100 beyond noise", 0, True),
    ],
)
def test_checks_against_an_earlier_run_and_noise(rows, earlier, check, gain, holds):
    from blendkit.evaluation.comparing import read_rows

    (found,), errors = outcomes([check_of(check)], rows, read_rows(str(earlier(gain))))
    assert (found["holds"], errors) == (holds, [])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--assert", "llms.a.q > earlier.llms.a.q"], "expected --compare FILE or --fail-if-worse FILE with it"),
        (["--assert", "llms.a.q >= 1 beyond noise"], "expected <, > before beyond noise, got >="),
        (["--assert", "llms.a.q > 1 within noise"], "expected <=, >=, == before within noise, got >"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_read(called, flags, said):
    code, out, err = called("evaluate", *flags, stdin="not read")
    assert (code, out) == (2, "") and said in err


def test_fail_if_worse_names_what_got_worse_or_is_gone(called, earlier, rows, tmp_path):
    stream = lines(made_up(40))
    flags = ["evaluate", "-q", "--versus", "b", "--fail-if-worse"]
    without = [row for row in rows if row["method"] != "mix"]
    (tmp_path / "same.jsonl").write_text(lines(without))
    assert called(*flags, tmp_path / "same.jsonl", stdin=stream)[0] == 0
    code, _, err = called(*flags, earlier(9), stdin=stream)
    assert code == 3 and re.search(r"check does not hold: --fail-if-worse \S+main.jsonl \(Worse beyond noise, or gone: llms.a.bleu [\d.]+ to [\d.]+\)", err)
    better = {"table": "compare", "kind": "model", "method": "a", "column": "bleu", "old": 1, "new": 2, "change": 1, "beyond_noise": True}
    assert worse([], [better, {**better, "column": "characters"}, {**better, "change": -1, "beyond_noise": False}]) == []
    assert worse([], [{**better, "column": "gpt_rank"}]) == ["llms.a.gpt_rank 1 to 2"]
    assert worse([{"table": 2, "kind": "fused", "method": "x", "q": 1.0, "top3": None, "characters": 4.0}], []) == ["fused.x.q is gone"]
    with pytest.raises(CheckFailed):
        library.evaluate(made_up(20), fail_if_worse=str(tmp_path / "main.jsonl"))
    code, _, err = called(*flags, tmp_path / "same.jsonl", "--compare", tmp_path / "main.jsonl", stdin=stream)
    assert code == 2 and "expected one earlier run, got two" in err


def test_the_summary_of_a_ci_job(called, earlier):
    flags = ["--fail-if-worse", earlier(9), "--assert", "rankers.r.gpt_rank < llms.best.gpt_rank", "--assert", "llms.a.top3 > 100", "--versus", "b"]
    code, out, _ = called("evaluate", "--format", "markdown", *flags, stdin=lines(made_up(40)))
    assert code == 3
    checks = out[: out.index("### Methods")]
    assert "GPT-Rank of r &lt; GPT-Rank of the best LLM, a |" in checks and "| Top-3 % of a > 100 | does not hold |" in checks
    changes = out[out.index("### Changes") :]
    first, rest = changes.split("<details><summary>")
    moved = [line for line in first.splitlines() if line.endswith("| yes |")]
    assert len(moved) == 1 and moved[0].startswith("| a | bleu ↑ |")
    assert re.match(r"\d+ other figures did not move beyond noise</summary>\n\n\| Method", rest) and "| yes |" not in rest
    _, _, err = called("evaluate", *flags, stdin=lines(made_up(40)))
    assert re.search(r"\d+ other figures did not move beyond noise; the JSON lines have them\n", err) and err.count(" no │") == 0


def test_every_form_has_the_same_names_rounding_groups_and_best(called):
    stream = lines(made_up(30))
    forms = {
        form: called("evaluate", "--format", form, "--versus", "b", "--ratings", "--intervals", stdin=stream)[1] for form in ("table", "markdown", "latex")
    }
    assert "gpt_rank" not in "".join(forms.values()) and "win_rate" not in "".join(forms.values())
    for layout in laid_out(library.evaluate(made_up(30), versus=["b"], ratings=True), figures=True):
        for text in (*layout.headings, *(kind for kind, _ in layout.groups)):
            assert text in forms["markdown"]
            assert text.replace("%", r"\%").replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$").replace("≥", r"$\geq$") in forms["latex"]
        for row in layout.rows:
            best = [figure for figure in row if figure.best]
            assert all(f"**{figure.text}** ({figure.low} to {figure.high})" in forms["markdown"] for figure in best if figure.low)
            assert all(rf"\textbf{{{figure.text}}}" in forms["latex"] for figure in best)
        for place in range(1, len(layout.columns)):
            # A column has one number of decimals.
            decimals = {len(row[place].text.partition(".")[2]) for row in layout.rows if isinstance(row[place].value, float)}
            assert len(decimals) <= 1, layout.headings[place]
    assert forms["latex"].count(r"\multicolumn{7}{l}{\textit{LLMs}}") == 1 and "| *LLMs* |" in forms["markdown"]
    assert "GPT-Rank ↓" in forms["table"] and "Win rate % ↑" in forms["table"]
