"""Parity with the public reference implementations (../shared/golden)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import blendkit as library
from blendkit.aggregate import matrix, max_logits, max_wins, ranks_from_scores, verdict_matrix
from blendkit.evaluation.agreement import RankAgreement
from blendkit.fusers.genfuser import fuser_prompt
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.mixture_of_experts import head_of, save_summareranker
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import load_pairrm
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.runner import apply
from blendkit.rankers.conversations import pair_texts
from blendkit.rankers.pairranker import PairRanker
from blendkit.rankers.schedules import bubble
from blendkit.records import verdicts_of
from blendkit.scorers.bartscore import load_bart
from blendkit.scorers.simcls import SimCLS, simcls_ids
from blendkit.scorers.summareranker import SummaReranker, summareranker_ids
from blendkit.training.losses import bce, instructgpt, mse, simcls


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
    scorer = PairScorer(model, inputs, torch.device("cpu"), torch.float32)
    assert scorer.encoder is not None
    for case in values["cases"]:
        source = inputs.source(case["source"])
        pair = inputs.pair(source, *inputs.candidates([case["candidate1"], case["candidate2"]], source))
        assert [token for segment in pair for token in segment.ids] == case["input_ids"]
        assert float(scorer([pair])) == pytest.approx(case["logit"], abs=1e-4)


@pytest.fixture(scope="module")
def blender(golden):
    """The drop-in for llm_blender, with the tiny PairRM."""
    from blendkit.rankers.compat import Blender

    found = Blender()
    found.loadranker(str(golden / "checkpoints" / "pairrm"), device="cpu")
    return found


def pairrm_cases(golden):
    return json.loads((golden / "pairrm.json").read_text())["cases"]


def test_rank_as_the_reference(golden, blender):
    for case in pairrm_cases(golden):
        ranks = blender.rank([case["source"]], [case["candidates"]])
        scores = blender.rank([case["source"]], [case["candidates"]], return_scores=True, batch_size=1)
        assert ranks.tolist() == [case["ranks"]]
        assert (ranks.dtype, scores.dtype) == (np.int32, np.float32)
        np.testing.assert_allclose(scores[0], case["rank_scores"], atol=1e-4)


def test_compare_in_three_modes(golden, blender):
    checked = 0
    for case in pairrm_cases(golden):
        for mode in ("[A,B]", "[B,A]", "[A,B]+[B,A]"):
            expected = case.get(f"compare_0_1 {mode}")
            if expected is not None:
                sides = [case["candidates"][0]], [case["candidates"][1]]
                logits = blender.compare([case["source"]], *sides, return_logits=True, mode=mode)
                assert logits.tolist() == pytest.approx([expected], abs=1e-4)
                assert blender.compare([case["source"]], *sides, mode=mode).tolist() == [expected > 0]
                checked += 1
    assert checked == 33


def test_rank_with_ref_in_five_modes(golden, blender):
    checked = 0
    for case in pairrm_cases(golden):
        record = {"instruction": case["source"], "candidates": [{"model": f"m{n}", "text": text} for n, text in enumerate(case["candidates"])]}
        (paired,) = library.pair([record], str(golden / "checkpoints" / "pairrm"), device="cpu")
        for mode in ("longest", "shortest", "median_length", "first", "last"):
            expected = case.get(f"rank_with_ref {mode}")
            if expected is None:
                continue
            scores = blender.rank_with_ref([case["source"]], [case["candidates"]], return_scores=True, ref_mode=mode)
            np.testing.assert_allclose(scores[0], expected, atol=1e-4)
            (ranked,) = library.rank([paired], reference=mode.replace("_", "-"))
            assert ranked["ranks"][f"pairrm:reference-{mode.replace('_', '-')}"] == ranks_from_scores(np.round(expected, 5).tolist())
            checked += 1
    assert checked == 55


def test_a_bubble_run_as_the_reference(golden):
    """The reference starts from a random order; ours from a drawn one, so the golden run's start is put in its place."""

    class Drawn:
        def __init__(self, order):
            self.order = order

        def sample(self, population, k):
            return list(self.order)

    checked = 0
    for case in pairrm_cases(golden):
        if not case.get("bubble"):
            continue
        current, following, better = case["bubble"]["select_process"]
        run = bubble(len(case["candidates"]), Drawn([current[0], *following]))
        process, order = [], None
        pairs = next(run)
        while order is None:
            process.append(pairs[0])
            try:
                pairs = run.send([case["logits"][i][j] for i, j in pairs])
            except StopIteration as done:
                order = done.value
        assert process == list(zip(current, following, strict=True))
        assert order == [case["bubble"]["best"]] == [better[-1]]
        checked += 1
    assert checked == 11


def test_a_conversation_as_the_reference(golden, blender):
    case = json.loads((golden / "pairrm.json").read_text())["conversation"]
    logits = blender.compare_conversations([case["a"]], [case["b"]], return_logits=True)
    assert logits.tolist() == pytest.approx([case["logit"]], abs=1e-4)
    questions = [{"role": turn["role"].lower(), "content": turn["content"]} for turn in case["a"]]
    source, texts = pair_texts({"messages": questions[:-1]}, [case["a"][-1]["content"]])
    assert [source, texts[0]] == case["text"][:2]


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
    found = RankAgreement()
    found.add(np.array(values["hypothesis"]), np.array(values["oracle"]))
    assert found.pearson() == pytest.approx(values["pearson"], abs=1e-9)
    assert found.spearman() == pytest.approx(values["spearman"], abs=1e-9)
    assert found.footrule() == pytest.approx(values["spearman_footrule"], abs=1e-9)


