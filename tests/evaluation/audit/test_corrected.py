"""Win rates corrected by people's labels, and which pairs to label: against sums spelled out here, and on streams whose truth is known."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple

import numpy as np
import orjson
import pytest

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.evaluation.audit.corrected import CorrectedWinRates, corrected
from blendkit.evaluation.audit.label_next import LabelNext, forms_as_csv, labels_from_csv


def drawn(seed: int, quality: float, labelled: int = 100, size: int = 1100, rate: float = 0.6):
    """Truth y of all pairs, a judge's word f that is the truth in `quality` of them and else a guess, and the labels of the first ones."""
    g = np.random.default_rng(seed)
    y = (g.random(size) < rate).astype(float)
    f = np.where(g.random(size) < quality, y, (g.random(size) < 0.5).astype(float))
    return y, f, np.where(np.arange(size) < labelled, y, np.nan)


def test_the_estimate_is_that_of_ppi_plus_plus_spelled_out():
    _, f, labels = drawn(0, 0.7)
    found = corrected(np.arange(1100), f, labels, np.ones(1100))
    n, big = 100, 1000
    y, of_labelled, rest = labels[:n], f[:n], f[n:]
    # Angelopoulos et al. 2023, section 6: λ = cov(Y, f) / ((1 + n/N) var(f)); the estimate is λ mean(f of the rest) + mean(Y - λ f).
    covariance = sum((one - y.mean()) * (other - of_labelled.mean()) for one, other in zip(y, of_labelled, strict=True)) / n
    power = covariance / ((1 + n / big) * f.var())
    # Over all pairs instead of the rest, the same sum has λ (n + N) / N.
    assert found.power == pytest.approx(power * (n + big) / big, rel=0.05)
    power = found.power * big / (n + big)
    assert found.corrected.share == pytest.approx(power * rest.mean() + (y - power * of_labelled).mean(), abs=1e-12)
    variance = power**2 * rest.var() / big + (y - power * of_labelled).var() / n
    assert found.corrected.error == pytest.approx(np.sqrt(variance * n / (n - 2)), rel=0.01)
    assert (found.human.share, found.human.error, found.human.degrees) == pytest.approx((y.mean(), y.std(ddof=1) / 10, 99))
    assert (found.judge.share, found.judge.error) == pytest.approx((f.mean(), f.std(ddof=1) / np.sqrt(1100)))
    assert found.corrected.interval() == pytest.approx([found.corrected.share + side * 1.98447 * found.corrected.error for side in (-1, 1)], abs=1e-4)
    assert found.effective == pytest.approx(n * found.human.error**2 / found.corrected.error**2) and found.gains


def test_pairs_of_one_record_are_no_more_evidence_than_one():
    _, f, labels = drawn(0, 0.7)
    once = corrected(np.arange(1100), f, labels, np.ones(1100))
    twice = corrected(np.repeat(np.arange(1100), 2), np.repeat(f, 2), np.repeat(labels, 2), np.ones(2200))
    assert astuple(twice.corrected) == pytest.approx(astuple(once.corrected)) and twice.labels == 200
    # Labelled in part: the record's other pair is no independent one either.
    part = np.stack([labels, np.full(1100, np.nan)], axis=1).ravel()
    assert corrected(np.repeat(np.arange(1100), 2), np.repeat(f, 2), part, np.ones(2200)).corrected.error == pytest.approx(once.corrected.error, rel=1e-6)


