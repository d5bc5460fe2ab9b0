"""`data`: public data sets in their published forms, each a small made file, into records and back."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from conftest import examples, lines, parsed

TALK = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "How are you?"}]


def talk(answer: str, before=TALK) -> list[dict]:
    return [*before, {"role": "assistant", "content": answer}]


FILES = {
    "ultrafeedback": [
        {"source": "evol", "instruction": "Name a fruit.", "completions": [
            {"model": "a", "response": "Apple", "overall_score": 8.5, "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}}},
            {"model": "b", "response": "Stone", "overall_score": 2.0, "annotations": {}},
        ]},
    ],
    "binarized": [
        {"prompt": "How are you?", "prompt_id": "p1", "chosen": talk("Fine."), "rejected": talk("No."), "score_chosen": 8.0, "score_rejected": 3.5},
        {"prompt": "Name a fruit.", "prompt_id": "p2", "chosen": "Apple", "rejected": "Stone"},
    ],
    "unifiedfeedback": [
        {"id": "u1", "source": "hh", "conv_A": talk("Fine."), "conv_B": talk("No."), "conv_A_rating": 1.0, "conv_B_rating": 0.0},
        {"id": "u2", "source": "hh", "conv_A": talk("Fine.", TALK[:1]), "conv_B": talk("Good.", TALK[:1]), "conv_A_rating": 2.0, "conv_B_rating": 2.0},
    ],
    "rewardbench": [{"id": 7, "subset": "hep-python", "prompt": "1+1?", "chosen": "2", "rejected": "3", "chosen_model": "human", "rejected_model": "bug"}],
    "alpacaeval": [
        {"dataset": "helpful_base", "instruction": "Name a fruit.", "output": "Apple", "generator": "a"},
        {"dataset": "helpful_base", "instruction": "Name a stone.", "output": "Flint", "generator": "a"},
        {"dataset": "helpful_base", "instruction": "Name a fruit.", "output": "Pear", "generator": "b"},
        {"dataset": "helpful_base", "instruction": "Name a stone.", "output": "Fruit", "generator": "b"},
    ],
    "alpacaeval-annotations": [
        {"instruction": "x", "output_1": "p", "generator_1": "a", "output_2": "q", "generator_2": "b", "annotator": "gpt4", "preference": 1.25},
        {"instruction": "y", "output_1": "p", "generator_1": "a", "output_2": "q", "generator_2": "b", "annotator": "gpt4", "preference": 2.0},
        {"instruction": "z", "output_1": "p", "generator_1": "a", "output_2": "q", "generator_2": "b", "annotator": "gpt4", "preference": 0.0},
    ],
    "mtbench": [
        {"question_id": 81, "model_a": "a", "model_b": "b", "winner": "model_b", "judge": "expert_1", "turn": 2,
         "conversation_a": talk("Fine."), "conversation_b": talk("Great.")},
        {"question_id": 82, "model_a": "a", "model_b": "b", "winner": "tie (inconsistent)", "judge": ["gpt-4", "pair-v2"], "turn": 1,
         "conversation_a": talk("p", TALK[:1]), "conversation_b": talk("q", TALK[:1])},
    ],
    "hh-rlhf": [{"chosen": "\n\nHuman: Hello?\n\nAssistant: Yes.\n\nHuman: How are you?\n\nAssistant: Fine.",
                 "rejected": "\n\nHuman: Hello?\n\nAssistant: Yes.\n\nHuman: How are you?\n\nAssistant: No."}],
}  # fmt: skip


def read(blendkit, tmp_path, form, rows):
    path = tmp_path / f"{form}.jsonl"
    path.write_text(lines(rows))
    done = blendkit("data", "convert", "--from", form, path)
    assert done.returncode == 0, done.stderr
    checked = blendkit("check", stdin=done.stdout)
    assert checked.returncode == 0, checked.stderr
    return parsed(done.stdout)


def unzipped(path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def better(record: dict) -> str:
    return record["candidates"]["AB".index(record["human"])]["text"]


def test_preferences_become_two_candidates_and_a_label(blendkit, tmp_path):
    pairs = {form: read(blendkit, tmp_path, form, FILES[form]) for form in ("binarized", "unifiedfeedback", "rewardbench", "hh-rlhf")}
    assert [better(record) for record in pairs["binarized"]] == ["Fine.", "Apple"]
    assert pairs["binarized"][0]["messages"] == TALK and pairs["binarized"][1]["instruction"] == "Name a fruit."
    assert {c["text"]: c["scores"]["overall"] for c in pairs["binarized"][0]["candidates"]} == {"Fine.": 8.0, "No.": 3.5}
    assert [record["human"] for record in pairs["unifiedfeedback"]] == ["A", "tie"]
    assert better(pairs["rewardbench"][0]) == "2" and pairs["rewardbench"][0]["subset"] == "hep-python"
    assert better(pairs["hh-rlhf"][0]) == "Fine." and pairs["hh-rlhf"][0]["messages"] == TALK


def test_the_chosen_one_is_not_always_first(blendkit, tmp_path):
    rows = [{"prompt": "x", "prompt_id": str(number), "chosen": "good", "rejected": "bad"} for number in range(60)]
    labels = [record["human"] for record in read(blendkit, tmp_path, "binarized", rows)]
    assert 15 < labels.count("A") < 45


def test_several_models_answers_become_candidates(blendkit, tmp_path):
    fruit, stone = read(blendkit, tmp_path, "alpacaeval", FILES["alpacaeval"])
    assert [(c["model"], c["text"]) for c in fruit["candidates"]] == [("a", "Apple"), ("b", "Pear")]
    assert stone["instruction"] == "Name a stone." and stone["source"] == "helpful_base"
    (ultra,) = read(blendkit, tmp_path, "ultrafeedback", FILES["ultrafeedback"])
    assert [c["scores"] for c in ultra["candidates"]] == [{"overall": 8.5, "helpfulness": 4.0}, {"overall": 2.0}]


def test_annotations_become_verdicts(blendkit, tmp_path):
    records = read(blendkit, tmp_path, "alpacaeval-annotations", FILES["alpacaeval-annotations"])
    assert [(v["verdict"], v["probability"]) for record in records for v in record["verdicts"]["gpt4"]] == [("A", 0.75), ("B", 0.0), ("tie-good", 0.5)]
    first, second = read(blendkit, tmp_path, "mtbench", FILES["mtbench"])
    assert first["verdicts"]["expert_1"][0]["verdict"] == "B" and first["human"] == "B" and first["messages"] == TALK
    assert second["verdicts"]["gpt-4-pair-v2"][0]["verdict"] == "tie-good" and second["human"] == "tie"


@pytest.mark.parametrize("form", sorted(FILES))
def test_what_is_written_reads_back_the_same(blendkit, tmp_path, form):
    records = read(blendkit, tmp_path, form, FILES[form])
    label = "overall" if form == "ultrafeedback" else "human"
    done = blendkit("data", "convert", "--to", form, "--label", label, stdin=lines(records))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout) if form.startswith("alpacaeval") else parsed(done.stdout)
    again = read(blendkit, tmp_path, form, rows)

    def content(record):
        x = record.get("messages") or record["instruction"]
        answers = sorted((c["text"], c["text"] == better(record) if record.get("human") in ("A", "B") else None) for c in record["candidates"])
        return x, answers, record.get("verdicts")

    kept = [record for record in records if record.get("human") != "tie" or form in ("mtbench", "unifiedfeedback")]
    assert [content(record) for record in again] == [content(record) for record in kept]


def test_a_table_of_answers(blendkit, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffinstruction,output,model one,two\n"Say ""hi"".\nNow.",hi,"Hi, you",\nBye?,,x,y\n', encoding="utf-8")
    first, second = parsed(blendkit("data", "convert", "--from", "csv", path).stdout)
    # The second answer is not there, and no empty text.
    assert first["instruction"] == 'Say "hi".\nNow.' and first["candidates"] == [{"model": "model one", "text": "Hi, you"}]
    back = blendkit("data", "convert", "--to", "csv", stdin=lines([first, second])).stdout
    table = list(csv.DictReader(io.StringIO(back)))
    assert table[0]["model one"] == "Hi, you" and table[1]["two"] == "y"


@pytest.mark.parametrize("kind", ["json", "jsonl", "jsonl.gz", "parquet"])
def test_files_of_every_kind(blendkit, tmp_path, kind):
    rows = [row for row in FILES["rewardbench"] for _ in range(3)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows, indent=1) if kind == "json" else lines(rows)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    done = blendkit("data", "convert", "--from", "rewardbench", path)
    assert done.returncode == 0, done.stderr
    assert len(parsed(done.stdout)) == 3


SHARES = {"alpaca-gpt4": 21, "dolly-15k": 7, "gpt4all-laion": 69, "sharegpt": 3}
SOURCES = {
    "alpaca-gpt4": [{"instruction": f"Task {k}", "input": "given", "output": "done well", "text": "…"} for k in range(40)],
    "dolly-15k": [{"instruction": f"Question {k}", "context": "", "response": "an answer", "category": "open_qa"} for k in range(20)],
    "gpt4all-laion": [
        {"prompt": f"Prompt {k}", "response": "a reply of five words", "source": "laion/unified_chip2" if k % 2 else "stackoverflow"} for k in range(200)
    ],
    "sharegpt": [
        {"id": str(k), "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": f"Chat {k}"}, {"from": "gpt", "value": "<p>said</p>"}]}
        for k in range(10)
    ],
}  # fmt: skip


@pytest.fixture
def sources(tmp_path):
    rows = {**SOURCES}
    # Empty, twice the same, asked by another source, too long.
    rows["alpaca-gpt4"] = [
        *rows["alpaca-gpt4"],
        {"instruction": "", "input": "", "output": "x"},
        {"instruction": "task  0", "input": "GIVEN", "output": "again"},
    ]
    rows["dolly-15k"] = [
        *rows["dolly-15k"],
        {"instruction": "Task 1", "context": "given", "response": "x"},
        {"instruction": "w " * 600, "context": "", "response": "x"},
    ]
    arguments = []
    for name, found in rows.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(found))
        arguments += ["--source", f"{name}={path}"]
    return arguments


def test_mixinstruct_is_built_from_its_four_sources(blendkit, sources, tmp_path):
    done = blendkit("data", "build", "mixinstruct", *sources, "--sizes", "80,10,10", "-o", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    splits = {name: parsed(unzipped(tmp_path / "m" / f"{name}.jsonl.gz")) for name in ("train", "val", "test")}
    assert [len(splits[name]) for name in ("train", "val", "test")] == [80, 10, 10]
    records = [record for split in splits.values() for record in split]
    # The shares of Table 1.
    assert {name: sum(record["source"] == name for record in records) for name in SOURCES} == SHARES
    questions = [(record["instruction"].lower().split(), record["input"].lower()) for record in records]
    assert len({str(question) for question in questions}) == len(questions) == 100
    assert all(record["instruction"] and record["output"] for record in records)
    assert {record["output"] for record in records if record["source"] == "sharegpt"} == {"said"}
    again = blendkit("data", "build", "mixinstruct", *sources, "--sizes", "80,10,10", "-o", tmp_path / "n")
    assert again.returncode == 0
    assert unzipped(tmp_path / "m" / "test.jsonl.gz") == unzipped(tmp_path / "n" / "test.jsonl.gz")
    other = blendkit("data", "build", "mixinstruct", *sources, "--sizes", "80,10,10", "--seed", 1, "-o", tmp_path / "o")
    assert other.returncode == 0 and unzipped(tmp_path / "m" / "test.jsonl.gz") != unzipped(tmp_path / "o" / "test.jsonl.gz")


def test_a_source_that_is_too_small_is_told(blendkit, sources, tmp_path):
    done = blendkit("data", "build", "mixinstruct", *sources, "-o", tmp_path / "m")
    assert done.returncode == 65
    assert "alpaca-gpt4 has 40 examples of 22,862 that are its share" in done.stderr
    assert "examples for splits of 110,000: name smaller --sizes" in done.stderr


@pytest.mark.parametrize(
    ("task", "rows", "x", "reference"),
    [
        ("cnn-dailymail", [{"id": "c1", "article": "Long.", "highlights": "Short."}], "Write a short summary of the article.\nLong.", "Short."),
        ("wmt18-zh-en", [{"translation": {"zh": "你好", "en": "Hello"}}], "Translate the Chinese text into English.\n你好", "Hello"),
        (
            "commongen",
            [{"concept_set_idx": 3, "concepts": ["ski", "hill"], "target": t} for t in ("I ski.", "They ski down.")],
            "Write one sentence that uses all of the given concepts.\nski, hill",
            "I ski.",
        ),
    ],
)
def test_the_tasks_of_the_appendix(blendkit, tmp_path, task, rows, x, reference):
    path = tmp_path / "t.jsonl"
    path.write_text(lines(rows))
    done = blendkit("data", "build", task, "--source", f"{task}={path}", "-o", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    (record,) = parsed((tmp_path / "out.jsonl").read_text())
    assert (f"{record['instruction']}\n{record['input']}", record["output"]) == (x, reference)
    assert record.get("references", ["I ski.", "They ski down."]) == ["I ski.", "They ski down."]


def test_the_public_mixinstruct_streams_through(blendkit, tmp_path):
    row = {**examples(1)[0], "id": "unified_chip2/1", "cmp_results": json.dumps({"careful-writer,assistant-brief": "A is better"})}
    path = tmp_path / "test.jsonl"
    path.write_text(lines([row]))
    done = blendkit("data", "pull", "mixinstruct:test", "--from", path)
    assert parsed(done.stdout) == [row]
    assert blendkit("check", stdin=done.stdout).returncode == 0
    assert blendkit("data", "pull", "mixinstruct:dev", "--from", path).returncode == 2


def test_table_1_of_a_stream(blendkit, tiny_chat):
    records = [{"id": "a/1", "instruction": "one two", "input": "three", "output": "four", "candidates": [{"model": "m", "text": "t"}]}]
    records += [{"id": "b/1", "source": "s", "instruction": "one"}, {"id": "b/2", "source": "s", "instruction": "one two three", "output": "x y"}]
    done = blendkit("data", "stats", stdin=lines(records))
    assert parsed(done.stdout) == [
        {"source": "a", "examples": 1, "input_words": 3.0, "output_words": 1.0, "candidates": 1.0},
        {"source": "s", "examples": 2, "input_words": 2.0, "output_words": 2.0, "candidates": 0.0},
        {"source": "all", "examples": 3, "input_words": 2.3, "output_words": 1.5, "candidates": 0.3},
    ]
    assert "Sources (as Table 1 of the paper)" in done.stderr and "input words" in done.stderr
    tokens = parsed(blendkit("data", "stats", "--tokenizer", tiny_chat, stdin=lines(records)).stdout)
    assert tokens[-1]["input_tokens"] > 2.3
    assert blendkit("data", "stats").returncode == 65


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["convert", "--from", "rewardbnch", "x.jsonl"], 2, "did you mean rewardbench?"),
        (["convert", "--from", "rewardbench", "none.jsonl"], 66, "none.jsonl: no such file"),
        (["convert", "--from", "rewardbench", "hf:none/such"], 66, "no data set 'none/such' (split train)"),
        (["convert", "--map", "x"], 2, "--map x: expected FIELD=COLUMN"),
        (["convert", "--pairs", "best"], 2, "expected one of best-worst, best-random, all"),
        (["convert", "--min-margin", "-1"], 2, "expected at least 0"),
        (["convert", "--rejects", "x"], 2, "--rejects needs --on-error skip"),
        (["convert", "--to", "csv", "-o", "x.parquet"], 2, "--to csv writes CSV"),
        (["build", "mixinstrukt", "-o", "x"], 2, "expected one of mixinstruct, cnn-dailymail, wmt18-zh-en, commongen; did you mean mixinstruct?"),
        (["build", "mixinstruct", "--sizes", "1,2", "-o", "x"], 2, "expected three numbers"),
        (["build", "mixinstruct", "--source", "x", "-o", "x"], 2, "expected NAME=FILE"),
        (["pull", "alpaca"], 2, "expected mixinstruct"),
    ],
)
def test_wrong_usage_of_data(blendkit, arguments, code, message):
    done = blendkit("data", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "x", "chosen": "y"}\n',
            "x.jsonl:1: rejected: expected a value, but the field is missing; rewardbench is allenai/reward-bench: prompt, chosen, rejected, subset",
        ),
        ('{"prompt": "x", "chosen": "y", "rejected": "z"}\n{"prompt"', "expected a JSON array or JSON lines, in UTF-8"),
        ("[1]", "row 1: expected an object, got an integer"),
    ],
)
def test_a_row_of_another_form_is_told_by_its_place(blendkit, tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    done = blendkit("data", "convert", "--from", "rewardbench", path)
    assert done.returncode == 65 and message in done.stderr, done.stderr


def test_pairs_of_scores_that_are_not_there(blendkit):
    done = blendkit("data", "convert", "--to", "binarized", "--label", "zz", stdin=lines(examples(1)))
    assert done.returncode == 65
    assert "candidates[].scores.zz: expected a number in every candidate" in done.stderr


def test_no_data_set_is_read_where_none_is_asked_for():
    import subprocess
    import sys

    code = "import sys, blendkit.commands.data; assert not {'datasets', 'pyarrow', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
