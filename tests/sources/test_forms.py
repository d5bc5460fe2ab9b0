"""Every form: records through it and back are the same, and whatever its rows are, what comes out is what `check` takes."""

from __future__ import annotations

import copy
import io
import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from shapes import changed

from blendkit.errors import DataError, RecordError
from blendkit.records import as_line, parse, source_text, verdicts_of
from blendkit.sources import FORMS, PAIRS
from blendkit.sources.conversations import messages_of
from blendkit.sources.csv_table import csv_lines, csv_rows
from blendkit.sources.forms import Form, Writing, read_form, write_form
from blendkit.sources.preferences import PairOptions
from blendkit.sources.rows import Losses, SourceRow

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", "=1+1", "'=a", "-5", "a,b", 'say "hi"', "two\nlines", "\r", " ", "\t", "'", "''+", "null", "[]", "مرحبا", "\ufeff", "x\n\ny", "#2", "a · b"]
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(["org/model", "a", "b", "m#2", "x · greedy", "gpt,4"])
scores = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3)) | st.integers(-5, 5).map(float)
turns = st.lists(texts, min_size=1, max_size=5).map(
    lambda said: [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(said if len(said) % 2 else said[1:])]
)
system = st.booleans()


@st.composite
def questions(draw, conversations: bool = True) -> dict:
    if conversations and draw(st.booleans()):
        messages = draw(turns)
        return {"messages": [{"role": "system", "content": draw(texts)}, *messages] if draw(system) else messages}
    return {"instruction": draw(texts), "input": draw(texts)}


@st.composite
def records(draw, conversations: bool = True, at_least: int = 0, at_most: int = 4, label: str | None = None) -> dict:
    record = {"id": draw(names), **draw(questions(conversations))}
    models = draw(st.lists(names, min_size=at_least, max_size=at_most))
    record["candidates"] = [{"model": model, "text": draw(texts)} for model in models]
    if draw(st.booleans()):
        record["output"] = draw(texts)
    if draw(st.booleans()):
        record["source"] = draw(texts | st.integers(0, 9))
    if label == "human":
        record["human"] = draw(st.sampled_from(["A", "B"]))
    elif label is not None:
        for candidate in record["candidates"]:
            candidate["scores"] = {label: draw(scores)}
    return record


def stored(rows: list[dict]) -> list[SourceRow]:
    """The rows as a file gives them back."""
    return [SourceRow(f"x:{number}", number, json.loads(as_line(row))) for number, row in enumerate(rows, 1)]


def through(form: str, record: dict, options: PairOptions | None = None) -> tuple[dict, Losses]:
    """The record, written and read again."""
    losses = Losses()
    given = [(SourceRow("x:1", 1, record), copy.deepcopy(record))]
    rows = list(write_form(form, given, Writing(options or PairOptions()), losses))
    table = csv_rows("x", io.BytesIO(csv_lines(rows)[0].encode())) if form == "csv" else stored(rows)
    found = list(read_form(form, table))
    assert len(found) == 1
    parse(as_line(found[0][1]), 1)
    return found[0][1], losses


def pairs_of(record: dict) -> list[tuple[str, str]]:
    return [(candidate["model"], candidate["text"]) for candidate in record["candidates"]]


def better(record: dict) -> tuple[str, str]:
    return pairs_of(record)["AB".index(record["human"])]


# What each form holds beside x, by which its round trip is checked.
@pytest.mark.parametrize("form", ["records", "csv"])
def test_what_holds_everything(form):
    @SLOW
    @given(records())
    def check(record):
        try:
            found, losses = through(form, record)
        except DataError as error:
            # A table cannot hold every name, and says so.
            assert form == "csv" and "expected a name that is a column of its own" in str(error)
            assume(False)
        assert messages_of(found) == messages_of(record) and found.get("output") == record.get("output") and found["id"] == record["id"]
        assert found["candidates"] == record["candidates"] and losses.dropped["source (csv)"] == (form == "csv" and "source" in record)
        assert form == "csv" or found == record

    check()


@pytest.mark.parametrize("form", ["binarized", "dpo", "rewardbench", "reward-bench-2", "unifiedfeedback", "hh-rlhf", "mtbench", "arena"])
def test_pairs_keep_their_label(form):
    talks = form in ("binarized", "unifiedfeedback", "mtbench", "arena")

    @SLOW
    @given(records(talks, 2, 2, "human"))
    def check(record):
        if form == "reward-bench-2":
            # Which of two alike is chosen could not be told.
            assume(record["candidates"][0] != record["candidates"][1])
        try:
            found, losses = through(form, record)
        except DataError as error:
            assert form == "hh-rlhf" and "expected no paragraph that begins with Human" in str(error)
            assume(False)
        assert messages_of(found) == messages_of(record)
        if form in ("unifiedfeedback", "hh-rlhf"):
            assert sorted(text for _, text in pairs_of(found)) == sorted(text for _, text in pairs_of(record)) and better(found)[1] == better(record)[1]
            assert any("model" in what for what in losses.dropped)
        else:
            assert sorted(pairs_of(found)) == sorted(pairs_of(record)) and better(found) == better(record)
        # A row has room for what is not the form's own.
        assert found.get("output") == record.get("output") and found.get("source") == record.get("source")

    check()


@pytest.mark.parametrize("form", ["messages", "sharegpt", "sft"])
def test_conversations_keep_x_and_the_answer(form):
    @SLOW
    @given(records(form != "sft", 1, 1))
    def check(record):
        found, losses = through(form, record)
        assert messages_of(found) == messages_of(record)
        answer = record["candidates"][0]["text"] if form == "sft" else record.get("output")
        assert found.get("output") == answer
        assert form == "sft" or any("candidates" in what for what in losses.dropped)

    check()


