"""`data convert` on files as people have them: what is used, kept, counted or refused; tables, mapped columns, and pairs to train with."""

from __future__ import annotations

import csv
import io
import json

import pytest
from conftest import SHARED, examples, lines, parsed

ASK = [{"role": "user", "content": "q"}]


def said(text: str, before=ASK) -> list[dict]:
    return [*before, {"role": "assistant", "content": text}]


def better(record: dict) -> str:
    return record["candidates"]["AB".index(record["human"])]["text"]


@pytest.fixture
def convert(called):
    """`convert("--from", …, stdin=rows)` gives the rows that come out and what was said; they are records that `check` takes."""

    def run(*arguments: object, stdin: object = "", code: int = 0) -> tuple[list[dict], str]:
        given = stdin if isinstance(stdin, str) else lines(stdin)
        found, out, err = called("data", "convert", *arguments, stdin=given)
        assert found == code, err
        if out and "--to" not in arguments:
            assert called("check", "-q", stdin=out)[0] == 0, out
        return parsed(out), err

    return run


# --- what went wrong once, and its kind


@pytest.mark.parametrize(
    ("form", "row", "x"),
    [
        ("binarized", {"prompt": ASK, "chosen": said("y", []), "rejected": said("n", [])}, "q"),
        ("binarized", {"prompt": ASK, "chosen": said("y"), "rejected": said("n")}, "q"),
        ("binarized", {"prompt": "q", "chosen": said("y", []), "rejected": said("n", [])}, "q"),
        ("binarized", {"prompt": "q", "chosen": said("y"), "rejected": said("n")}, "q"),
        ("binarized", {"chosen": said("y"), "rejected": said("n")}, "q"),
        ("dpo", {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "chosen": "y", "rejected": "n"}, "q"),
        ("rewardbench", {"prompt": "q", "chosen": ["y"], "rejected": ["n"]}, "q"),
        ("rewardbench", {"prompt": ASK, "chosen": "y", "rejected": "n"}, "q"),
    ],
)
def test_the_prompt_is_kept_however_it_is_written(convert, form, row, x):
    (record,), _ = convert("--from", form, stdin=[row])
    assert (record["instruction"], better(record)) == (x, "y") and "messages" not in record


def test_a_prompt_beside_another_conversation_is_kept_under_its_name(convert):
    (record,), err = convert("--from", "binarized", stdin=[{"prompt": "Title", "chosen": said("y"), "rejected": said("n", [{"role": "user", "content": "Q"}])}])
    assert record["prompt"] == "Title" and record["instruction"] == "q"
    # Its own question, where the rejected answer has another.
    assert [c.get("messages") for c in record["candidates"] if c["text"] == "n"] == [[{"role": "user", "content": "Q"}]] and err == ""


