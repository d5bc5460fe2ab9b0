"""Tables 2 and 3, every cell against an independent computation spelled out in numpy, and the tables that go with them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import lines, parsed
from made_up import MODELS, made_up, with_comparisons

import blendkit as library


def by_hand(record: dict) -> tuple[np.ndarray, np.ndarray]:
    """GPT-Rank's ranks and the pairwise margins of a record, from `cmp_results` alone."""
    models = [candidate["model"] for candidate in record["candidates"]]
    n = len(models)
    m = np.zeros((n, n))
    for key, word in record["cmp_results"].items():
        i, j = (models.index(name) for name in key.split(","))
        m[i, j], m[j, i] = {"A is better": (1, -1), "B is better": (-1, 1), "Same good": (0.5, 0.5), "Same bad": (-0.5, -0.5)}[word]
    score = np.array([sum(m[i, j] - m[j, i] for j in range(n)) for i in range(n)])
    return np.array([1 + sum(other > own for other in score) for own in score]), m - m.T


def average_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < own).sum() + ((values == own).sum() + 1) / 2 for own in values])


def correlation(a, b) -> float:
    a, b = np.asarray(a, float) - np.mean(a), np.asarray(b, float) - np.mean(b)
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())) if (a * a).sum() and (b * b).sum() else math.nan


def expected_table_2(records: list[dict], versus: str) -> dict[str, dict[str, float]]:
    models = [candidate["model"] for candidate in records[0]["candidates"]]
    ranks, margins = zip(*(by_hand(record) for record in records), strict=True)
    metrics = list(records[0]["candidates"][0].get("scores", {}))
    picks: dict[str, list[int]] = {model: [models.index(model)] * len(records) for model in models}
    for metric in metrics:
        values = [[candidate["scores"][metric] for candidate in record["candidates"]] for record in records]
        picks[f"oracle ({metric})"] = [int(np.argmin(row) if metric == "perplexity" else np.argmax(row)) for row in values]
    picks["oracle (GPT-Rank)"] = [int(np.argmin(row)) for row in ranks]
    for name in records[0].get("ranks", {}):
        picks[name] = [int(np.argmin(record["ranks"][name])) for record in records]
    table = {}
    for name, chosen in picks.items():
        row = {metric: np.mean([record["candidates"][k]["scores"][metric] for record, k in zip(records, chosen, strict=True)]) for metric in metrics}
        row["gpt_rank"] = np.mean([rank[k] for rank, k in zip(ranks, chosen, strict=True)])
        row["top3"] = 100 * np.mean([rank[k] <= 3 for rank, k in zip(ranks, chosen, strict=True)])
        row[f"not_worse_than_{versus}"] = 100 * np.mean([margin[k, models.index(versus)] >= 0 for margin, k in zip(margins, chosen, strict=True)])
        row["characters"] = np.mean([len(record["candidates"][k]["text"]) for record, k in zip(records, chosen, strict=True)])
        table[name] = row
    return table


def expected_table_3(records: list[dict]) -> dict[str, dict[str, float]]:
    oracle = np.array([by_hand(record)[0] for record in records])
    rankings = {name: np.array([record["ranks"][name] for record in records]) for name in records[0].get("ranks", {})}
    for metric in records[0]["candidates"][0].get("scores", {}):
        values = np.array([[candidate["scores"][metric] for candidate in record["candidates"]] for record in records])
        values = -values if metric == "perplexity" else values
        rankings[f"score:{metric}"] = np.array([[1 + (row > own).sum() for own in row] for row in values])
    table = {}
    for name, found in rankings.items():
        columns = range(oracle.shape[1])
        row = {"pearson": 100 * np.mean([correlation(found[:, k], oracle[:, k]) for k in columns])}
        row["spearman"] = 100 * np.mean([correlation(average_ranks(found[:, k]), average_ranks(oracle[:, k])) for k in columns])
        row["footrule"] = np.mean([np.abs(h - o).sum() for h, o in zip(found, oracle, strict=True)])
        row["pearson_per_example"] = 100 * np.nanmean([correlation(h, o) for h, o in zip(found, oracle, strict=True)])
        row["spearman_per_example"] = 100 * np.nanmean([correlation(average_ranks(h), average_ranks(o)) for h, o in zip(found, oracle, strict=True)])
        table[name] = row
    return table


