"""What `evaluate` says of the judge behind its tables: the line above them, the floor, and what its ranks are called."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from conftest import ROOT, examples, lines, parsed

import blendkit as library
from blendkit.evaluation.judges import Judges
from blendkit.judges.position import PositionBias

FED = ("Methods (as Table 2", "Agreement with the oracle ranking", "Paired tests", "Ratings over all verdicts", "Win rates: row over column")
FORMS = ("table", "markdown", "latex", "csv", "json")
LLM, STAND_IN = "judge:openai:x|v:1|kind:llm", "judge:embedded|v:1|kind:stand-in"


def stream(verdict, count=12, orders="both", signature: str | None = LLM, judge="j") -> list[dict]:
    """Three models, of which `a` is the best; `verdict(first, second, number)` is what the judge says of candidates in the order shown."""
    records = []
    for number in range(count):
        candidates = [{"model": name, "text": name * (number + 3), "scores": {"q": 2.0 - place + number % 3}} for place, name in enumerate("abc")]
        rows = []
        for a, b in ((0, 1), (0, 2), (1, 2)):
            for first, second in ((a, b), (b, a))[: 2 if orders == "both" else 1]:
                said = verdict(first, second, number)
                rows.append({"a": a, "b": b, "verdict": said if first < second else {"A": "B", "B": "A"}.get(said, said), "shown": [first, second]})
        record = {"id": str(number), "instruction": "i", "candidates": candidates, "verdicts": {judge: rows}, "ranks": {"r": [1, 2, 3]}}
        records.append(record | ({"signatures": {f"judge:{judge}": signature}} if signature else {}))
    return records


def first(*_) -> str:
    return "A"


def honest(first: int, second: int, number: int) -> str:
    return "A" if first < second else "B"


def turned(row: dict) -> dict:
    """The same verdict on the pair the other way round."""
    chance = {"probability": 1 - row["probability"]} if "probability" in row else {}
    return {**row, "a": row["b"], "b": row["a"], "verdict": {"A": "B", "B": "A"}.get(row["verdict"], row["verdict"]), **chance}


def worth(records: list[dict], **settings) -> dict:
    return next(row for row in library.evaluate(records, **settings) if row["table"] == "judge")


def test_the_line_stands_above_every_table_that_the_judge_feeds_and_says_why_they_are_marked(called):
    # It looks at the answers of one record, so that ranks vary and are tested.
    records = stream(lambda *pair: honest(*pair) if pair[2] == 0 else "A")
    code, out, err = called("evaluate", "--ratings", "--baseline", "b", "--versus", "b", stdin=lines(records))
    assert code == 0
    line = (
        "judge:j, an LLM; 72 verdicts, 0 unparsed; the first place won 95.8% of 72 decided; both orders agree on 8.3% of 36 pairs (95 % 1.4% to 36.8%, "
        "by chance 8.0%): not above chance, so what is marked (at chance) may tell places or guesses, not answers"
    )
    said = err.splitlines()
    for title in FED:
        (place,) = (place for place, text in enumerate(said) if text.startswith(title))
        assert said[place - 1] == line, title
    headings = next(text for text in said if "Method " in text)
    assert [re.sub(" +", " ", cell.strip()) for cell in headings.strip("┃").split("┃")] == [
        "Method",
        "q ↑",
        "GPT-Rank ↓ (at chance)",
        "≥ b % ↑ (at chance)",
        "Top-3 % ↑ (at chance)",
        "Characters",
    ]
    row = parsed(out)[1]
    assert (row["table"], row["method"], row["judge"], row["at_chance"], row["line"]) == ("judge", "j", "llm", True, line)
    assert (row["order_agreement"], row["order_agreement_low"], row["order_agreement_by_chance"], row["first_place_rate"]) == (8.33, 1.4, 7.99, 95.83)


def test_the_line_and_the_mark_are_in_every_form(called, tmp_path):
    pytest.importorskip("matplotlib")
    forms = {form: called("evaluate", "--format", form, "--versus", "b", stdin=lines(stream(first)))[1] for form in FORMS}
    for form, text in forms.items():
        assert "both orders agree on 0.0% of 36 pairs" in text, form
    assert (
        "### Methods (as Table 2 of the paper)\n\njudge:j, an LLM" in forms["markdown"]
        and "| GPT-Rank ↓ (at chance) | ≥ b % ↑ (at chance) |" in forms["markdown"]
    )
    assert "% Methods (as Table 2 of the paper)\n% judge:j, an LLM" in forms["latex"] and r"GPT-Rank $\downarrow$ (at chance)" in forms["latex"]
    tables = [list(csv.DictReader(io.StringIO(part))) for part in forms["csv"].split("\n\n")]
    assert tables[1][0]["at_chance"] == "True" and "gpt_rank (at chance)" in tables[2][0]
    assert called("evaluate", "-q", "--report", tmp_path / "page", "--plot", tmp_path / "p.svg", stdin=lines(stream(first)))[0] == 0
    page = (tmp_path / "page" / "index.html").read_text()
    for section in ("table-2", "table-3", "figures", "ratings", "wins"):
        assert "both orders agree on 0.0% of 36 pairs" in page.split(f'<section id="{section}">')[1].split("</section>")[0], section
    assert "GPT-Rank ↓ (at chance)</button>" in page and "(at chance)</figcaption>" in page
    assert "both orders agree" in (tmp_path / "p.svg").read_text()


def test_a_judge_above_the_floor_is_not_marked(called):
    _, out, err = called("evaluate", "--ratings", stdin=lines(stream(honest)))
    assert "(at chance)" not in err and "GPT-Rank ↓" in err
    assert "both orders agree on 100.0% of 36 pairs (95 % 90.4% to 100.0%, by chance 50.0%)\n" in err
    assert parsed(out)[1]["at_chance"] is False


@pytest.mark.parametrize(
    ("verdict", "chance", "at_chance"),
    [
        (lambda *_: "tie-good", 100.0, True),
        (lambda first, second, number: "A" if number % 4 else honest(first, second, number), 50.0, True),
        (lambda first, second, number: "tie-bad" if number % 2 else honest(first, second, number), 37.5, False),
        (lambda first, second, number: "A" if number == 1 else honest(first, second, number), 50.0, False),
        (lambda first, second, number: "AB"[number % 2], 50.0, True),
    ],
    ids=["only ties", "mostly the first", "half ties", "once the first", "by rote"],
)
def test_chance_is_what_verdicts_without_a_look_would_reach(verdict, chance, at_chance):
    row = worth(stream(verdict))
    assert row["at_chance"] is at_chance
    assert row["order_agreement_by_chance"] <= chance + 1e-9
    if at_chance:
        assert row["order_agreement_low"] <= row["order_agreement_by_chance"] + 0.01


def test_one_order_or_none_tells_nothing_of_the_floor(called):
    code, out, err = called("evaluate", stdin=lines(stream(first, orders="random")))
    row = parsed(out)[1]
    assert code == 0 and row["at_chance"] is None and row["order_agreement"] is None and "(at chance)" not in err
    assert "the first place won 100.0% of 36 decided; no pair was judged in both orders, so their agreement is not known" in err
    records = stream(honest)
    for record in records:
        for row in record["verdicts"]["j"]:
            del row["shown"]
    assert "nothing tells whether it prefers a place" in called("evaluate", stdin=lines(records))[2]


def test_two_verdicts_in_one_order_are_not_both_orders():
    records = stream(first, orders="random")
    for record in records:
        record["verdicts"]["j"] *= 2
    assert worth(records)["pairs_in_both_orders"] == 0


def test_unparsed_verdicts_are_counted_and_their_pairs_are_not():
    row = worth(stream(lambda first, second, number: "unparsed" if (first, second) == (1, 0) else honest(first, second, number)))
    assert (row["verdicts"], row["unparsed"], row["pairs_in_both_orders"]) == (72, 12, 24)
    assert "72 verdicts, 12 unparsed" in row["line"]


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.95])
def test_a_judge_that_guesses_is_rarely_taken_for_one_that_looks(rate):
    generator = np.random.default_rng(1)
    above = 0
    for _ in range(400):
        bias = PositionBias()
        for _ in range(8):
            bias.add([(shown, "AB"[int(generator.random() > rate)]) for a, b in ((0, 1), (0, 2), (1, 2)) for shown in ((a, b), (b, a))])
        above += not bias.at_chance
    assert above / 400 <= 0.05


def test_the_interval_covers_the_truth_where_pairs_of_a_record_hang_together():
    generator = np.random.default_rng(0)
    covered = plain = 0
    for _ in range(300):
        bias = PositionBias()
        for _ in range(40):
            fair = generator.random() < 0.7  # the judge looks at all pairs of a record, or at none
            pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
            bias.add([(shown, "A" if not fair or shown[0] < shown[1] else "B") for a, b in pairs for shown in ((a, b), (b, a))])
        low, high = bias.interval()
        covered += low <= 0.7 <= high
        half = 1.96 * np.sqrt(bias.agreement * (1 - bias.agreement) / bias.pairs)
        plain += abs(bias.agreement - 0.7) <= half
    assert covered / 300 > 0.9 > 0.6 > plain / 300


def test_what_is_kept_of_a_judge_does_not_grow_with_the_stream():
    def held(value) -> int:
        parts = (
            vars(value).values()
            if hasattr(value, "__dict__")
            else value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | set)
            else ()
        )
        return 1 + sum(held(part) for part in parts)

    judges = Judges()
    sizes = []
    for record in stream(honest, count=60):
        judges.add(record["verdicts"], record["signatures"], "j")
        sizes.append(held(judges))
    assert sizes[0] == sizes[-1]


# --- what the judge's ranks are called


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["embedded", "gpt-4"])
def test_the_stand_in_is_never_headed_gpt_rank(called, name, form):
    code, judged, err = called("judge", "--name", name, stdin=lines(examples(3)))
    assert code == 0, err
    code, out, err = called("evaluate", "--format", form, "--ratings", stdin=judged)
    assert code == 0, err
    assert f"judge:{name}, the offline stand-in, no LLM: not to be reported as GPT-Rank; 30 verdicts, 0 unparsed; it sees no order" in out
    assert "gpt_rank" not in out and "GPT-Rank" not in out.replace("not to be reported as GPT-Rank", "") and "oracle (stand-in rank)" in out
    column = {
        "table": f"Stand-in rank ({name}) ↓",
        "markdown": f"Stand-in rank ({name}) ↓",
        "latex": rf"Stand-in rank ({name}) $\downarrow$",
        "csv": f"stand_in_rank ({name})",
    }
    assert column.get(form, '"stand_in_rank":') in out
    named = called("evaluate", "--baseline", "oracle (stand-in rank)", "--assert", "llms.best.gpt_rank >= 1", stdin=judged)
    assert named[0] == 0, named[2]


def test_the_stand_in_is_named_on_the_page(called, tmp_path):
    pytest.importorskip("matplotlib")
    assert called("evaluate", "-q", "--report", tmp_path, stdin=lines(stream(honest, signature=STAND_IN)))[0] == 0
    page = (tmp_path / "index.html").read_text()
    assert "Stand-in rank (j) ↓" in page and "GPT-Rank" not in page.replace("not to be reported as GPT-Rank", "")


def test_an_llm_by_the_command_line_is_gpt_rank_and_a_panel_with_the_stand_in_is_not(called, serve):
    server = serve(reply=lambda body: "A")
    arguments = ["--base-url", server.url, "--verdict-by", "text", "--max-unparsed", 1]
    code, judged, err = called("judge", "-m", "openai:one", *arguments, stdin=lines(examples(2)))
    assert code == 0, err
    assert "not above chance, so its verdicts may tell places or guesses, not answers" in err
    _, out, err = called("evaluate", stdin=judged)
    assert "GPT-Rank ↓ (at chance)" in err and parsed(out)[1]["column"] == "gpt_rank"
    code, judged, err = called(
        "judge", "-m", "one=openai:one", "-m", "two=openai:two", "-m", "embedded", "--name", "board", *arguments, stdin=lines(examples(2))
    )
    assert code == 0, err
    _, out, err = called("evaluate", "--oracle", "judge:board", stdin=judged)
    row = parsed(out)[1]
    assert (row["judge"], row["column"], row["at_chance"]) == ("panel", "judge_rank", True)
    assert "judge:board, the majority of one, two, embedded;" in row["line"] and "embedded is the offline stand-in, no LLM" in row["line"]
    assert row["line"].count("both orders agree on 0.0% of 20 pairs") == 2 and "for half of the panel or more, not above chance" in row["line"]
    assert "Judge rank (board) ↓ (at chance)" in err and "GPT-Rank ↓" not in err
    llms = called("judge", "-m", "one=openai:one", "-m", "two=openai:two", *arguments, stdin=lines(examples(2)))[1]
    assert parsed(called("evaluate", stdin=llms)[1])[1]["column"] == "gpt_rank"


@pytest.mark.parametrize(
    ("signature", "judge", "column"),
    [
        (LLM, "embedded", "gpt_rank"),
        (None, "embedded", "stand_in_rank"),
        (None, "mixinstruct", "gpt_rank"),
        (None, "expert_1", "judge_rank"),
        ("judge:mine|v:1", "mine", "judge_rank"),
    ],
)
def test_ranks_are_called_by_what_the_judge_is(called, signature, judge, column):
    code, out, err = called(
        "evaluate",
        "--assert",
        "llms.best.gpt_rank == 1",
        "--assert",
        "llms.a.judge_rank <= 1",
        stdin=lines(stream(honest, 4, signature=signature, judge=judge)),
    )
    assert code == 0, err
    rows = [row for row in parsed(out) if row["table"] == 2]
    assert all(column in row and column in row["intervals"] for row in rows) and len({*rows[0]} & {"gpt_rank", "stand_in_rank", "judge_rank"}) == 1
    assert ("GPT-Rank ↓" in err) is (column == "gpt_rank")


def test_a_judge_that_is_the_stand_in_somewhere_is_the_stand_in():
    records = stream(honest, 4)
    records[2]["signatures"] = {"judge:j": STAND_IN}
    assert worth(records)["column"] == "stand_in_rank"


def test_ranks_of_two_kinds_of_judges_are_not_compared(called, tmp_path):
    (tmp_path / "old.jsonl").write_text(called("evaluate", stdin=lines(stream(honest)))[1])
    compare = ["evaluate", "--compare", tmp_path / "old.jsonl"]
    _, out, err = called(*compare, stdin=lines(stream(honest, signature=STAND_IN)))
    assert "the earlier run has GPT-Rank, this one Stand-in rank: ranks of two kinds of judges, which are not compared" in err
    assert {row["column"] for row in parsed(out) if row["table"] == "compare"} == {"q", "top3", "characters"}
    _, out, err = called(*compare, stdin=lines(stream(honest)))
    assert "gpt_rank" in {row["column"] for row in parsed(out) if row["table"] == "compare"} and "two kinds" not in err


def test_a_score_as_oracle_is_not_the_judges(called):
    _, out, err = called("evaluate", "--oracle", "q", stdin=lines(stream(first)))
    assert "Rank by q ↓ ┃ GPT-Rank ↓ (at chance) ┃ Top-3 % ↑ ┃" in re.sub(" +", " ", err)
    assert parsed(out)[1]["is_oracle"] is False and "(as Table 3) (at chance)" not in err
    # Table 3 has the judge's ranks as one of its rows.
    assert err.count("judge:j, an LLM;") == 2
    for record in (records := stream(first)):
        del record["verdicts"]
    code, out, err = called("evaluate", "--oracle", "q", stdin=lines(records))
    assert code == 0 and not any(row["table"] == "judge" for row in parsed(out)) and "at chance" not in err


# --- one rule for two orders


def test_help_and_docs_say_the_rule_that_the_code_follows(called):
    _, out, _ = called("judge", "--help")
    words = " ".join(re.sub("[│╭╰─╮╯]", " ", out).split())
    assert "which count alike: probabilities (by likelihood) are averaged, verdicts without them count where both agree, else as a tie" in words
    docs = " ".join((ROOT / "docs" / "judge.md").read_text().split())
    assert "**both orders count alike**" in docs and "0.9 for an answer where it is shown first and 0.3 where it is shown second come to 0.6" in docs
    pair = {"id": "0", "instruction": "i", "candidates": [{"model": name, "text": name} for name in "mn"]}
    both = [{"a": 0, "b": 1, "verdict": "A", "shown": [0, 1]}, {"a": 0, "b": 1, "verdict": "B", "shown": [1, 0]}]

    def ranks(*rows: dict) -> dict[str, float]:
        out = called("evaluate", "-q", stdin=lines([pair | {"verdicts": {"j": list(rows)}}]))[1]
        return {row["method"]: row["judge_rank"] for row in parsed(out) if row["table"] == 2 and row["kind"] == "model"}

    assert ranks(*both) == {"m": 1.0, "n": 1.0}
    assert ranks(both[0] | {"probability": 0.9}, both[1] | {"probability": 0.3}) == {"m": 1.0, "n": 2.0}
    assert ranks(both[0] | {"probability": 0.6}, both[1] | {"probability": 0.1}) == {"m": 2.0, "n": 1.0}
    assert ranks(both[0] | {"probability": 0.9}, both[1]) == {"m": 1.0, "n": 1.0}
    assert ranks(both[0], both[1] | {"verdict": "unparsed"}) == {"m": 1.0, "n": 2.0}


@pytest.mark.parametrize("which", [lambda row: True, lambda row: row["shown"][0] > row["shown"][1]], ids=["all", "one of both orders"])
def test_a_pair_may_stand_in_a_record_either_way_round(which):
    said = stream(lambda a, b, number: ("A", "B", "tie-good", "unparsed")[(3 * a + 5 * b + number) % 4])
    for record in said:
        # A pair that cannot be read, and a judge with probabilities beside the other.
        record["verdicts"]["j"][2:4] = [{**row, "verdict": "unparsed"} for row in record["verdicts"]["j"][2:4]]
        record["verdicts"]["k"] = [{**row, "verdict": "A", "probability": 0.75} for row in record["verdicts"]["j"]]
    other = [
        {**record, "verdicts": {name: [turned(row) if which(row) else row for row in rows] for name, rows in record["verdicts"].items()}} for record in said
    ]
    settings = {"ratings": True, "versus": ["a"], "audit": "judge:k", "control": "length", "correct_with": "judge:k"}
    assert library.evaluate(other, **settings) == library.evaluate(said, **settings)
