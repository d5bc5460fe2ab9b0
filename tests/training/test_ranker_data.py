"""The script that makes a ranker's training sets: what is held out, what is left out, and that its hard pairs are hard."""

from __future__ import annotations

import gzip
import sys
from itertools import pairwise

import orjson
import pytest
from conftest import ROOT

from blendkit.training.examples import Labels

sys.path.insert(0, str(ROOT / "docs" / "experiments"))
import ranker_data

STORY = "A fox went out one night. It prayed for the moon to give it light. " * 4
LONG = "- First you heat the pan.\n- Then you add the butter and the eggs.\n- Finally you serve them, and everyone is happy about it.\n" * 4


def asked(number: int, *texts: str) -> dict:
    """One of many instructions, with answers from the best to the worst."""
    scored = [{"model": str(k), "text": f"{text} ({number})", "scores": {"gpt4_pref": 0.9 - 0.2 * k}} for k, text in enumerate(texts)]
    return {"id": str(number), "instruction": f"How do I cook dish{number % 7} the {number}th time?", "input": "", "candidates": scored}


def judged(text: str, other: str, label: str, number: int) -> dict:
    pair = [{"model": name, "text": each, "scores": {}} for name, each in (("A", text), ("B", other))]
    return {"id": f"rmb/{number}", "instruction": "Tell me a story", "input": "", "label": label, "goal": "Helpfulness", "turns": 1, "candidates": pair}


@pytest.fixture
def data(tmp_path):
    files = {
        "train": [asked(number, STORY, LONG * 2, "No.") for number in range(80)],
        "rmb_train": [judged("a", "b", "A", 0), judged("c", "b", "B", 1), judged("d", "e", "A", 2)],
        "dev": [asked(3, "x", "y")],
        "autoj_pairs": [asked(5, "x", "y") | {"instruction": "How do I cook DISH5 the 5th time"}],
    }
    for name, records in files.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wb") as file:
            file.writelines(orjson.dumps(record) + b"\n" for record in records)
    return tmp_path


def test_the_sets_are_apart_the_same_each_time_and_what_a_training_reads(data):
    sets = {name: ranker_data.SETS[name] for name in ("train", "rmb_train")}
    parts = ranker_data.build(data, data / "one", 1, sets)
    ranker_data.build(data, data / "two", 1, sets)
    for name, records in parts.items():
        written = (data / "one" / f"{name}.jsonl.gz").read_bytes()
        assert written == (data / "two" / f"{name}.jsonl.gz").read_bytes()
        assert [orjson.loads(line) for line in gzip.decompress(written).splitlines()] == records
    train, held = ({ranker_data.instruction_of(record) for record in parts[part]} for part in ("train", "held"))
    made = {f"how do i cook dish{number % 7} the {number}th time" for number in range(80)}
    alone = {text for text in train | held if text in made}
    # Nothing of dev, nor of the other under another spelling; and each instruction in one part only.
    assert alone == made - {"how do i cook dish3 the 3th time", "how do i cook dish5 the 5th time"}
    assert not train & held and 2 <= len(alone & held) <= 20
    assert {ranker_data.instruction_of(record) for record in parts["pool"]}.isdisjoint(alone & held)
    found = Labels(("oracle",), mix="set").read(parts["train"])
    assert {example.set for example in found} == {"train", "rmb_help", "hard_off", "hard_constraint", "hard_cut", "hard_padded"}
    for example in found:
        right, wrong = example.candidates[0], example.candidates[-1]
        if example.set == "hard_cut":
            assert right.startswith(wrong) and len(wrong) < 0.75 * len(right)
        elif example.set == "hard_padded":
            assert wrong.startswith(right) and len(wrong) > len(right)
        elif example.set == "hard_off":
            assert len(wrong) > len(right) and wrong.rpartition("(")[2] != right.rpartition("(")[2]
    assert len(list(ranker_data.table(parts))) > 8


def test_pairs_become_a_list_only_where_it_says_no_more_than_they_do():
    # b over a and c over b and, by itself, e over d: a chain and a pair.
    chain, apart = ranker_data.connected([("b", "a"), ("e", "d"), ("c", "b")])[::-1]
    assert [sorted(part) for part in (chain, apart)] == [[("b", "a"), ("c", "b")], [("e", "d")]]
    assert ranker_data.levels(chain) == {"a": 0, "b": 1, "c": 2}
    assert ranker_data.levels([("b", "a"), ("c", "a")]) == {"a": 0, "b": 1, "c": 1}
    # A list would say that d is worse than b, which nobody said; and there is no list of a circle.
    assert ranker_data.levels([("b", "a"), ("c", "b"), ("c", "d")]) is None
    assert ranker_data.levels([("b", "a"), ("a", "b")]) is None


def test_a_constraint_is_kept_by_the_right_answer_and_dropped_by_the_other():
    import random

    plain, seen = "Heat the pan, add the eggs, and serve them.", set()
    for number in range(60):
        asked, right, wrong = ranker_data.constraint("How do I fry eggs?", plain, LONG, random.Random(number))
        kind = asked.split()[0:3]
        seen.add(tuple(kind[:2]))
        if "words" in asked or "under" in asked:
            most = int(next(word for word in asked.split() if word.isdigit()))
            assert len(right.split()) <= most < len(wrong.split())
        elif "list" in asked or "prose" in asked:
            assert not ranker_data.LIST.search(right) and ranker_data.LIST.search(wrong)
        elif "the word" in asked:
            word = asked.split('"')[1]
            assert word in wrong and word not in right
        elif asked.startswith("End"):
            ending = asked.split('"')[1]
            assert right.endswith(ending) and not wrong.endswith(ending)
        else:
            assert asked == "Answer in a single paragraph." and "\n" in wrong and "\n" not in right
    assert len(seen) >= 5


def test_held_out_records_are_of_all_sets_alike():
    records = [{"set": name} for name in "aaabbc"]
    found = [record["set"] for record in ranker_data.alike(records)]
    assert found == ["a", "b", "c", "a", "b", "a"] and not any(a == b for a, b in pairwise(found))