def test_several_chosen_and_rejected_are_candidates_with_scores(convert):
    row = {"id": "1", "prompt": "q", "chosen": ["y"], "rejected": ["a", "b", "c"], "num_correct": 1, "models": ["w", "x", "y", "z"], "subset": "Math"}
    for form in ("rewardbench", "reward-bench-2"):
        (record,), err = convert("--from", form, stdin=[row])
        assert {(c["model"], c["text"], c["scores"]["correct"]) for c in record["candidates"]} == {("w", "y", 1), ("x", "a", 0), ("y", "b", 0), ("z", "c", 0)}
        assert (record["subset"], record["num_correct"], err) == ("Math", 1, "")
    (back,), _ = convert("--to", "reward-bench-2", "--label", "correct", stdin=[record])
    assert back["chosen"] == ["y"] and sorted(back["rejected"]) == ["a", "b", "c"] and back["models"][0] == "w" and back["subset"] == "Math"


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("binarized", {"prompt": "q", "chosen": "y", "rejected": None}, "rejected: expected a text or a conversation, got null"),
        ("binarized", {"prompt": [], "chosen": "y", "rejected": "n"}, "prompt: expected at least one message, got an empty conversation"),
        ("binarized", {"prompt": None, "chosen": "y", "rejected": "n"}, "prompt: expected a text or a conversation, got null"),
        ("binarized", {"chosen": "y", "rejected": "n"}, "prompt: expected a question"),
        ("binarized", {"chosen": said(None), "rejected": said("n")}, "chosen[1].content: expected a string, got null"),
        ("binarized", {"chosen": ASK, "rejected": said("n")}, "chosen[0].role: expected the assistant's answer at the end, got 'user'"),
        (
            "binarized",
            {"chosen": said([{"type": "image_url"}]), "rejected": said("n")},
            "chosen[1].content[0]: expected a part of text, got a part of the type",
        ),
        ("rewardbench", {"prompt": ["q"], "chosen": "y", "rejected": "n"}, "prompt[0]: expected an object, got a string"),
        ("alpacaeval", {"instruction": "q", "generator": "m", "output": None}, "output: expected a string, got null"),
        ("ultrafeedback", {"instruction": "q", "completions": [{"model": "m", "response": None}]}, "completions[0].response: expected a string, got null"),
        ("messages", {"messages": []}, "messages: expected at least one message, got an empty conversation"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "hi"}]}, "conversations: expected a question before the answer"),
        ("hh-rlhf", {"chosen": "Hi\n\nHuman: q\n\nAssistant: y", "rejected": "\n\nHuman: q\n\nAssistant: n"}, "chosen: expected a transcript that begins with"),
        ("mtbench", {"winner": "model_c"}, "winner: expected one of model_a, model_b, tie"),
        ("lm-eval", {"doc_id": 1, "arguments": [["q", " a"]], "resps": [[[-1.0, False]]]}, "resps: expected a list of generated texts"),
        (
            "openai-batch",
            {"custom_id": "1", "response": None, "error": {"message": "expired"}},
            'error: expected a response, got the error {"message":"expired"}',
        ),
        ("openai-batch", {"custom_id": "1", "response": {"status_code": 200, "body": {"choices": []}}}, "response.body: expected a completion"),
        ("records", {"id": "1", "messages": []}, "messages: expected at least one message"),
        ("records", {"instruction": "q", "candidates": [3]}, "candidates[0]: expected an object, got an integer"),
    ],
)
def test_a_bad_row_is_told_by_its_line_and_field_and_the_others_are_kept(convert, called, tmp_path, form, row, message):
    _, err = convert("--from", form, stdin=[row], code=65)
    assert err.startswith(f"blendkit data: <stdin>:1: {message}") and err.count("\n") == 1
    good = {"records": {"instruction": "q"}, "openai-batch": {"custom_id": "2", "body": {"messages": ASK}}}
    rejects = tmp_path / "rejects.jsonl"
    rows = [row, *([good[form]] if form in good else [])]
    found, err = convert("--from", form, "--on-error", "skip", "--rejects", rejects, stdin=rows, code=70)
    assert len(found) == len(rows) - 1 and "1 bad record was skipped" in err
    (kept,) = parsed(rejects.read_text())
    assert kept["line"] == 1 and message in kept["error"] and json.loads(kept["record"]) == row


def test_check_refuses_an_empty_conversation(called):
    assert called("check", stdin='{"id":"1","messages":[]}\n')[0] == 65
    assert called("check", stdin='{"id":"1","instruction":"q","messages":[]}\n')[0] == 0


def test_every_field_is_used_kept_or_counted(convert):
    row = {"id": "1", "prompt": "q", "chosen": said("y", []), "rejected": "n", "source": "web", "nested": {"a": [1]}, "messages": ASK, "top": "many"}
    row["chosen"][0]["weight"] = 1
    (record,), err = convert("--from", "binarized", stdin=[row])
    assert (record["source"], record["nested"]) == ("web", {"a": [1]}) and "messages" not in record and "top" not in record
    assert all(f"{name} (binarized) 1" in err for name in ("messages", "top", "chosen[].weight")) and err.count("\n") == 1
    _, err = convert("--from", "binarized", "--strict", stdin=[row], code=65)
    assert "<stdin>:1: chosen[].weight: --strict: the form binarized has no place for it" in err