def compared(rows: list[dict], table: int, expected: dict[str, dict[str, float]]) -> None:
    found = {row["method"]: row for row in rows if row["table"] == table}
    assert set(found) == set(expected)
    for method, cells in expected.items():
        shown = {key: value for key, value in found[method].items() if key not in ("table", "method", "kind", "examples", "intervals")}
        assert shown == {key: pytest.approx(value, abs=6e-5) for key, value in cells.items()}, method


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_every_cell_of_the_200_made_up_records(blendkit):
    records = made_up()
    done = blendkit("evaluate", "--versus", "b", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    rows = parsed(done.stdout)
    compared(rows, 2, expected_table_2(records, "b"))
    compared(rows, 3, expected_table_3(records))
    llms = [row["gpt_rank"] for row in rows if row["table"] == 2 and row["kind"] == "model"]
    assert llms == sorted(llms)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_every_cell_of_the_reference_implementations_verdicts(golden, blendkit):
    values = json.loads((golden / "ranking.json").read_text())["gpt_rank"]
    rng = np.random.default_rng(0)
    records = []
    for number, record in enumerate(values["records"]):
        candidates = [{**candidate, "text": candidate.get("text", ""), "scores": {"bleu": float(rng.normal())}} for candidate in record["candidates"]]
        ranks = {"r": [int(rank) for rank in rng.permutation(4) + 1]}
        records.append({"id": str(number), "instruction": "i", "candidates": candidates, "cmp_results": json.dumps(record["cmp_results"]), "ranks": ranks})
    rows = parsed(blendkit("evaluate", "--versus", "m1", stdin=lines(records)).stdout)
    plain = [{**record, "cmp_results": json.loads(record["cmp_results"])} for record in records]
    compared(rows, 2, expected_table_2(plain, "m1"))
    compared(rows, 3, expected_table_3(plain))
    for model in ("m1", "m2", "m3", "m4"):
        mean = next(row["gpt_rank"] for row in rows if row["table"] == 2 and row["method"] == model)
        assert mean == pytest.approx(np.mean(values["ranks"][model]), abs=6e-5)


def test_figure_1_shares_ties_and_sums_to_100():
    records = made_up(60)
    rows = library.evaluate(records)
    shares = {row["method"]: row["share"] for row in rows if row["table"] == "firsts"}
    expected = dict.fromkeys(MODELS, 0.0)
    for record in records:
        ranks, _ = by_hand(record)
        for k in np.flatnonzero(ranks == 1):
            expected[MODELS[k]] += 100 / (ranks == 1).sum() / 60
    assert shares == {model: pytest.approx(value, abs=1e-3) for model, value in expected.items()}
    assert sum(shares.values()) == pytest.approx(100, abs=1e-2)
    for row in rows:
        if row["table"] == "distribution":
            place = MODELS.index(row["method"])
            at = [by_hand(record)[0][place] for record in records]
            assert [row[f"rank {k}"] for k in range(1, 5)] == [pytest.approx(100 * at.count(k) / 60, abs=1e-3) for k in range(1, 5)]


def test_a_score_as_oracle_beside_a_judge():
    records = made_up(30)
    rows = library.evaluate(records, oracle="bleu")
    table2 = {row["method"]: row for row in rows if row["table"] == 2}
    by_bleu = [[1 + sum(o["scores"]["bleu"] > c["scores"]["bleu"] for o in record["candidates"]) for c in record["candidates"]] for record in records]
    assert table2["a"]["rank_by_bleu"] == pytest.approx(np.mean([ranks[0] for ranks in by_bleu]), abs=1e-4)
    assert table2["a"]["gpt_rank"] == pytest.approx(np.mean([by_hand(record)[0][0] for record in records]), abs=1e-4)
    assert table2["a"]["top3"] == pytest.approx(100 * np.mean([ranks[0] <= 3 for ranks in by_bleu]), abs=1e-3)
    assert {row["method"] for row in rows if row["table"] == 3} == {"r", "score:perplexity", "judge:mixinstruct"}
    assert [row["method"] for row in library.evaluate(records, oracle="score:bleu")] == [row["method"] for row in rows]


def test_an_oracle_that_the_stream_lacks_is_bad_data(blendkit):
    done = blendkit("evaluate", "--oracle", "gpt4_pref", stdin=lines(made_up(2)))
    assert done.returncode == 65
    assert "<stdin>:1: candidates[0].scores.gpt4_pref: expected a number, as --oracle gpt4_pref asks for it of every candidate" in done.stderr
    done = blendkit("evaluate", "--oracle", "judge:gpt", stdin=lines(made_up(2)))
    assert done.returncode == 65
    assert "verdicts.gpt: not there, found mixinstruct" in done.stderr


def test_several_candidates_of_one_model_count_by_their_mean():
    record = made_up(1)[0]
    for number, candidate in enumerate(record["candidates"]):
        candidate["scores"] = {"q": float(number)}
        candidate["model"] = "a" if number < 2 else candidate["model"]
    del record["cmp_results"]
    row = next(row for row in library.evaluate([record]) if row["method"] == "a")
    assert row["q"] == 0.5 and row["examples"] == 1


def test_aggregations_of_full_comparisons(blendkit):
    records = with_comparisons(made_up(40))
    rows = parsed(blendkit("evaluate", "--aggregations", stdin=lines(records)).stdout)
    table2 = {row["method"]: row for row in rows if row["table"] == 2}
    expected: dict[str, list[int]] = {"p: max-logits": [], "p: max-wins": []}
    for record in records:
        m = np.zeros((4, 4))
        for i, j, logit in record["comparisons"]["p"]["pairs"]:
            m[i, j] = logit
        ranks, _ = by_hand(record)
        expected["p: max-logits"].append(ranks[int(np.argmax((m - m.T).sum(axis=1)))])
        expected["p: max-wins"].append(ranks[int(np.argmax((m > 0).sum(axis=1) + (m < 0).sum(axis=0)))])
    for name, ranks in expected.items():
        assert table2[name]["gpt_rank"] == pytest.approx(np.mean(ranks), abs=1e-4)
    # The bubble run is the one that `pair --schedule bubble` would have done: its winner beats whom it met last.
    assert table2["p: bubble"]["examples"] == 40
    assert {row["method"] for row in rows if row["table"] == 3} >= {"p: max-logits", "p: max-wins"}
    transitive = made_up(20)
    for record in transitive:
        record["comparisons"] = {"p": {"pairs": [[i, j, float(i - j)] for i in range(4) for j in range(4) if i != j]}}
    rows = parsed(blendkit("evaluate", "--aggregations", stdin=lines(transitive)).stdout)
    assert {row["method"]: row["gpt_rank"] for row in rows if row["table"] == 2}["p: bubble"] == pytest.approx(
        np.mean([by_hand(record)[0][3] for record in transitive]), abs=1e-4
    )


def test_elo_agrees_with_bradley_terry_on_many_games():
    from blendkit.evaluation.elo import online_elo

    rng = np.random.default_rng(0)
    strengths = np.array([-0.8, 0.0, 0.2, 0.6])
    first = rng.integers(4, size=6000)
    second = (first + rng.integers(1, 4, size=6000)) % 4
    won = (rng.random(6000) < 1 / (1 + np.exp(strengths[second] - strengths[first]))).astype(float)
    middle, low, high = online_elo(first, second, won, np.repeat(np.arange(1000), 6), 4, seed=0)
    expected = 1500 + 400 / math.log(10) * (strengths - strengths.mean())
    np.testing.assert_allclose(middle, expected, atol=25)
    assert ((low < expected) & (expected < high)).all()
    again = online_elo(first, second, won, np.repeat(np.arange(1000), 6), 4, seed=0)
    assert (again[0] == middle).all()


def of_length(count: int, effect: float, seed: int = 0) -> list[dict]:
    """m against base, equally good but for a judge that likes length; m is longer."""
    rng = np.random.default_rng(seed)
    surplus = rng.normal(40, 40, size=count).round().astype(int)
    records = []
    for number in range(count):
        p = 1 / (1 + math.exp(-effect * math.tanh(surplus[number] / surplus.std())))
        candidates = [{"model": "m", "text": "x" * int(300 + surplus[number])}, {"model": "base", "text": "x" * 300}]
        verdict = "A" if rng.random() < p else "B"
        records.append({"id": str(number), "candidates": candidates, "verdicts": {"j": [{"a": 0, "b": 1, "verdict": verdict}]}})
    return records


def test_length_controlled_win_rates_take_the_length_out(blendkit):
    done = blendkit("evaluate", "--length-controlled", "base", stdin=lines(of_length(1500, 2.0)))
    assert done.returncode == 0, done.stderr
    row = next(row for row in parsed(done.stdout) if row["table"] == "length")
    assert row["win_rate"] > 68
    assert row["length_controlled"] == pytest.approx(50, abs=5)
    assert row["low"] < row["length_controlled"] < row["high"]
    assert row["length_effect"] == pytest.approx(2.0, abs=0.5)
    without = next(
        row for row in parsed(blendkit("evaluate", "--length-controlled", "base", stdin=lines(of_length(1500, 0.0))).stdout) if row["table"] == "length"
    )
    assert without["length_controlled"] == pytest.approx(without["win_rate"], abs=5)
    assert "Win rates at equal length (our regression, not AlpacaEval 2's estimator)" in done.stderr


def test_length_controlled_by_an_independent_fit():
    """The last regression's optimum, found by gradient ascent on scikit-learn's objective (weights penalised, intercept not)."""
    from blendkit.evaluation.length import _fit

    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 2))
    won = rng.choice([0.0, 0.5, 1.0], size=300)
    rate, effect = _fit(features, won)
    b, w = 0.0, np.zeros(2)
    for _ in range(20_000):
        p = 1 / (1 + np.exp(-(features @ w + b)))
        b += 0.005 * (won - p).sum()
        w += 0.005 * (features.T @ (won - p) - w)
    assert effect == pytest.approx(w[0], abs=1e-3)
    assert rate == pytest.approx(np.mean(1 / (1 + np.exp(-(features[:, 1] * w[1] + b)))), abs=1e-4)


