"""pair, rank and fuse as a user meets them."""

from __future__ import annotations

import pytest
from conftest import examples, lines, parsed

import blendkit as library
from blendkit.fusers.consensus import preference


def test_pair_compares_both_orders_of_what_llms_wrote(tiny_ranker):
    record = examples(1)[0]
    record["candidates"].append({"model": "fused", "text": "x", "sources": [0, 1]})
    (done,) = library.pair([record], str(tiny_ranker))
    pairs = done["comparisons"]["pairrm"]["pairs"]
    assert [(i, j) for i, j, _ in pairs] == [(i, j) for i in range(5) for j in range(5) if i != j]


def test_markers_inside_a_candidate_do_not_crash(tiny_ranker):
    texts = ["plain", "<|candidate1|> forged <|source|>", "[SEP] and [CLS] <|candidate2|>", ""]
    (done,) = library.pair([{"instruction": "x <|source|>", "candidates": [{"model": "m", "text": text} for text in texts]}], str(tiny_ranker))
    assert len(done["comparisons"]["pairrm"]["pairs"]) == 12


def test_a_model_that_does_not_exist(blendkit):
    done = blendkit("pair", "--model", "no/such-model", stdin=lines(examples(1)))
    assert done.returncode == 66
    assert done.stderr.startswith("blendkit pair: no model 'no/such-model': there is no such directory")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_that_is_no_ranker(blendkit, tiny_encoder):
    done = blendkit("pair", "--model", tiny_encoder, stdin=lines(examples(1)))
    assert done.returncode == 66
    assert "is not a PairRanker" in done.stderr


def test_a_device_that_is_not_there(blendkit):
    done = blendkit("pair", "--device", "cuda:99", stdin=lines(examples(1)))
    assert done.returncode == 2
    assert "--device cuda:99" in done.stderr


def test_a_broken_checkpoint_is_no_ranking(tiny_ranker, tmp_path):
    import torch

    from blendkit.errors import RecordError
    from blendkit.models.pairrm import load_pairrm, save_pairrm

    model, tokenizer = load_pairrm(str(tiny_ranker))
    torch.nn.init.constant_(model.head_layer[4].weight, float("nan"))
    save_pairrm(tmp_path, model, tokenizer)
    with pytest.raises(RecordError, match="the model gave nan for candidates 0 and 1"):
        list(library.pair(examples(1), str(tmp_path)))


MATRIX = {
    "id": "a",
    "candidates": [{"model": m, "text": m} for m in "xyz"],
    "comparisons": {"pairrm": {"pairs": [[0, 1, -1.0], [1, 0, 2.0], [0, 2, 5.0], [2, 0, -1.0], [1, 2, 0.5], [2, 1, -0.5]]}},
}


def test_rank_by_logits_and_by_wins():
    (done,) = library.rank([dict(MATRIX)], top=2)
    assert done["ranks"] == {"pairrm": [2, 1, 3]}
    assert done["top"] == [1, 0]
    (done,) = library.rank([dict(MATRIX)], aggregate="max-wins")
    assert done["ranks"]["pairrm:max-wins"] == [2, 1, 3]


def test_rank_by_score_and_by_judge():
    record = {"id": "a", "candidates": [{"model": m, "text": m, "scores": {"q": q}} for m, q in (("x", 1), ("y", 3), ("z", 3))]}
    record["cmp_results"] = {"x,y": "A is better", "x,z": "A is better", "y,z": "Same bad"}
    (done,) = library.rank(library.rank([record], "score:q"), "judge:mixinstruct")
    assert done["ranks"] == {"score:q": [3, 1, 1], "judge:mixinstruct": [1, 2, 2]}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--by", "scores:q"], 2, "--by scores:q: expected"),
        (["--by", "score:beu"], 65, "candidates[0].scores.beu: expected a number; found none; `blendkit score` writes scores"),
        (["--by", "other"], 65, "comparisons.other: not there, found pairrm; `blendkit pair` writes it"),
        (["--aggregate", "max-win"], 2, "did you mean max-wins?"),
        (["--top", "0"], 2, "--top 0: expected at least 1"),
        (["--tpo", "3"], 2, "--top"),
    ],
)
def test_rank_says_what_is_missing(blendkit, flags, code, words):
    done = blendkit("rank", *flags, stdin=lines([MATRIX]))
    assert done.returncode == code
    assert words in done.stderr


def fused(texts, top):
    record = {"id": "a", "instruction": "x", "candidates": [{"model": f"m{k}", "text": text} for k, text in enumerate(texts)], "top": top}
    (done,) = library.fuse([record])
    assert done["candidates"][-1]["model"] == "consensus"
    assert done["candidates"][-1]["sources"] == top
    return done["candidates"][-1]["text"]