@pytest.mark.parametrize("form", ["ultrafeedback", "alpacaeval", "lm-eval", "openai-batch"])
def test_answers_of_several_models(form):
    @SLOW
    @given(records(form == "openai-batch", 1, 4, {"ultrafeedback": "overall", "lm-eval": "acc"}.get(form)))
    def check(record):
        if form == "openai-batch":
            # A server's answer is cleaned, and its thoughts are taken out of it.
            assume(not any("<" in text or "\0" in text or "[" in text for _, text in pairs_of(record)))
        if form == "lm-eval":
            # Two measures of one answer would be one candidate.
            assume(len(set(pairs_of(record))) == len(record["candidates"]))
        found, losses = through(form, record)
        assert source_text(found) == source_text(record) and pairs_of(found) == pairs_of(record)
        if form in ("ultrafeedback", "lm-eval"):
            assert [candidate["scores"] for candidate in found["candidates"]] == [candidate["scores"] for candidate in record["candidates"]]
        if form == "alpacaeval" and "output" in record:
            assert losses.dropped["output (alpacaeval)"] == 1

    check()


@SLOW
@given(records(False, 2, 2), st.sampled_from(["A", "B", "tie-good", "unparsed"]), st.none() | st.integers(0, 100).map(lambda value: value / 100))
def test_annotations_keep_their_verdicts(record, verdict, probability):
    if verdict == "unparsed":
        probability = None
    elif probability is not None:
        verdict = "A" if probability > 0.5 else "B" if probability < 0.5 else "tie-good"
    record["verdicts"] = {"judge": [{"a": 0, "b": 1, "verdict": verdict, **({} if probability is None else {"probability": probability})}]}
    for form in ("alpacaeval-annotations", "mtbench"):
        found, _ = through(form, record)
        assert source_text(found) == source_text(record) and pairs_of(found) == pairs_of(record)
        assert [one["verdict"] for one in verdicts_of(found)["judge"]] == [verdict]


@SLOW
@given(records(True, 2, 4, "q"), st.sampled_from(PAIRS), st.sampled_from([0.0, 1.0]))
def test_every_way_to_take_pairs(record, pairs, margin):
    by_text = {}
    for candidate in record["candidates"]:
        by_text.setdefault((candidate["model"], candidate["text"]), set()).add(candidate["scores"]["q"])
    for form in ("dpo", "kto", "binarized"):
        writing = Writing(PairOptions("q", pairs, margin))
        rows = list(write_form(form, [(SourceRow("x:1", 1, record), copy.deepcopy(record))], writing, Losses()))
        for row in rows:
            if form == "dpo":
                best, worst = by_text[row["chosen_model"], row["chosen"]], by_text[row["rejected_model"], row["rejected"]]
                assert row["margin"] >= margin and row["margin"] > 0 and any(abs(a - b - row["margin"]) < 1e-9 for a in best for b in worst)
        values = [candidate["scores"]["q"] for candidate in record["candidates"]]
        count = len(values) * (len(values) - 1) // 2 if pairs == "all" else 1
        if form == "dpo":
            assert len(rows) + writing.left_out.total() == count
        assert bool(rows) == (max(values) - min(values) >= max(margin, 1e-9)) or pairs == "best-random" or form == "kto"


# --- what is no row of a form

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.just(2**70) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)
FIELDS = [
    "id", "prompt", "prompt_id", "chosen", "rejected", "chosen_model", "models", "score_chosen", "completion", "label", "messages", "conversations",
    "instruction", "input", "output", "generator", "completions", "conv_A", "conv_B", "conv_A_rating", "conv_B_rating", "winner", "model_a", "model_b",
    "conversation_a", "conversation_b", "response_a", "response_b", "judge", "custom_id", "body", "response", "error", "doc_id", "arguments", "resps",
    "target", "metrics", "candidates", "human", "ranks", "top", "verdicts", "cmp_results", "source", "scores",
]  # fmt: skip
says = st.sampled_from(["user", "assistant", "system", "tool", None]) | texts
talks = st.lists(st.fixed_dictionaries({}, optional={"role": says, "content": values, "from": says, "value": values, "weight": scalars}), max_size=4)
odd = st.dictionaries(st.sampled_from(FIELDS) | texts, values | talks, max_size=8) | values


@pytest.mark.parametrize("form", sorted(FORMS.own))
def test_no_row_however_odd_becomes_what_check_refuses(form):
    target: Form = FORMS.load(form, "--from")

    @st.composite
    def rows(draw):
        record = draw(records(True, 2, 3, draw(st.sampled_from(["human", "overall"]))))
        record["ranks"] = {"r": list(range(1, len(record["candidates"]) + 1))}
        if len(record["candidates"]) != 2:
            record.pop("human", None)
        try:
            written = list(write_form(form, [(SourceRow("x:1", 1, record), record)], Writing(PairOptions()), Losses()))
        except DataError:
            written = []
        found = [changed(draw, row) for row in written]
        return found + draw(st.lists(odd, max_size=2)) + found[:1]

    @SLOW
    @given(rows())
    def check(given_rows):
        ids, bad, losses = [], [], Losses()
        for _, record in read_form(form, [SourceRow(f"x:{n}", n, row) for n, row in enumerate(given_rows, 1)], losses, lambda row, error: bad.append(error)):
            again = parse(as_line(record).rstrip(b"\n"), 1)
            source_text(again)
            verdicts_of(again)
            assert again.get("messages") != []
            ids.append(again["id"])
        assert len(set(ids)) == len(ids)
        assert all(isinstance(error, RecordError) and str(error) for error in bad)
        assert len(ids) + len(bad) == len(given_rows) or target.joins or any("," in str(error) for error in bad)

    check()