@pytest.mark.parametrize("quality", [0.0, 0.5, 0.9])
def test_corrected_intervals_are_never_wider_and_narrower_with_a_good_judge(quality):
    ratios = []
    for seed in range(40):
        _, f, labels = drawn(seed, quality)
        found = corrected(np.arange(1100), f, labels, np.ones(1100))
        ratios.append(found.corrected.error / found.human.error)
        assert found.effective > 98
    assert max(ratios) < (1.01, 1.0, 0.8)[int(quality * 2 + 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize("quality", [0.0, 0.5, 0.9])
def test_corrected_intervals_cover_the_truth(quality):
    covered, ratios = 0, []
    for seed in range(2000):
        _, f, labels = drawn(seed, quality)
        found = corrected(np.arange(1100), f, labels, np.ones(1100))
        low, high = found.corrected.interval()
        covered += low <= 0.6 <= high
        ratios.append(found.corrected.error / found.human.error)
    assert 0.93 <= covered / 2000 <= 0.97
    assert max(ratios) <= 1.05 and np.mean(ratios) < (1.01, 0.95, 0.6)[int(quality * 2 + 0.5)]


def test_where_nothing_is_known_there_is_no_interval():
    y, f, labels = drawn(0, 0.9, labelled=10)
    assert np.isnan(corrected(np.arange(1100), f, labels, np.ones(1100)).corrected.error)
    alike = np.where(np.arange(1100) < 50, 1.0, np.nan)
    found = corrected(np.arange(1100), f, alike, np.ones(1100))
    assert found.human.share == 1 and np.isnan(found.human.error) and np.isnan(found.corrected.error) and found.gains is None
    none = corrected(np.arange(1100), f, np.full(1100, np.nan), np.ones(1100))
    assert np.isnan(none.human.share) and np.isnan(none.corrected.share) and none.judge.share == f.mean()
    constant = corrected(np.arange(1100), np.full(1100, 0.5), np.where(np.isnan(labels), np.nan, y), np.ones(1100))
    assert constant.power == 0 and constant.corrected.share == constant.human.share


def test_a_judge_that_hedges_counts_for_more_than_it_says():
    y, _, labels = drawn(0, 1.0)
    found = corrected(np.arange(1100), 0.5 + 0.2 * (y - 0.5) + np.tile([0.01, -0.01], 550), labels, np.ones(1100))
    assert found.power > 4 and found.corrected.share == pytest.approx(y.mean(), abs=0.005) and found.effective > 800
    against = corrected(np.arange(1100), 1 - y, labels, np.ones(1100))
    assert against.power == 0 and against.gains is False


def match(number: int, sides, judged: float | None, human=None) -> dict:
    record = {"id": str(number), "instruction": "i", "candidates": [{"model": model, "text": f"={model}{number}"} for model in sides]}
    if judged is not None:
        record["verdicts"] = {"j": [{"a": 0, "b": 1, "verdict": "A" if judged > 0.5 else "B", "probability": judged}]}
    return record | ({} if human is None else {"human": human})


def test_win_rates_of_models_and_of_pairs_of_them():
    g = np.random.default_rng(1)
    strengths = {"x": 1.0, "y": 0.0, "z": -1.0}
    rates, notes = CorrectedWinRates("j"), []
    for number in range(900):
        sides = list(g.permutation(list(strengths)))[:2]
        p = 1 / (1 + np.exp(strengths[sides[1]] - strengths[sides[0]]))
        human = "A" if g.random() < p else "B"
        # The judge knows much, and likes what stands first.
        judged = float(np.clip(0.6 + 0.35 * (1 if human == "A" else -1) * (g.random() < 0.8) - 0.001, 0.0, 1.0))
        record = match(number, sides, judged, human if number < 300 else None)
        rates.add(record, record["verdicts"])
    rows = {(row["method"], row["over"]): row for row in rates.rows(notes)}
    orjson.dumps(list(rows.values()))  # plain numbers
    assert len(rows) == 6 and not notes
    row = rows["x", "y"] if ("x", "y") in rows else rows["y", "x"]
    share = 100 / (1 + np.exp(-1)) if row["method"] == "x" else 100 - 100 / (1 + np.exp(-1))
    low, high = row["intervals"]["corrected"]
    assert low <= share <= high and high - low < row["intervals"]["human"][1] - row["intervals"]["human"][0]
    overall = rows["x", None]
    assert overall["labels_worth"] > 1.3 * overall["labels"] and overall["gains"] and overall["pairs"] > overall["labels"] > 100
    assert sum(row["pairs"] for (_, over), row in rows.items() if over is None) == 1800
    useless = CorrectedWinRates("j")
    for number in range(400):
        record = match(number, ("m", "n"), float(g.random()), "A" if g.random() < 0.5 else "tie")
        if number > 100:
            del record["human"]
        useless.add(record, record["verdicts"])
    assert [row["gains"] for row in useless.rows(notes)] == [False, False]
    assert notes == ["judge:j tells nothing beyond the labels on the win rate of m, n: more labels would"]


def test_what_to_label_is_drawn_by_doubt_and_weighed_back():
    chooser = LabelNext(30)
    for number in range(300):
        sure = number % 3 > 0
        record = match(number, ("m", "n"), 0.99 if sure else 0.5)
        chooser.add(record, record["verdicts"])
    forms = chooser.forms()
    labels = [label for form in forms for label in form["human"]]
    unsure = sum(int(form["id"]) % 3 == 0 for form in forms)
    assert len(labels) == 30 and unsure > 15 and {label["verdict"] for label in labels} == {None}
    assert {(label["a"], label["b"]) for label in labels} == {(0, 1), (1, 0)}
    # Pairs of the one kind are 5 times as likely (√0.25 to the least doubt, 0.1), and count for 5 times less.
    weights = {int(form["id"]) % 3 == 0: form["human"][0]["weight"] for form in forms}
    assert weights[False] == pytest.approx(5 * weights[True], rel=0.01) and weights[True] == pytest.approx((100 * 0.5 + 200 * 0.1) / 300 / 0.5, rel=1e-4)
    assert [form["id"] for form in forms] == sorted((form["id"] for form in forms), key=int)
    again = LabelNext(30)
    for number in range(300):
        record = match(number, ("m", "n"), 0.99 if number % 3 else 0.5)
        again.add(record, record["verdicts"])
    assert again.forms() == forms


def test_judges_that_disagree_are_doubt_and_labelled_pairs_are_left_out():
    chooser = LabelNext(10)
    for number in range(40):
        record = match(number, ("m", "n"), 1.0, "A" if number < 20 else None)
        record["verdicts"]["k"] = [{"a": 0, "b": 1, "verdict": "B" if number % 4 == 0 else "A"}]
        chooser.add(record, record["verdicts"])
    ids = [int(form["id"]) for form in chooser.forms()]
    assert len(ids) == 10 and min(ids) >= 20 and sum(number % 4 == 0 for number in ids) >= 4
    weighed = match(0, ("m", "n"), 1.0, [{"a": 0, "b": 1, "verdict": "A", "weight": 2.0}])
    with pytest.raises(RecordError, match="a second uneven draw beside them has none"):
        chooser.add(weighed, weighed["verdicts"])
    for wrong in (lambda: LabelNext(0), lambda: LabelNext(3, "judge:j")):
        with pytest.raises(UsageError):
            wrong()


def test_a_form_goes_out_as_csv_and_comes_back_filled_in():
    chooser = LabelNext(4)
    for number in range(6):
        record = match(number, ("m", "n"), 0.5) | {"id": f"={number}"}
        chooser.add(record, record["verdicts"])
    text, marked = forms_as_csv(chooser.forms())
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert marked == 12 and rows[0]["prompt"] == "i" and rows[0]["answer_a"].startswith("'=")
    for row, word in zip(rows, ("A", "b", " Tie ", ""), strict=True):
        row["verdict"] = word
    # As spreadsheets of some countries save it: a byte order mark, semicolons, another line end.
    writer = csv.DictWriter(file := io.StringIO(newline=""), rows[0], delimiter=";", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    found = labels_from_csv("form.csv", io.BytesIO(b"\xef\xbb\xbf" + file.getvalue().encode()))
    assert [label["verdict"] for labels in found.values() for label in labels] == ["A", "B", "tie"] and all(name.startswith("=") for name in found)
    assert {(label["a"], label["b"]) for labels in found.values() for label in labels} <= {(0, 1), (1, 0)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,a,b\n1,0,1\n", "form.csv:2: expected the columns id, a, b, prompt, answer_a, answer_b, verdict, weight, but there is no verdict"),
        ("id,a,b,verdict\n\n1,0,1,C\n", "form.csv:3: verdict: expected A, B or tie, got 'C'"),
        ("id,a,b,verdict\n1,x,1,A\n", "form.csv:2: expected whole numbers"),
        ("id,a,b,verdict\n1,-1,1,A\n", "form.csv:2: a: expected an integer >= 0"),
        ("id,a,b,verdict,weight\n1,0,1,A,nan\n", "form.csv:2: weight: expected a number > 0"),
        ("id,a,b,verdict\n1,0,1\n", "form.csv:2: expected 4 cells"),
        ('id,a,b,verdict\n1,0,1,"A\n', "form.csv:2: unexpected end of data"),
    ],
)
def test_a_form_that_is_none_is_told_with_its_line(text, says):
    with pytest.raises(DataError) as told:
        labels_from_csv("form.csv", io.BytesIO(text.encode()))
    assert says in str(told.value)


def doubtful(seed: int, even: bool) -> tuple[float, float]:
    """The corrected win rate and its error where 60 of 600 pairs are labelled: drawn by doubt, or the first ones."""
    g = np.random.default_rng(seed)
    p = np.where(g.random(600) < 0.7, 0.95, 0.5)
    truth = g.random(600) < p
    records = [match(number, ("m", "n"), float(p[number])) for number in range(600)]
    chooser = LabelNext(60, seed=seed)
    for record in records:
        chooser.add(record, record["verdicts"])
    labels = {int(form["id"]): form["human"] for form in chooser.forms()}
    if even:
        labels = {number: [{"a": 0, "b": 1}] for number in range(60)}
    rates = CorrectedWinRates("j")
    for number, record in enumerate(records):
        if number in labels:
            (label,) = labels[number]
            record["human"] = [{**label, "verdict": "A" if truth[number] == (label["a"] == 0) else "B"}]
        rates.add(record, record["verdicts"])
    row = rates.rows([])[0]
    low, high = row["intervals"]["corrected"]
    return row["corrected"], (high - low) / 2


@pytest.mark.slow
def test_labels_drawn_by_doubt_narrow_the_interval_and_it_still_covers_the_truth():
    truth = 100 * (0.7 * 0.95 + 0.3 * 0.5)
    by_doubt, evenly = (np.array([doubtful(seed, even) for seed in range(100)]) for even in (False, True))
    assert 0.9 <= np.mean(np.abs(by_doubt[:, 0] - truth) <= by_doubt[:, 1]) <= 0.99
    assert abs(by_doubt[:, 0].mean() - truth) < 1 and by_doubt[:, 1].mean() < 0.97 * evenly[:, 1].mean()
