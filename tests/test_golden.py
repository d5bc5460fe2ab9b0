"""Parity with the public reference implementations (../shared/golden)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from blendkit.aggregate import matrix, max_logits, max_wins, ranks_from_scores, verdict_matrix
from blendkit.evaluation import agreement
from blendkit.fusers.genfuser import fuser_prompt
from blendkit.models.pairrm import load_pairrm
from blendkit.rankers.pair_inputs import PairInputs
from blendkit.rankers.pairranker import PairRanker
from blendkit.records import verdicts_of
from blendkit.stage import apply
from blendkit.training.ranker import ranking_loss


def test_pairrm_layout_gives_the_reference_ids_logits_and_ranks(golden):
    stage = PairRanker(str(golden / "checkpoints" / "pairrm"), device="cpu", dtype="float32")
    cases = json.loads((golden / "pairrm.json").read_text())["cases"]
    checked = 0
    for case in cases:
        source = stage.inputs.source(case["source"])
        ids = stage.inputs.candidates(case["candidates"], source)
        if len(ids) > 1:
            pair = stage.inputs.pair(source, ids[0], ids[1])
            assert [token for segment in pair for token in segment.ids] == case["input_ids_0_1"]
        record = {"instruction": case["source"], "candidates": [{"model": "m", "text": text} for text in case["candidates"]]}
        (done,) = apply(stage, [record])
        m = matrix(done["comparisons"]["pairrm"]["pairs"], len(ids))
        np.testing.assert_allclose(m, case["logits"], atol=1e-4)
        assert ranks_from_scores(max_logits(m)) == case["ranks_max_logits"]
        assert ranks_from_scores(max_wins(m)) == case["ranks_max_wins"]
        checked += len(done["comparisons"]["pairrm"]["pairs"])
    assert checked > 50


def test_pairrm_hf_layout_gives_the_reference_ids_and_logits(golden):
    model, tokenizer = load_pairrm(str(golden / "checkpoints" / "pairrm-hf"))
    values = json.loads((golden / "pairrm_hf.json").read_text())
    # The layout's config does not carry the lengths; its published code takes them as arguments.
    model.config.source_maxlength, model.config.candidate_maxlength = values["source_max_length"], values["candidate_max_length"]
    inputs = PairInputs(tokenizer, model.config)
    for case in values["cases"]:
        source = inputs.source(case["source"])
        pair = inputs.pair(source, *inputs.candidates([case["candidate1"], case["candidate2"]], source))
        assert [token for segment in pair for token in segment.ids] == case["input_ids"]
        with torch.inference_mode():
            assert float(model(*inputs.collate([pair]))) == pytest.approx(case["logit"], abs=1e-4)


def test_aggregations_and_ties(golden):
    values = json.loads((golden / "ranking.json").read_text())
    for case in values["aggregation"]:
        m = np.array(case["M"])
        assert ranks_from_scores(max_logits(m)) == case["ranks_max_logits"]
        assert ranks_from_scores(max_wins(m)) == case["ranks_max_wins"]
        np.testing.assert_allclose(max_logits(m), case["scores_max_logits"], atol=1e-6)
    for case in values["ties"]:
        assert ranks_from_scores(case["scores"]) == case["ranks"]


def test_gpt_rank_from_mixinstruct_verdicts(golden):
    values = json.loads((golden / "ranking.json").read_text())["gpt_rank"]
    for number, (record, expected) in enumerate(zip(values["records"], values["matrices"], strict=True)):
        for shape in (record, {**record, "cmp_results": json.dumps(record["cmp_results"])}):
            m = verdict_matrix(verdicts_of(shape)["mixinstruct"], 4)
            np.testing.assert_array_equal(m, expected)
        assert ranks_from_scores(max_logits(m)) == [values["ranks"][f"m{k}"][number] for k in (1, 2, 3, 4)]


def test_table_3_agreement(golden):
    values = json.loads((golden / "ranking.json").read_text())["correlation"]
    hypothesis, oracle = np.array(values["hypothesis"], float), np.array(values["oracle"], float)
    assert agreement.pearson(hypothesis, oracle) == pytest.approx(values["pearson"], abs=1e-9)
    assert agreement.spearman(hypothesis, oracle) == pytest.approx(values["spearman"], abs=1e-9)
    assert agreement.footrule(hypothesis, oracle) == pytest.approx(values["spearman_footrule"], abs=1e-9)


def test_fuser_prompt_to_the_letter(golden):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(golden / "checkpoints" / "backbone")
    for case in json.loads((golden / "fuser_prompt.json").read_text()):
        prompt = fuser_prompt(case["instruction"], case["input"], case["candidates"], tokenizer, case["candidate_maxlength"])
        assert prompt == case["fuser_input"]


def test_instructgpt_loss(golden):
    values = json.loads((golden / "losses.json").read_text())
    left, right = torch.tensor(values["left_pred"]), torch.tensor(values["right_pred"])
    better = torch.tensor(values["left_scores"]) > torch.tensor(values["right_scores"])
    equal = torch.tensor(values["left_scores"]) == torch.tensor(values["right_scores"])
    # The reference's loss on (left, right) rows; ours takes the scores of one record at a time.
    losses = []
    for row in range(len(left)):
        for task in range(left.shape[1]):
            if not equal[row, task]:
                scores = torch.stack([left[row, task], right[row, task]])
                labels = torch.tensor([1.0, 0.0] if better[row, task] else [0.0, 1.0])
                losses.append(float(ranking_loss(scores, labels, margin=0.0)))
    # We leave equal labels out; the reference takes their logit times zero, which is log 2 each.
    ties = int(equal.sum()) * math.log(2)
    assert (sum(losses) + ties) / left.numel() == pytest.approx(values["losses"]["instructgpt"], abs=1e-6)
