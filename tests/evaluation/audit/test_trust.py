"""`blendkit evaluate` on what judges are worth: tables, checks, forms for people, the page; numbers of known streams are in the tests beside."""

from __future__ import annotations

import csv
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from conftest import ROOT, lines, parsed
from simulated import biased_stream

import blendkit as library
from blendkit.evaluation.tables import TABLES

EVIL = "<i>blind|$x_1$"
PRICES = '[ours-7b]\nmodel = "openai:o"\nprice_in = 1.0\nprice_out = 4.0\n[other-7b]\nprice_in = 2\nprice_out = 8\n'
NEW = ("audit", "effects", "confusion", "reliability", "panel", "corrected", "style", "style effects", "frontier")


def stream(count: int = 160, seed: int = 1, labels: bool = True) -> list[dict]:
    """Records with a ranking and usage beside their verdicts; one judge has a hostile name."""
    records = biased_stream(seed, count)
    for number, record in enumerate(records):
        record |= {"instruction": "=1+1, say", "ranks": {"r": [1, 2] if number % 3 else [2, 1]}}
        record["verdicts"][EVIL] = record["verdicts"].pop("blind")
        for candidate in record["candidates"]:
            candidate["usage"] = {"prompt_tokens": 100, "completion_tokens": len(candidate["text"])}
        if not labels:
            del record["human"]
    return records


def of(rows: list[dict], table: str) -> list[dict]:
    return [row for row in rows if row["table"] == table]