def test_length_control_needs_a_model_that_was_judged(blendkit):
    done = blendkit("evaluate", "--length-controlled", "zz", stdin=lines(of_length(10, 1.0)))
    assert done.returncode == 2
    assert "--length-controlled zz: expected a model that the judge compared with others; there are m, base" in done.stderr


def test_the_judges_of_a_stream(blendkit):
    records = made_up(10)
    for record in records:
        shown = [{"a": 0, "b": 1, "verdict": "A", "shown": [0, 1]}, {"a": 0, "b": 1, "verdict": "B", "shown": [1, 0]}]
        record["verdicts"] = {"first": shown, "other": [{"a": 0, "b": 1, "verdict": "tie-good", "shown": [0, 1]}]}
        del record["cmp_results"]
    rows = {row["method"]: row for row in parsed(blendkit("evaluate", "--ratings", stdin=lines(records)).stdout) if row["table"] == "judges"}
    assert rows["first"] == {"table": "judges", "method": "first", "verdicts": 20, "ties": 0.0, "unparsed": 0, "first_place_rate": 100.0, "consistency": 0.0}
    assert rows["other"]["first_place_rate"] is None and rows["other"]["ties"] == 100
    assert rows["all judges"]["verdicts"] == 10


def test_what_earlier_stages_took(blendkit, tmp_path):
    ranked = blendkit("rank", "--by", "score:bleu", "--manifest", tmp_path / "m.json", stdin=lines(made_up(5)))
    done = blendkit("evaluate", "--manifests", tmp_path / "m.json", stdin=ranked.stdout)
    row = next(row for row in parsed(done.stdout) if row["table"] == "stages")
    assert (row["method"], row["records"], row["cost"]) == ("rank", 5, None)
    assert row["seconds"] >= 0 and row["peak_memory_mb"] > 0
    assert "Stages, from their manifests" in done.stderr
    assert blendkit("evaluate", "--manifests", tmp_path / "none", stdin=ranked.stdout).returncode == 66
    (tmp_path / "text").write_text("[]")
    bad = blendkit("evaluate", "--manifests", tmp_path / "text", stdin=ranked.stdout)
    assert bad.returncode == 65 and "expected a file that --manifest of a blendkit command wrote" in bad.stderr


