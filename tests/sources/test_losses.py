"""`data convert`: what was lost or misread without a word once, and files as they are published."""

# ruff: noqa: F811 (the fixture `convert` is that of test_converting)

from __future__ import annotations

import json

import pytest
from conftest import lines
from test_converting import ASK, RANKED, better, convert, said  # noqa: F401

# --- what was lost or misread without a word, each with its kind

TWO = {"id": "1", "instruction": "q", "input": "", "candidates": [{"model": "a", "text": "x"}, {"model": "b", "text": "y"}]}


@pytest.mark.parametrize(
    ("target", "more", "told"),
    [
        (["csv"], {"source": "web", "n": 3}, ["source (csv) 1", "n (csv) 1"]),
        (["csv"], {"human": {"a": 1}, "messages": ASK, "input": "i"}, ["human (csv) 1"]),
        (["messages"], {"messages": [{**ASK[0], "name": "bob"}]}, ["messages[].name (messages) 1", "instruction (messages) 1"]),
        (["dpo", "--label", "ranks:p"], {"ranks": {"p": [1, 2], "o": [2, 1]}}, ["ranks.o (dpo) 1"]),
        (["dpo", "--label", "verdicts:j"], {"verdicts": {"j": [{"a": 0, "b": 1, "verdict": "A", "reason": "r"}], "k": []}}, ["verdicts.k", "[].reason"]),
        (["reward-bench-2", "--label", "s"], {"candidates": [{"model": m, "text": m, "scores": {"s": s, "t": 1.0}} for m, s in (("a", 1.0), ("b", 2.0))]},
         ["candidates[].scores.t (reward-bench-2) 2"]),
        (["ultrafeedback", "--label", "s"], {"candidates": [{"model": "a", "text": "x", "scores": {"s": 1.0, "overall": 2.0}}]}, ["scores.overall"]),
        (["arena"], {"verdicts": {"j": [{"a": 0, "b": 1, "verdict": "A", "sure": 3}]}}, ["verdicts[].sure (arena) 1"]),
    ],
)  # fmt: skip
def test_what_a_form_cannot_hold_is_counted(convert, target, more, told):
    _, err = convert("--to", *target, "-o", "/dev/null", stdin=[TWO | more])
    assert all(one in err for one in told), err
    assert "--strict" in convert("--to", *target, "--strict", stdin=[TWO | more], code=65)[1]


def test_people_and_a_judge_that_say_different_things_are_both_written(convert):
    judged = TWO | {"human": "A", "verdicts": {"j": [{"a": 1, "b": 0, "verdict": "A"}]}}
    rows, err = convert("--to", "mtbench", stdin=[judged])
    assert [(row["judge"], row["model_a"], row["winner"]) for row in rows] == [("j", "b", "model_a"), ("human", "a", "model_a")] and err == ""
    rows, _ = convert("--to", "mtbench", stdin=[judged | {"human": "B"}])
    assert [row["judge"] for row in rows] == ["j"]


def test_pairs_of_all_count_no_candidate_as_dropped(convert):
    rows, err = convert("--to", "unifiedfeedback", "--label", "s", "--pairs", "all", stdin=[RANKED])
    assert len(rows) == 6 and "candidates (" not in err
    rows, err = convert("--to", "unifiedfeedback", "--label", "s", "--pairs", "all", "--min-margin", "2", stdin=[RANKED])
    assert len(rows) == 3 and "candidates (unifiedfeedback) 1" in err and "3 pairs nearer than --min-margin were left out" in err


@pytest.mark.parametrize("form", ["hh-rlhf", "dpo", "binarized", "rewardbench", "unifiedfeedback"])
def test_ids_come_back(convert, form):
    rows, _ = convert("--to", form, stdin=[TWO | {"id": "mine", "human": "B"}])
    assert [record["id"] for record in convert("--from", form, stdin=rows)[0]] == ["mine"]