def test_rows_of_one_id_are_records_of_several(convert):
    found, err = convert("--from", "dpo", stdin=[{"id": "p", "prompt": "q", "chosen": "y", "rejected": str(n)} for n in range(3)])
    assert [record["id"] for record in found] == ["p", "p#2", "p#3"] and "2 ids were there before" in err


def test_several_files_and_lines_that_are_no_json(convert, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.json"
    one.write_text('\ufeff{"prompt":"q","chosen":"y","rejected":"n"}\n\nnonsense\n')
    two.write_text(json.dumps([{"prompt": "q", "chosen": "y", "rejected": "n"}, {"prompt": "q", "chosen": "y"}]))
    _, err = convert("--from", "dpo", one, two, code=65)
    assert f"{one}:3: not JSON" in err
    found, err = convert("--from", "dpo", "--on-error", "skip", one, two, code=70)
    assert len(found) == 2 and f"{one}:3: " in err and f"{two}: row 2: rejected: expected a value" in err


# --- tables


def test_a_table_holds_missing_and_empty_cells_several_answers_and_formulas(convert, called, tmp_path):
    records = [
        {"id": "1", "instruction": "q", "input": "i", "output": "", "candidates": [
            {"model": "m", "text": ""}, {"model": "m", "text": "=cmd()"}, {"model": "m", "text": "b", "decoding_method": "beam(4)"},
            {"model": "m", "text": "c", "decoding_method": "beam(4)"}, {"model": "n,\"o", "text": "'+1"},
        ]},
        {"id": "2", "messages": said("a"), "candidates": [{"model": "n,\"o", "text": "x\r\ny"}]},
    ]  # fmt: skip
    path = tmp_path / "t.csv"
    code, _, err = called("data", "convert", "--to", "csv", "-o", path, stdin=lines(records))
    assert code == 0 and "2 cells begin as a formula does" in err
    heading = next(csv.reader(io.StringIO(path.read_text())))
    assert heading == ["id", "instruction", "input", "output", "messages", "m", "m#2", "m · beam(4)", "m · beam(4)#2", 'n,"o']
    found, _ = convert("--from", "csv", path)
    assert found[0] == records[0] and found[1]["messages"] == records[1]["messages"] and found[1]["candidates"] == records[1]["candidates"]
    assert "output" not in found[1]


@pytest.mark.parametrize("model", ["output", "id", "instruction", "human", "messages", "m#2"])
def test_a_model_whose_name_would_be_another_column_is_refused(convert, called, model):
    record = {"id": "1", "instruction": "q", "candidates": [{"model": model, "text": "x"}]}
    code, _, err = called("data", "convert", "--to", "csv", stdin=lines([record]))
    assert code == 65 and f"<stdin>:1: candidates[0].model: expected a name that is a column of its own, which {model!r} is not" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instruction,a,a\nq,x,y\n", ":1: the column 'a' is there twice"),
        ("instruction,a\nq\n", ":2: expected 2 cells, as the heading has, got 1"),
        ('instruction,a\n"q\nr",x\ns,x,y\n', ":4: expected 2 cells, as the heading has, got 3"),
        ('instruction,a\n"q,x\n', ":2: unexpected end of data"),
        ("prompt,a\nq,x\n", ":2: instruction: expected a value, but the field is missing"),
        ("instruction,a\n,x\n", ":2: instruction: expected a string, got null"),
    ],
)
def test_tables_that_are_none(convert, tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    _, err = convert("--from", "csv", path, code=65)
    assert f"{path}{message}" in err and err.count("\n") == 1


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_other_programs(convert, tmp_path, separator):
    long = "x" * 200_000
    path = tmp_path / "t.tsv"
    path.write_bytes("\ufeff".encode() + f'instruction{separator}a b\r\n"q{separator}"{separator}{long}\r\n'.encode())
    (record,), _ = convert("--from", "csv", path)
    assert (record["instruction"], record["candidates"]) == (f"q{separator}", [{"model": "a b", "text": long}])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_records_as_a_table_of_columns(convert, called, tmp_path, kind):
    records = [{**record, "signatures": {}} for record in examples(3)]
    records[0]["ranks"], records[1]["human"] = {"r": list(range(1, len(records[0]["candidates"]) + 1))}, "tie"
    path = tmp_path / f"t.{kind}"
    code, _, err = called("data", "convert", "-o", path, stdin=lines(records))
    assert code == 0, err
    found, _ = convert("--from", "records", path)
    # An empty object is none in a table.
    assert found == [{name: value for name, value in record.items() if name != "signatures"} for record in records]
    from datasets import load_dataset

    if kind == "parquet":
        assert len(load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))) == 3