def test_fuser_prompt_to_the_letter(golden):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(golden / "checkpoints" / "backbone")
    texts = TextTokenizer(tokenizer)
    for case in json.loads((golden / "fuser_prompt.json").read_text()):
        prompt = fuser_prompt(case["instruction"], case["input"], case["candidates"], texts, case["candidate_maxlength"])
        assert prompt == case["fuser_input"]
        assert texts.read(prompt) == tokenizer(prompt)["input_ids"]


def test_bartscore(golden):
    values = json.loads((golden / "bartscore.json").read_text())
    bart, tokenizer, _ = load_bart(str(golden / "checkpoints" / "bart"), "cpu", "float32")
    rows = [tokenizer([pair["source"], pair["target"]], truncation=True, max_length=values["max_length"])["input_ids"] for pair in values["pairs"]]
    together = bart.log_probabilities([(states, [target]) for states, (_, target) in zip(bart.encode([source for source, _ in rows]), rows, strict=True)])
    for pair, (source, target), (found,) in zip(values["pairs"], rows, together, strict=True):
        assert found == pytest.approx(pair["score"], abs=1e-4)
        assert bart.log_probabilities([(bart.encode([source])[0], [target])])[0] == pytest.approx([pair["score"]], abs=1e-4)


def test_mlm_scoring(golden):
    texts = json.loads((golden / "mlm_scoring.json").read_text())["texts"]
    checkpoint = golden / "checkpoints" / "roberta"
    record = {"candidates": [{"model": "m", "text": text["text"]} for text in texts]}
    (done,) = library.score([record], [f"mlm:{checkpoint}", f"mlm-norm:{checkpoint}"], device="cpu")
    for candidate, expected in zip(done["candidates"], texts, strict=True):
        assert candidate["scores"]["mlm"] == pytest.approx(expected["pll"], abs=1e-4)
        assert candidate["scores"]["mlm-norm"] == pytest.approx(expected["pll"] / expected["tokens"], abs=1e-4)


def unpadded(ids):
    return [token for token in ids if token != 1]


def test_simcls(golden):
    values = json.loads((golden / "simcls.json").read_text())
    checkpoint = str(golden / "checkpoints" / "roberta")
    scorer = SimCLS("simcls", checkpoint, "cpu")
    assert {token: scorer.tokenizer.convert_tokens_to_ids(token) for token in values["added_tokens"]} == values["added_tokens"]
    for case in values["cases"]:
        assert list(simcls_ids(scorer.texts, case["source"], 0, scorer.lengths)) == unpadded(case["source_input_ids"])
        assert [list(simcls_ids(scorer.texts, text, 1, scorer.lengths)) for text in case["candidates"]] == [
            unpadded(ids) for ids in case["candidate_input_ids"]
        ]
        record = {"instruction": case["source"], "candidates": [{"model": "m", "text": text} for text in case["candidates"]]}
        (done,) = library.score([record], [f"simcls:{checkpoint}"], device="cpu")
        assert [candidate["scores"]["simcls"] for candidate in done["candidates"]] == pytest.approx(case["cosine"], abs=1e-4)


def test_summareranker(golden, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    backbone = golden / "checkpoints" / "roberta"
    weights = load_file(golden / "checkpoints" / "summareranker" / "model.safetensors")
    encoder = AutoModel.from_pretrained(backbone)
    encoder.load_state_dict(
        {key.removeprefix("pretrained_model."): value for key, value in weights.items() if key.startswith("pretrained_model.")}, strict=False
    )
    save_summareranker(tmp_path, encoder, head_of(weights), AutoTokenizer.from_pretrained(backbone), 40, 40)
    scorer = SummaReranker("summareranker", str(tmp_path), "cpu")
    for case in json.loads((golden / "summareranker.json").read_text())["cases"]:
        rows = summareranker_ids(scorer.texts, case["source"], case["candidates"], scorer.source_maxlength, scorer.candidate_maxlength)
        assert [list(row) for row in rows] == [unpadded(ids) for ids in case["input_ids"]]
        np.testing.assert_allclose(scorer.logits(rows), case["task_logits"], atol=1e-4)
        record = {"instruction": case["source"], "candidates": [{"model": "m", "text": text} for text in case["candidates"]]}
        (done,) = library.score([record], [f"summareranker:{tmp_path}"], device="cpu")
        assert [candidate["scores"]["summareranker"] for candidate in done["candidates"]] == pytest.approx(case["score"], abs=1e-4)


def test_losses(golden):
    values = json.loads((golden / "losses.json").read_text())
    given = [torch.tensor(values[key]) for key in ("left_pred", "right_pred", "left_scores", "right_scores")]
    for name, loss in (("BCE", bce), ("instructgpt", instructgpt), ("MSE", mse)):
        assert float(loss(*given).mean()) == pytest.approx(values["losses"][name], abs=1e-6), name
    similarities, reference, scores = (torch.tensor(values[key]) for key in ("sim_mat", "target_sim", "sum_scores"))
    assert float(simcls(similarities, reference, scores)) == pytest.approx(values["losses"]["simcls"], abs=1e-6)