@pytest.fixture(scope="module")
def everything(tmp_path_factory, called):
    """The folder and what one run with all flags gives."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("trust")
    (folder / "families.toml").write_text('"ours-" = "us"\n"other-" = "them"\n')
    (folder / "prices.toml").write_text(PRICES)
    flags = ["--audit", "human", "--families", folder / "families.toml", "--ratings", "--correct-with", "human", "--control", "length"]
    flags += ["--frontier", "r", "--prices", folder / "prices.toml", "--report", folder / "out"]
    checks = ["judges.ours-judge.kappa >= 0.1", "judges.best.ece < 0.5", "judges.best.kappa.low < judges.mean.accuracy", "judges.coin.kappa == 0"]
    code, out, err = called("evaluate", *flags, *(word for check in checks for word in ("--assert", check)), stdin=lines(stream()))
    assert code == 0, err
    return folder, parsed(out), err


def test_one_run_has_all_tables(everything):
    _, rows, err = everything
    for table in NEW:
        assert of(rows, table) and TABLES[table].title in err, table
    assert [row["holds"] for row in of(rows, "checks")] == [True] * 4
    # The best judge is one of the judges, whatever the longest candidate has.
    best = max((row for row in of(rows, "audit") if row["kind"] == "judge"), key=lambda row: row["kappa"])
    assert f"of the best judge, {best['method']} <" in of(rows, "checks")[2]["means"]
    own = next(row for row in of(rows, "effects") if (row["method"], row["effect"]) == ("ours-judge", "own family"))
    assert own["odds_ratio"] > 1
    assert [row["method"] for row in of(rows, "style effects")] == ["length"]
    assert {row["method"] for row in of(rows, "panel")} == {"ours-judge", "placer", EVIL, "all judges"}
    first, *_ = of(rows, "frontier")
    assert (first["method"], first["front"]) == ("ours-7b", True)
    mean = sum(len(c["text"]) for r in stream() for c in r["candidates"] if c["model"] == "ours-7b") / 160
    assert first["price"] == pytest.approx((100 * 1 + 4 * mean) / 1000, rel=1e-4)
    assert "|labels:human|" in err


def test_a_terminal_folds_what_is_long(everything):
    _, rows, err = everything
    assert re.search(rf"Labels by verdicts\s*\n{len(of(rows, 'confusion'))} rows; the JSON lines have them", err)
    shown = err[err.index("What sways a judge") : err.index("Labels by verdicts")]
    assert "own family" in shown and "headers" not in shown.partition("At equal label")[0] and " other odds ratios: " in shown


def test_the_page_says_what_judges_are_worth(everything):
    folder, rows, _ = everything
    text = (folder / "out" / "index.html").read_text()
    section = text[text.index('<section id="trust"><h2>Judges</h2>') : text.index('<section id="figures">')]
    assert section.count('<div class="card">') == 3 and section.count("<svg ") == 2
    kappa = next(row["kappa"] for row in of(rows, "audit") if row["method"] == "ours-judge")
    assert f"kappa {kappa:.2f}" in section and "leans to <b>its own family</b>" in section and "the longest candidate" in section
    assert '<a href="#trust">Judges</a>' in text and 'id="style-effects"' in text
    assert EVIL not in text.partition('<script type="application/json"')[0]
    for title, word in (("What sways a judge (odds ratios)", "own family"), ("Probabilities against labels, %", "the judge is sure by %")):
        assert word in section.partition(f"<figcaption>{title}</figcaption>")[2].partition("</svg>")[0]
    assert "$ for 1,000 records" in text.partition("<figcaption>Quality against price")[2].partition("</svg>")[0]


@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_every_form_has_them(called, form):
    code, out, _ = called("evaluate", "-q", "--audit", "human", "--correct-with", "human", "--control", "markdown", "--format", form, stdin=lines(stream(60)))
    assert code == 0
    assert {"markdown": "### Judges against labels, %", "latex": "% Judges against labels, %", "csv": ",accuracy,accuracy_decided,kappa,"}[form] in out
    assert EVIL not in out or form == "csv"


def test_checks_find_the_audits_figures(called):
    data = lines(stream(60))
    code, out, _ = called("evaluate", "-q", "--audit", "human", "--list-columns", stdin=data)
    assert code == 0
    listed = dict(line.split("\t") for line in out.splitlines() if line.startswith("judges."))
    row = next(row for row in library.evaluate(parsed(data), audit="human") if row["table"] == "audit" and row["method"] == "placer")
    assert float(listed["judges.placer.kappa"]) == row["kappa"] and float(listed["judges.placer.kappa.low"]) == row["intervals"]["kappa"][0]
    assert listed["judges.placer.ece"] == "null"
    for check, status, said in (
        ("judges.placer.kappa > 0.99", 3, "does not hold"),
        ("judges.placer.ece < 1", 65, "takes verdicts in both orders (consistency), with probabilities (brier, ece)"),
        ("judges.nobody.kappa < 1", 2, "no judges of the name 'nobody'; there are"),
    ):
        code, _, err = called("evaluate", "-q", "--audit", "human", "--assert", check, stdin=data)
        assert code == status and said in err, check
    code, _, err = called("evaluate", "-q", "--assert", "judges.best.kappa < 1", stdin=data)
    assert code == 2 and "--audit FIELD adds them" in err


def test_a_judge_that_got_worse_is_seen(called, tmp_path):
    records = stream(300)
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text(called("evaluate", "-q", "--audit", "human", stdin=lines(records))[1])
    for record in records:
        record["verdicts"]["placer"] = record["verdicts"][EVIL]
    code, out, err = called("evaluate", "-q", "--audit", "human", "--fail-if-worse", earlier, stdin=lines(records))
    changed = next(row for row in of(parsed(out), "compare") if (row["method"], row["column"], row["kind"]) == ("placer", "kappa", "judge"))
    assert code == 3 and changed["beyond_noise"] and "judges.placer.kappa " in err and "first_place" not in err
    assert not any(row["method"] in ("coin", "longest candidate") for row in of(parsed(out), "compare"))
    # Without the audit, its figures are gone.
    code, _, err = called("evaluate", "-q", "--fail-if-worse", earlier, stdin=lines(records))
    assert code == 3 and "judges.placer.kappa is gone" in err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_forms_go_to_people_and_come_back(called, tmp_path, ending):
    records, truth = stream(160, labels=False), {record["id"]: record["human"] for record in stream(160)}
    file = tmp_path / f"forms.{ending}"
    code, _, err = called("evaluate", "-q", "--label-next", file, "--label-count", "50", stdin=lines(records))
    assert code == 0 and f"50 pairs to label: {file}" in err

    def verdict(identity: str, a: int) -> str:
        return truth[identity] if a == 0 or truth[identity] == "tie" else "B" if truth[identity] == "A" else "A"

    if ending == "csv":
        assert "would be a formula in a spreadsheet" in err
        rows = list(csv.DictReader(file.read_text().splitlines()))
        assert rows[0]["prompt"] == "'=1+1, say" and all(not row["verdict"] for row in rows)
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows({**row, "verdict": verdict(row["id"], int(row["a"])).lower()} for row in rows)
    else:
        rows = [label | {"id": form["id"]} for form in parsed(file.read_text()) for label in form["human"]]
        forms = parsed(file.read_text())
        for form in forms:
            form["human"] = [label | {"verdict": verdict(form["id"], label["a"])} for label in form["human"]]
        file.write_text(lines([*forms, {"id": "elsewhere", "human": [{"a": 0, "b": 1, "verdict": "A"}]}]))
    assert len(rows) == 50 and len({float(row["weight"]) for row in rows}) > 1
    code, out, err = called("evaluate", "-q", "--audit", "human", "--correct-with", "human", "--forms", file, stdin=lines(records))
    assert code == 0, err
    corrected = of(parsed(out), "corrected")
    assert [row["labels"] for row in corrected] == [50, 50]
    # The weights count: they are not those of plain means.
    sign = {"A": 100.0, "tie": 50.0, "B": 0.0}
    ours = {record["id"]: record["candidates"][0]["model"] == "ours-7b" for record in records}
    won = [sign[truth[row["id"]]] if ours[row["id"]] else 100 - sign[truth[row["id"]]] for row in rows]
    weights = [float(row["weight"]) for row in rows]
    expected = sum(one * weight for one, weight in zip(won, weights, strict=True)) / sum(weights)
    assert next(row["human"] for row in corrected if row["method"] == "ours-7b") == pytest.approx(expected, abs=1e-3)
    assert "drawn by doubt" in err and ("1 of 51 labelled records are not in the stream" in err) == (ending == "jsonl")


def test_a_forms_label_takes_the_place_of_the_records_own(tmp_path):
    record = {"id": "x", "instruction": "i", "candidates": [{"model": name, "text": name} for name in "abc"]}
    record |= {"human": [{"a": 0, "b": 1, "verdict": "B"}, {"a": 1, "b": 2, "verdict": "A"}]}
    record["verdicts"] = {"j": [{"a": a, "b": b, "verdict": "A"} for a, b in ((0, 1), (0, 2), (1, 2))]}
    forms = tmp_path / "f.jsonl"
    forms.write_text(json.dumps({"id": "x", "human": [{"a": 1, "b": 0, "verdict": "B"}, {"a": 0, "b": 2, "verdict": None}]}))
    audit = next(row for row in library.evaluate([record], audit="human", forms=forms) if row["table"] == "audit")
    assert (audit["pairs"], audit["accuracy"]) == (2, 100.0)
    assert record["human"][0]["verdict"] == "B"
    forms.write_text(json.dumps({"id": "x", "human": [{"a": 1, "b": 3, "verdict": "B"}]}))
    with pytest.raises(library.DataError, match=r"human: --forms .*f\.jsonl has a label of 1 and 3, expected two of 3"):
        library.evaluate([record], audit="human", forms=forms)


def test_a_panel_is_weighed_from_three_judges_on_and_is_none_of_its_judges():
    records = stream(30)
    for record in records:
        record["verdicts"]["panel"] = record["verdicts"]["placer"][:1]

    def panel(count: int) -> list[str]:
        few = [{**record, "verdicts": dict(list(record["verdicts"].items())[-count:])} for record in records]
        return sorted(row["method"] for row in library.evaluate(few, ratings=True) if row["table"] == "panel")

    assert panel(4) == sorted(["ours-judge", "placer", EVIL, "all judges"]) and panel(3) == []
    many = [{**record, "verdicts": {f"j{number}": record["verdicts"]["placer"] for number in range(101)}} for record in records[:2]]
    with pytest.warns(UserWarning, match="no table of the panel: more than 100 judges"):
        rows = library.evaluate(many, ratings=True)
    assert of(rows, "ratings") and not of(rows, "panel")


def test_junit_has_checks_and_bad_records(called):
    data = lines(stream(20)) + '{"id": "x", "candidates": [{"model": "m", "text": null}]}\n'
    flags = ("--format", "junit", "--audit", "human", "--assert", "judges.placer.kappa < -2", "--expect", "20")
    code, out, _ = called("evaluate", "-q", "--on-error", "skip", *flags, stdin=data)
    (suite,) = ElementTree.fromstring(out)
    assert code == 70 and {name: suite.get(name) for name in ("tests", "failures", "errors")} == {"tests": "3", "failures": "1", "errors": "1"}
    bad = suite.findall("testcase")[-1]
    assert bad.get("name") == "<stdin>:21" and bad.find("error").get("message").startswith("candidates[0].text: expected a string")
    code, out, _ = called("evaluate", "-q", *flags, stdin=lines(stream(20)))
    (suite,) = ElementTree.fromstring(out)
    assert code == 3 and (suite.get("tests"), suite.get("failures")) == ("2", "1")


@pytest.mark.parametrize(
    ("flags", "content", "status", "said"),
    [
        (["--families", "FILE"], "", 2, "expected --audit FIELD with it"),
        (["--prices", "FILE"], "", 2, "expected --frontier RANKING with it"),
        (["--forms", "FILE"], "", 2, "expected --audit, --correct-with or --label-next with it"),
        (["--control", "length,size"], "", 2, "--control length,size: expected length or markdown, or both with a comma, got 'size'"),
        (["--label-next", "-"], "", 2, "expected a file"),
        (["--label-next", "nowhere/f.csv"], "", 74, "there is no such folder"),
        (["--label-count", "0"], "", 2, "--label-count"),
        (["--audit", "human", "--families", "FILE"], "gpt = 3", 65, "file: gpt: expected a string, got an integer"),
        (["--audit", "human", "--families", "FILE"], "gpt", 65, "file: not TOML"),
        (["--audit", "human", "--families", "nowhere"], "", 66, "--families nowhere: No such file"),
        (["--frontier", "r", "--prices", "FILE"], "[m]\nprice_in = 1", 65, "file: m.price_out: expected a number beside the other price"),
        (["--frontier", "r", "--prices", "FILE"], "[m]\nprice_in = -1", 65, "file: m.price_in: expected"),
        (["--frontier", "zz"], "", 65, "<stdin>:1: ranks.zz: expected ranks of 2 candidates"),
        (["--frontier", "r"], "", 65, "<stdin>:1: candidates[0].usage.cost: expected an amount in $"),
        (["--audit", "instruction"], "", 65, "<stdin>:1: instruction: expected A, B or tie"),
        (["--audit", "human", "--forms", "FILE"], '{"id": "0"}', 65, "file:1: human: expected an array, got null"),
        (["--audit", "human", "--forms", "FILE"], '{"id": "0", "human": [{"a": 0, "b": 1, "verdict": "C"}]}', 65, "file:1: human[0].verdict"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(called, tmp_path, monkeypatch, flags, content, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text(content)
    code, out, err = called("evaluate", "-q", *("file" if flag == "FILE" else flag for flag in flags), stdin=lines(stream(3)))
    assert (code, out) == (status, "") and said in err and err.count("\n") == 1, err


def test_a_stream_without_verdicts_or_labels_says_so(called):
    records = [{key: value for key, value in record.items() if key not in ("verdicts", "human")} for record in stream(3)]
    code, _, err = called("evaluate", "-q", "--audit", "human", "--correct-with", "human", "--control", "length", stdin=lines(records))
    assert code == 0 and "3 of 3 records have no label" in err and "--correct-with and --control would look at" in err
    code, _, err = called("evaluate", "-q", "--frontier", "r", stdin=lines(records))
    assert code == 65 and "--frontier measures quality by the oracle" in err


@pytest.mark.slow
def test_the_memory_of_a_hundred_thousand_verdicts_is_bounded(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    monkeypatch.delitem(sys.modules, "trust", raising=False)
    from trust import measured

    seconds, memory = measured(100_000, tmp_path)
    assert memory < 600, (seconds, memory)