def test_a_table_has_one_kind_a_column(called, tmp_path):
    rows = [{"id": "1", "instruction": "q", "x": 1}, {"id": "2", "instruction": "q", "x": "one"}]
    code, _, err = called("data", "convert", "-o", tmp_path / "t.parquet", stdin=lines(rows))
    assert code == 65 and "the column 'x' is of several kinds" in err and not (tmp_path / "t.parquet").exists()


def test_columns_by_other_names_of_a_data_set(convert, tmp_path, monkeypatch):
    folder = tmp_path / "sets" / "qa"
    folder.mkdir(parents=True)
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"q{n}", "gpt": "x", "llama": None if n else "y", "best": "r"} for n in range(2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test-00000.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    maps = ["instruction=prompt", "candidates=gpt", "candidates=llama", "output=best"]
    found, err = convert("hf:sets/qa:test", *(part for one in maps for part in ("--map", one)))
    assert [record["instruction"] for record in found] == ["q0", "q1"] and found[0]["output"] == "r" and err == ""
    assert [[(c["model"], c["text"]) for c in record["candidates"]] for record in found] == [[("gpt", "x"), ("llama", "y")], [("gpt", "x")]]
    _, err = convert("hf:sets/qa:test", "--map", "instruction=question", code=2)
    assert "has no column 'question'; it has 'prompt', 'gpt', 'llama', 'best'" in err
    # Other forms' columns are called by other names likewise.
    (record,), _ = convert("--from", "dpo", "--map", "prompt=ask", stdin=[{"ask": "q", "chosen": "y", "rejected": "n"}])
    assert record["instruction"] == "q"


# --- forms as others write them


def test_arena_battles_of_three_kinds(convert):
    battles = [
        {"question_id": "a1", "model_a": "m", "model_b": "n", "winner": "tie (bothbad)", "judge": "arena_user_1", "turn": 1, "anony": True,
         "language": "English", "conversation_a": said("x"), "conversation_b": said("y"), "tstamp": 1.5},
        {"id": 7, "model_a": "m", "model_b": "n", "prompt": '["q","r"]', "response_a": '["x","z"]', "response_b": '["y","w"]',
         "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"model_a": "m", "model_b": "n", "winner": "model_b"},
    ]  # fmt: skip
    found, err = convert("--from", "arena", stdin=battles)
    assert [next(iter(record["verdicts"].values()))[0]["verdict"] for record in found] == ["tie-bad", "A", "B"]
    assert [[c["text"] for c in record["candidates"]] for record in found] == [["x", "y"], ["z", "w"], ["", ""]]
    assert found[0]["language"] == "English" and [message["content"] for message in found[1]["messages"]] == ["q", "x", "r"]
    # What the other model had said before.
    assert [message["content"] for message in found[1]["candidates"][1]["messages"]] == ["q", "y", "r"]
    assert "1 battle has no texts" in err
    back, _ = convert("--to", "arena", stdin=found)
    assert [row["winner"] for row in back] == ["tie (bothbad)", "model_a", "model_b"] and back[1]["conversation_b"][1]["content"] == "y"


def test_samples_of_the_evaluation_harness(convert, tmp_path):
    def row(document, text, chosen_by, right, **more):
        return {"doc_id": document, "doc": {"question": "q"}, "target": "4", "arguments": {"gen_args_0": {"arg_0": f"Q{document}", "arg_1": {"until": ["\n"]}}},
                "resps": [[text]], "filtered_resps": [text[-1]], "filter": chosen_by, "metrics": ["exact_match"], "exact_match": right, **more}  # fmt: skip

    path = tmp_path / "samples.jsonl"
    path.write_text(lines([row(0, "is 4", "strict", 0.0), row(0, "is 4", "flexible", 1.0), row(1, "5", "strict", 0.0, model="b")]))
    found, _ = convert("--from", "lm-eval", path)
    assert [(record["instruction"], record["output"], len(record["candidates"])) for record in found] == [("Q0", "4", 1), ("Q1", "4", 1)]
    assert found[0]["candidates"][0]["scores"] == {"exact_match,strict": 0.0, "exact_match,flexible": 1.0} and found[0]["doc"] == {"question": "q"}
    assert found[1]["candidates"][0]["model"] == "b" and found[0]["candidates"][0]["filtered,strict"] == ["4"]


def test_a_batch_and_its_requests(convert, tmp_path):
    requests, output = tmp_path / "requests.jsonl", tmp_path / "output.jsonl"
    requests.write_text(
        lines([{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": ASK}} for n in (1, 2)])
    )

    def answer(n, *texts):
        choices = [{"index": place, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for place, text in enumerate(texts)]
        body = {"id": "c", "model": "m-1", "choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        return {"id": "b", "custom_id": n, "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None}

    output.write_text(lines([answer("2", "x", "<think>so</think>y"), answer("1", "z")]))
    found, err = convert("--from", "openai-batch", requests, output)
    assert [[(c["model"], c["text"]) for c in record["candidates"]] for record in found] == [[("m-1", "z")], [("m-1", "x"), ("m-1", "y")]]
    assert found[1]["candidates"][1]["reasoning"] == "so" and found[0]["candidates"][0]["usage"]["completion_tokens"] == 2 and err == ""
    _, err = convert("--from", "openai-batch", output, code=65)
    assert "instruction: expected a string (or `input`, or `messages`), got nothing" in err


def test_sharegpt_and_messages(convert):
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "y"}]
    (record,), _ = convert("--from", "sharegpt", stdin=[{"id": "s", "conversations": turns, "lang": "en"}])
    assert record["output"] == "y" and [m["role"] for m in record["messages"]] == ["system", "user"] and record["lang"] == "en"
    (back,), _ = convert("--to", "sharegpt", stdin=[record])
    assert back == {"id": "s", "conversations": turns, "lang": "en"}
    (messages,), _ = convert("--from", "sharegpt", "--to", "messages", stdin=[{"conversations": turns}])
    assert messages["messages"][2] == {"role": "assistant", "content": "y"}


# --- pairs to train with

RANKED = {
    "id": "r", "instruction": "q", "input": "", "source": "web",
    "candidates": [{"model": m, "text": t, "scores": {"s": s}} for m, t, s in (("a", "x", 3.0), ("b", "y", 1.0), ("c", "z", 2.0), ("d", "w", 1.0))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "label", "pairs"),
    [
        ({"ranks": {"p": [1, 3, 2, 4]}}, [], [("x", "w")]),
        ({"ranks": {"p": [1, 3, 2, 4], "o": [1, 2, 3, 4]}}, ["--label", "ranks:o"], [("x", "w")]),
        ({}, ["--label", "s"], [("x", "w")]),
        ({}, ["--label", "s", "--pairs", "all"], [("x", "y"), ("x", "z"), ("x", "w"), ("z", "y"), ("z", "w")]),
        ({}, ["--label", "s", "--pairs", "all", "--min-margin", "1.5"], [("x", "y"), ("x", "w")]),
        ({"verdicts": {"j": [{"a": 0, "b": 1, "verdict": "B"}, {"a": 1, "b": 0, "verdict": "A"}, {"a": 2, "b": 1, "verdict": "tie-good"}]}}, [], [("y", "x")]),
        (
            {"verdicts": {"j": [{"a": 0, "b": 1, "verdict": "B"}, {"a": 2, "b": 3, "verdict": "A"}, {"a": 1, "b": 2, "verdict": "unparsed"}]}},
            ["--label", "verdicts:j", "--pairs", "all"],
            [("y", "x"), ("z", "w")],
        ),
    ],
)
def test_preference_pairs_of_every_label(convert, more, label, pairs):
    rows, _ = convert("--to", "dpo", *label, stdin=[RANKED | more])
    assert [(row["chosen"], row["rejected"]) for row in rows] == pairs
    assert all(row["prompt"] == "q" and row["source"] == "web" and row["margin"] > 0 for row in rows)


def test_ties_are_left_out_and_counted(convert):
    even = {**RANKED, "candidates": [{**candidate, "scores": {"s": 1.0}} for candidate in RANKED["candidates"]]}
    rows, err = convert("--to", "dpo", "--label", "s", stdin=[even])
    assert rows == [] and "1 tie was left out" in err
    _, err = convert("--to", "dpo", "--label", "s", "--pairs", "all", "--min-margin", "1.5", stdin=[RANKED])
    assert "1 tie was left out" in err and "3 pairs nearer than --min-margin were left out" in err


def test_a_label_that_is_not_there_or_not_the_only_one(convert):
    assert "expected `human`, ranks or verdicts, by which one is better, got none of them" in convert("--to", "dpo", stdin=[RANKED], code=65)[1]
    several = RANKED | {"ranks": {"p": [1, 2, 3, 4], "o": [1, 2, 3, 4]}}
    assert "got several: --label takes one of ranks:p, ranks:o" in convert("--to", "dpo", stdin=[several], code=65)[1]
    assert "<stdin>:1: ranks.x: expected a list of ranks" in convert("--to", "dpo", "--label", "ranks:x", stdin=[RANKED], code=65)[1]


def test_kto_and_best_of_n(convert):
    rows, _ = convert("--to", "kto", "--label", "s", "--pairs", "all", stdin=[RANKED])
    assert [(row["completion"], row["label"]) for row in rows] == [("x", True), ("y", False), ("z", True), ("w", False)]
    (record,), _ = convert("--from", "kto", stdin=rows)
    assert [(c["model"], c["text"], c["scores"]["label"]) for c in record["candidates"]] == [("a", "x", 1.0), ("b", "y", 0.0), ("c", "z", 1.0), ("d", "w", 0.0)]
    (row,), err = convert("--to", "sft", "--label", "s", stdin=[RANKED])
    assert (row["prompt"], row["completion"], row["model"]) == ("q", "x", "a") and "candidates (sft) 3" in err
    (row,), _ = convert("--to", "sft", "--label", "s", "--as-messages", stdin=[RANKED])
    assert row["messages"] == said("x")


@pytest.mark.parametrize("messages", [False, True])
def test_pairs_of_a_ranked_stream_are_read_by_trl(called, tmp_path, tiny_chat, messages):
    if not SHARED.exists():
        pytest.skip("needs ../shared")
    pytest.importorskip("trl")
    import gzip

    text = gzip.decompress((SHARED / "data" / "dev.jsonl.gz").read_bytes()).decode()
    code, ranked, err = called("rank", "--by", "score:gpt4_pref", "-q", stdin="".join(text.splitlines(True)[:20]))
    assert code == 0, err
    path = tmp_path / "pairs.jsonl"
    code, _, err = called("data", "convert", "--to", "dpo", *(["--as-messages"] if messages else []), "-o", path, stdin=ranked)
    assert code == 0, err
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.data_utils import is_conversational

    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert 15 <= len(rows) <= 20 and is_conversational(rows[0]) is messages
    for row in rows:
        candidates = {
            c["text"]: c["scores"]["gpt4_pref"] for c in json.loads(next(x for x in text.splitlines() if json.loads(x)["id"] == row["id"]))["candidates"]
        }
        chosen, rejected = ((row[side][0]["content"] if messages else row[side]) for side in ("chosen", "rejected"))
        assert candidates[chosen] == max(candidates.values()) > candidates[rejected] == min(candidates.values())
    # Its trainer prepares them: tokens of the prompt and of both completions.
    settings = DPOConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, max_length=64)
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_chat), args=settings, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(tiny_chat)
    )
    prepared = trainer.train_dataset[0]
    assert all(len(prepared[name]) > 0 for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