def test_rows_that_are_joined_lose_nothing_without_a_word(convert):
    rows = [{"id": f"k{n}", "prompt": "q", "completion": str(n), "label": n, "s": n} for n in range(2)]
    (record,), err = convert("--from", "kto", stdin=rows)
    assert [c["scores"]["label"] for c in record["candidates"]] == [0.0, 1.0] and "id of a further row (kto) 1" in err and "s of a further row (kto) 1" in err
    _, err = convert("--from", "kto", "--strict", stdin=rows, code=65)
    assert err.startswith("blendkit data: <stdin>:2: ") and "of a further row: --strict" in err
    (record,), _ = convert("--from", "kto", "--strict", "--on-error", "skip", stdin=rows, code=70)
    assert len(record["candidates"]) == 1


def test_alpacaevals_inputs_are_a_part_of_the_question(convert):
    rows = [{"instruction": "Sum up.", "input": text, "output": "o", "generator": "m"} for text in ("one", "two")]
    found, err = convert("--from", "alpacaeval", stdin=rows)
    assert [(record["input"], len(record["candidates"])) for record in found] == [("one", 1), ("two", 1)] and err == ""


def test_a_mapped_column_covers_no_other(convert):
    row = {"instruction": "old", "prompt": "new", "candidates": ["x"], "gpt": "y"}
    _, err = convert("--map", "instruction=prompt", stdin=[row], code=2)
    assert "<stdin>:1 has a column 'instruction' already; --map OTHER=instruction gives it another name" in err
    assert "has a column 'candidates' already" in convert("--map", "candidates=gpt", stdin=[row], code=2)[1]
    (record,), _ = convert("--map", "instruction=prompt", "--map", "title=instruction", stdin=[row])
    assert (record["instruction"], record["title"]) == ("new", "old")


def test_comparisons_come_back_from_a_table(convert, called, tmp_path):
    record = TWO | {"comparisons": {"p": {"pairs": [[0, 1, 0.5]]}}}
    assert called("data", "convert", "-o", tmp_path / "t.parquet", stdin=lines([record]))[0] == 0
    assert convert(tmp_path / "t.parquet")[0] == [record]


@pytest.mark.parametrize(("name", "message"), [("t.parquet.gz", "t.parquet, which is compressed within"), ("t.csv", "only --to csv writes CSV")])
def test_a_file_is_what_its_name_says(called, tmp_path, name, message):
    code, _, err = called("data", "convert", "-o", tmp_path / name, stdin=lines([TWO]))
    assert code == 2 and message in err and not (tmp_path / name).exists()


# --- published files


def test_ultrafeedback_binarized_says_its_chosen_conversation_twice(convert):
    row = {"prompt": "q", "prompt_id": "p", "chosen": said("y"), "rejected": said("n"), "messages": said("y"), "score_chosen": 8.0, "score_rejected": 3.0}
    (record,), err = convert("--from", "binarized", "--strict", stdin=[row])
    assert (record["id"], better(record), err) == ("p", "y", "")
    # Of several turns the prompt is the first question, and comes back as no field of its own.
    record["messages"] = [*said("a"), *ASK]
    (back,), _ = convert("--to", "binarized", stdin=[{name: value for name, value in record.items() if name != "instruction"}])
    (again,), _ = convert("--from", "binarized", stdin=[back])
    assert again["messages"] == record["messages"] and "prompt" not in again


@pytest.mark.parametrize("before", [ASK, [{"role": "system", "content": "s"}, *ASK]])
def test_a_question_that_prompt_and_answer_share_is_there_once(convert, before):
    prompt = [{"role": "system", "content": "s"}, *ASK]
    (record,), _ = convert("--from", "dpo", stdin=[{"prompt": prompt, "chosen": said("y", before), "rejected": said("n", before)}])
    assert record["messages"] == prompt
    (record,), _ = convert("--from", "dpo", stdin=[{"prompt": "q", "chosen": said("y", prompt), "rejected": said("n", prompt)}])
    assert record["messages"] == prompt and "prompt" not in record