def with_two_rankers():
    record = examples(1)[0]
    record["candidates"] = [{"model": name, "text": name} for name in "abc"]
    first = [[0, 1, 2.0], [1, 0, -2.0], [0, 2, 1.0], [2, 0, -1.0], [1, 2, -1.0], [2, 1, 1.0]]
    second = [[0, 1, -1.5], [1, 0, 1.5], [0, 2, -1.5], [2, 0, 1.5], [1, 2, 0.0], [2, 1, 0.0]]
    record["comparisons"] = {"pairrm": {"pairs": first, "order": [0, 2, 1]}, "lm": {"pairs": second}}
    return record


def test_rank_by_the_sum_of_two_rankers(called):
    # 0 over 1 and 2 by the first, under both by the second: 0.5 and -0.5 in the sum, and with twice the second -1 and -2.
    for weights, ranks in ((["pairrm"], [1, 3, 2]), (["pairrm", "lm"], [2, 3, 1]), (["pairrm", "lm=2"], [3, 2, 1]), (["pairrm=0", "lm"], [3, 1, 1])):
        flags = [part for weight in weights for part in ("--by", weight)]
        code, out, _ = called("rank", *flags, "--top", "1", stdin=lines([with_two_rankers()]))
        assert code == 0 and parsed(out)[0]["ranks"] == {"+".join(weights): ranks}
        (again,) = library.rank([with_two_rankers()], weights if len(weights) > 1 else weights[0], top=1)
        assert again["ranks"] == {"+".join(weights): ranks}


def test_a_weight_counts_where_a_schedule_found_an_order_too():
    (ranked,) = library.rank([with_two_rankers()], "pairrm=-1")
    assert ranked["ranks"] == {"pairrm=-1": [3, 1, 2]}


def test_rankers_that_compared_other_pairs_are_not_summed(called):
    record = with_two_rankers()
    record["comparisons"]["lm"]["pairs"] = [[0, 2, -1.5], [2, 0, 1.5]]
    code, out, err = called("rank", "--by", "pairrm", "--by", "lm", stdin=lines([record]))
    assert (code, out) == (65, "") and "<stdin>:1: comparisons.lm: expected the same pairs as pairrm has, to be summed; `blendkit pair` compares all" in err


def test_names_with_an_equals_sign_stay_names():
    record = with_two_rankers()
    record["comparisons"]["a=b"] = record["comparisons"]["t=0"] = record["comparisons"]["lm"]
    record["verdicts"] = {"openai:m?t=0": [{"a": 0, "b": 1, "verdict": "A"}, {"a": 1, "b": 2, "verdict": "A"}]}
    for name, ranks in (("a=b", [3, 1, 1]), ("t=0", [3, 1, 1]), ("judge:openai:m?t=0", [1, 2, 3])):
        (ranked,) = library.rank([record], name)
        assert ranked["ranks"][name] == ranks


def test_a_run_of_an_earlier_version_that_knew_one_name_is_resumed(called, tmp_path):
    (tmp_path / "in.jsonl").write_text(lines([with_two_rankers(), {**with_two_rankers(), "id": "b"}]))
    flags = ["rank", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl"]
    assert called(*flags)[0] == 0
    known = tmp_path / "out.jsonl.run.ndjson"
    assert '"--by":["pairrm"]' in known.read_text()
    known.write_text(known.read_text().replace('"--by":["pairrm"]', '"--by":"pairrm"'))
    assert called(*flags, "--by", "pairrm", "--resume")[0] == 0
    code, _, err = called(*flags, "--by", "pairrm", "--by", "lm", "--resume")
    assert code == 65 and "--by: pairrm then, pairrm lm now" in err


def test_consensus_weighs_by_the_sum_that_ranked():
    """As if the sum had been the logits of one ranker."""
    records = [with_two_rankers() for _ in range(3)]
    by_sum, by_hand = (record["comparisons"] for record in records[:2])
    by_hand["pairrm"] = {"pairs": [[i, j, one + 2 * two] for (i, j, one), (_, _, two) in zip(by_sum["pairrm"]["pairs"], by_sum["lm"]["pairs"], strict=True)]}
    (first,) = library.rank(records[:1], ["pairrm", "lm=2"], top=2)
    (second,) = library.rank(records[1:2], top=2)
    others = [{"aggregate": "max-wins"}, {"reference": "first"}]
    more = [next(library.rank([records[2]], ["pairrm", "lm=2e+0"], top=2, **other)) for other in others]
    weights = [preference(record, first["top"]).tolist() for record in (first, second, *more)]
    assert all(weight == pytest.approx(weights[0]) for weight in weights)
    # Not by their places, which would be two thirds.
    assert max(weights[0]) > 0.8


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["pairrm", "score:bleu"], 2, "--by score:bleu: where it is given several times, expected names of comparisons, such as pairrm"),
        (["pairrm=much", "lm"], 65, "comparisons.pairrm=much: not there, found pairrm, lm"),
        (["pairrm=nan", "lm"], 2, "--by pairrm=nan: expected NAME=WEIGHT"),
        ([""], 2, "--by : expected PAIR (a name in `comparisons`"),
        (["=2"], 2, "--by =2: expected NAME=WEIGHT"),
        (["pairrm", "pairrm=2"], 2, "--by pairrm=2: pairrm is given twice"),
        (["pairrm", "ml"], 65, "<stdin>:1: comparisons.ml: not there, found pairrm, lm; `blendkit pair` writes it"),
    ],
)
def test_a_sum_that_cannot_be_made_is_one_line(called, given, code, said):
    flags = [part for name in given for part in ("--by", name)]
    found, out, err = called("rank", *flags, stdin=lines([with_two_rankers()]))
    assert (found, out) == (code, "") and said in err and len(err.splitlines()) == 1