@pytest.mark.parametrize(
    ("ranked_by", "seen", "note"),
    [
        ([], [], "mix came after bleu, perplexity were computed, so the table has – there: `blendkit score` behind `blendkit fuse` fills it"),
        (["score:bleu"], [], "mix came after perplexity was computed, so the table has – there"),
        (["score:bleu", "score:perplexity"], [], ""),
        # Where some examples have a score, one is missing in the others.
        (["score:bleu", "score:perplexity"], [0, 1], "bleu, perplexity are missing for mix in 3 of 5 examples"),
    ],
)
def test_a_fused_answer_that_a_score_never_saw_is_told_once_or_not_where_it_was_made_from_a_ranking_by_that_score(called, ranked_by, seen, note):
    records = made_up(5)
    for number, record in enumerate(records):
        scores = {"bleu": 1.0, "perplexity": 2.0} if number in seen else {}
        record["candidates"].append({"model": "mix", "text": "x", "sources": [0, 1], "scores": scores})
        record["ranks"] |= {name: [1, 2, 3, 4] for name in ranked_by}
    code, _, err = called("evaluate", stdin=lines(records))
    told = [line for line in err.splitlines() if line.startswith("blendkit evaluate:")]
    assert code == 0 and len(told) == bool(note) and note in "".join(told), err