def test_arenas_table_of_lists_as_json(convert, tmp_path):
    path = tmp_path / "train.csv"
    heading = "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    path.write_text(heading + '7,m,n,"[""q""]","[""x""]","[""y""]",0,1,0\n')
    (record,), _ = convert("--from", "arena", path)
    assert (record["human"], [c["text"] for c in record["candidates"]]) == ("B", ["x", "y"])
    battle = {"model_a": "m", "model_b": "n", "prompt": '["q"]', "response_a": '["x"]', "winner": "tie"}
    for answer, message in (("[null]", "response_b[0]: expected a string, got null"), ('["\\ud83d"]', "response_b: expected a list of texts as JSON, got one")):
        assert message in convert("--from", "arena", stdin=[battle | {"response_b": answer}], code=65)[1]
    # An answer that is a list, to a question that is none.
    (record,), _ = convert("--from", "arena", stdin=[battle | {"prompt": "[INST] q", "response_a": "[1]", "response_b": '["y"]'}])
    assert record["instruction"] == "[INST] q" and [c["text"] for c in record["candidates"]] == ["[1]", '["y"]']


def test_a_verdict_on_the_first_turn_is_not_one_on_the_second(convert):
    row = {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "expert", "turn": 1,
           "conversation_a": said("x2", [*said("x1"), *ASK]), "conversation_b": said("y2", [*said("y1"), *ASK])}  # fmt: skip
    first, second = convert("--from", "mtbench", stdin=[row, row | {"turn": 2}])[0]
    assert first["instruction"] == "q" and [c["text"] for c in first["candidates"]] == ["x1", "y1"]
    assert len(second["messages"]) == 3 and [c["text"] for c in second["candidates"]] == ["x2", "y2"]
    assert "conversation_a: turns behind the judged one (mtbench) 1" in convert("--from", "mtbench", stdin=[row])[1]


def sample(prompt: object, answer: object = "A", **more: object) -> dict:
    return {"doc_id": 1, "doc": {"k": 1}, "target": "t", "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}}, "resps": [[answer]],
            "filtered_resps": [answer], "filter": "none", "metrics": ["acc"], "acc": True, **more}  # fmt: skip


def test_samples_of_chat_templates_truth_values_and_likelihoods(convert):
    (record,), err = convert("--from", "lm-eval", "--strict", stdin=[sample([json.dumps([{"role": "system", "content": "s"}, *ASK])])])
    assert [message["role"] for message in record["messages"]] == ["system", "user"] and record["candidates"][0]["scores"] == {"acc": 1.0} and err == ""
    assert record["gen_kwargs"] == {"until": ["\n"]}
    (row,), _ = convert("--to", "lm-eval", stdin=[record])
    assert row["arguments"]["gen_args_0"]["arg_1"] == {"until": ["\n"]} and row["doc"] == {"k": 1}
    text = sample("Q", "-12.5", arguments={"gen_args_0": {"arg_0": "Q"}}, metrics=["word_perplexity"], word_perplexity=[-12.5, 3])
    assert "resps: expected a list of generated texts" in convert("--from", "lm-eval", stdin=[text], code=65)[1]


def test_what_a_batch_says_beside_its_texts(convert):
    request = {"custom_id": "1", "body": {"model": "m", "temperature": 0.5, "tools": [{"type": "function"}], "messages": ASK}}

    def answer(**message: object) -> dict:
        return {"custom_id": "1", "response": {"body": {"model": "m", "choices": [{"message": {"role": "assistant", "content": None, **message}}]}}}

    (record,), err = convert("--from", "openai-batch", "--strict", stdin=[request, answer(refusal="No.", annotations=[])])
    assert record["candidates"] == [{"model": "m", "text": "", "finish_reason": "refusal", "refusal": "No."}] and err == ""
    assert record["body"] == {"model": "m", "temperature": 0.5, "tools": [{"type": "function"}]}
    assert convert("--to", "openai-batch", stdin=[record])[0][0]["body"] == request["body"]
    for message in ({"tool_calls": [{"id": "c"}]}, {"content": [{"type": "image_url"}]}):
        _, err = convert("--from", "openai-batch", stdin=[request, answer(**message)], code=65)
        assert "<stdin>:2: response.body.choices[0].message." in err and "a candidate is a text" in err
    assert "1 answer held what no text may hold" in convert("--from", "openai-batch", stdin=[request, answer(content="a\0")])[1]