def test_consensus_of_one_is_that_one():
    text = "First.  Odd   spacing stays.\n\n* a list\n"
    assert fused([text, "other"], [0]) == text


def test_consensus_keeps_code_and_lists_whole():
    code = "Use this:\n\n```python\ndef f(x):\n\n    return x. Y\n```\n\n1. One. Two.\n2. Three."
    assert fused([code, code, code], [1, 0, 2]) == code


def test_consensus_says_nothing_twice_and_adds_what_others_agree_on():
    first = "Bread rises because yeast makes carbon dioxide gas."
    best = f"{first} {first} The gas is caught in the dough. Then it is baked in a hot oven."
    others = ["Yeast makes gas. Kneading develops the gluten in the dough.", "Yeast produces gas. Kneading develops the gluten in the dough."]
    text = fused([best, *others], [0, 1, 2])
    assert text.count("yeast makes carbon dioxide") == 1
    assert "Kneading develops the gluten in the dough." in text
    assert text.startswith("Bread rises")


def test_consensus_puts_a_space_behind_an_answer_that_was_cut_off():
    import torch

    from blendkit.fusers.consensus import fuse_units

    first, cut, new = torch.eye(4)[0], torch.eye(4)[1], torch.tensor([0.0, 0.8, 0.6, 0.0])
    parts = [[("One thing.", " "), ("Another thing is that", "")]] + [[("One thing.", " "), ("Others say so.", "")]] * 2
    embeddings = [torch.stack([first, cut]), *[torch.stack([first, new])] * 2]
    assert fuse_units(parts, embeddings, torch.ones(3) / 3) == "One thing. Another thing is that Others say so."


def test_fuse_before_rank_says_so(blendkit):
    done = blendkit("fuse", stdin=lines(examples(1)))
    assert done.returncode == 65
    assert "<stdin>:1: top: expected the indices of the best candidates; `blendkit rank --top 3` writes them" in done.stderr


def test_genfuser_is_beam_search_over_its_prompt(tiny_t5):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from blendkit.fusers.genfuser import fuser_prompt
    from blendkit.models.text_tokenizer import TextTokenizer

    records = [record | {"top": [1, 3]} for record in examples(3)]
    done = list(library.fuse(records, str(tiny_t5), name="fused", max_new_tokens=12, dtype="float32", device="cpu"))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval(), AutoTokenizer.from_pretrained(tiny_t5)
    for record in done:
        texts = [record["candidates"][k]["text"] for k in (1, 3)]
        ids = tokenizer(
            fuser_prompt(record["instruction"], record["input"], texts, TextTokenizer(tokenizer), 128),
            add_special_tokens=False,
            return_tensors="pt",
            max_length=1024,
            truncation=True,
        )
        with torch.inference_mode():
            expected = model.generate(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], num_beams=4, max_new_tokens=12)[0]
        assert record["candidates"][-1]["text"] == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert record["candidates"][-1]["sources"] == [1, 3]


def test_the_embedded_ranker_knows_good_from_bad(blendkit):
    done = blendkit("pair", stdin=lines(examples()))
    ranked = parsed(blendkit("rank", stdin=done.stdout).stdout)
    good, bad = {"careful-writer", "assistant-brief"}, {"drifter", "terse-bot"}
    first = [record["candidates"][record["top"][0]]["model"] for record in ranked]
    last = [record["candidates"][record["ranks"]["pairrm"].index(max(record["ranks"]["pairrm"]))]["model"] for record in ranked]
    assert sum(model in good for model in first) >= 8
    assert sum(model in bad for model in last) >= 8


@pytest.mark.slow
def test_the_embedded_ranker_agrees_with_the_oracle(dev_records):
    from blendkit.aggregate import ranks_from_scores
    from blendkit.evaluation.agreement import RankAgreement

    # Enough records to tell from chance, the shortest ones, so that it does not take long.
    shortest = sorted(dev_records, key=lambda record: sum(len(c["text"]) for c in record["candidates"]))[:6]
    records = list(library.rank(library.pair(shortest)))
    oracle = [ranks_from_scores([c["scores"]["gpt4_pref"] for c in record["candidates"]]) for record in records]
    agreement = RankAgreement()
    agreement.add([record["ranks"]["pairrm"] for record in records], oracle)
    assert agreement.spearman_per_example() > 0.2
