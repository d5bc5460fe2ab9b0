"""The drop-in for `llm_blender`: its API, and the real libraries that call it."""

from __future__ import annotations

import shutil
import sys
import warnings

import numpy as np
import pytest
from conftest import examples

from blendkit.rankers import compat

INPUTS = [record["instruction"] for record in examples(3)]
CANDIDATES = [[candidate["text"] for candidate in record["candidates"]] for record in examples(3)]


@pytest.fixture(scope="module")
def blender(tiny_ranker):
    found = compat.Blender()
    found.loadranker(str(tiny_ranker), device="cpu")
    return found


def test_shapes_and_types_of_the_public_api(blender):
    ranks = blender.rank(INPUTS, CANDIDATES, return_scores=False, batch_size=1)
    scores = blender.rank(INPUTS, CANDIDATES, return_scores=True, disable_tqdm=True)
    assert (ranks.shape, ranks.dtype) == ((3, 5), np.int32)
    assert (scores.shape, scores.dtype) == ((3, 5), np.float32)
    assert (ranks.argmin(1) == scores.argmax(1)).all()
    assert sorted(ranks[0].tolist()) == [1, 2, 3, 4, 5]
    sides = [texts[0] for texts in CANDIDATES], [texts[1] for texts in CANDIDATES]
    logits = blender.compare(INPUTS, *sides, return_logits=True)
    assert (logits.shape, logits.dtype) == ((3,), np.float32)
    better = blender.compare(INPUTS, *sides)
    assert better.dtype == bool
    assert (better == (logits > 0)).all()
    margins = blender.rank_with_ref(INPUTS, CANDIDATES, return_scores=True, mode="median_length")
    assert (margins.shape, margins.dtype) == ((3, 5), np.float64)
    assert (margins == 0).sum() == 3
    own = blender.rank_with_ref(INPUTS, CANDIDATES, return_scores=True, ref_candidates=[texts[0] for texts in CANDIDATES])
    np.testing.assert_allclose(own[:, 1], -logits, atol=1e-5)


def test_instructions_stand_right_before_the_inputs(blender):
    joined = blender.rank(["ab"], [["x", "y", "z"]], return_scores=True)
    split = blender.rank(["b"], [["x", "y", "z"]], instructions=["a"], return_scores=True)
    np.testing.assert_array_equal(joined, split)


def test_best_and_worst_of_n(blender):
    best, worst = blender.get_best_of_n(INPUTS, CANDIDATES), blender.get_worst_of_n(INPUTS, CANDIDATES)
    everything = blender.get_best_of_n(INPUTS, CANDIDATES, return_all=True)
    assert [texts[0] for texts in everything] == best
    assert [sorted(texts) for texts in everything] == [sorted(texts) for texts in CANDIDATES]
    full = blender.get_best_of_n(INPUTS, CANDIDATES, pairrm_cmp_type="full", return_all=True)
    ranks = blender.rank(INPUTS, CANDIDATES)
    for texts, row, candidates in zip(full, ranks, CANDIDATES, strict=True):
        assert texts == [candidates[index] for index in np.argsort(row, kind="stable")]
    assert blender.get_worst_of_n(INPUTS, CANDIDATES, pairrm_cmp_type="full") == [texts[-1] for texts in full]
    for source, candidates, winner, loser in zip(INPUTS, CANDIDATES, best, worst, strict=True):
        for sign, expected in ((1, winner), (-1, loser)):
            carried = candidates[0]
            for following in candidates[1:]:
                (margin,) = blender.compare([source], [carried], [following], return_logits=True)
                carried = carried if sign * margin > 0 else following
            assert carried == expected
    assert blender.get_best_of_n(["x"], [["only"]]) == ["only"]
    assert blender.get_best_of_n(["x"], [["only"]], return_all=True) == [["only"]]


def test_lengths_can_be_set_for_a_call(blender):
    long = [["word " * 60, "other " * 60 + "end"]]
    short = blender.rank(["x"], long, return_scores=True, candidate_max_length=8)
    assert not np.allclose(short, blender.rank(["x"], long, return_scores=True))


def test_wrong_use_says_what_is_wrong(blender):
    with pytest.raises(RuntimeError, match="call loadranker first"):
        compat.Blender().rank(["x"], [["a", "b"]])
    with pytest.raises(RuntimeError, match="call loadfuser first"):
        compat.Blender().fuse(["x"], [["a", "b"]])
    with pytest.raises(ValueError, match="same number of candidates"):
        blender.rank(["x", "y"], [["a", "b"], ["a"]])
    with pytest.raises(ValueError, match="2 candidates for 1 input"):
        blender.rank(["x"], [["a", "b"], ["a", "b"]])
    with pytest.raises(ValueError, match=r"expected one of \[A,B\]"):
        blender.compare(["x"], ["a"], ["b"], mode="[A]")
    with pytest.raises(ValueError, match="USER and ASSISTANT"):
        blender.compare_conversations([[{"role": "user", "content": "x"}]], [[{"role": "user", "content": "x"}]])


def test_rank_and_fuse(blender, tiny_t5):
    blender.loadfuser(str(tiny_t5), device="cpu")
    fused, ranks = blender.rank_and_fuse(INPUTS, CANDIDATES, top_k=2, max_new_tokens=5, num_beams=1)
    assert len(fused) == 3
    assert all(isinstance(text, str) for text in fused)
    np.testing.assert_array_equal(ranks, blender.rank(INPUTS, CANDIDATES))
    _, scores = blender.rank_and_fuse(INPUTS, CANDIDATES, return_scores=True, max_new_tokens=2)
    assert scores.dtype == np.float32


def test_best_of_n_generate(blender, tiny_chat):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_chat), AutoTokenizer.from_pretrained(tiny_chat)
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    sampled = blender.n_generate(model, tokenizer, INPUTS, n=4, max_new_tokens=6)
    assert [len(texts) for texts in sampled] == [4, 4, 4]
    assert len({text for texts in sampled for text in texts}) > 4
    best = blender.best_of_n_generate(model, tokenizer, INPUTS, n=3, max_new_tokens=6, return_all=True, sampling_mode="top_k_sampling")
    assert [len(texts) for texts in best] == [3, 3, 3]


@pytest.fixture
def standing_in(tiny_ranker, tmp_path, monkeypatch):
    """`llm_blender` is ours, and `llm-blender/PairRM` is the tiny ranker."""
    shutil.copytree(tiny_ranker, tmp_path / "llm-blender" / "PairRM")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_blender", raising=False)
    compat.install()
    yield
    sys.modules.pop("llm_blender", None)


@pytest.mark.filterwarnings("ignore")
def test_the_pairrm_step_of_distilabel(standing_in, blender):
    tasks = pytest.importorskip("distilabel.steps.tasks.pair_rm", reason="distilabel is not installed (pip install -e '.[clients]')")
    step = tasks.PairRM(input_batch_size=2)
    step.load()
    rows = [{"input": text, "candidates": list(texts)} for text, texts in zip(INPUTS, CANDIDATES, strict=True)]
    (done,) = list(step.process(rows))
    assert [row["ranks"] for row in done] == blender.rank(INPUTS, CANDIDATES).tolist()
    for row, texts in zip(done, CANDIDATES, strict=True):
        assert sorted(row["ranked_candidates"]) == sorted(texts)


@pytest.mark.filterwarnings("ignore")
def test_the_pairrm_judge_of_trl(standing_in, blender, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judges = pytest.importorskip("trl.experimental.judges", reason="trl is not installed (pip install -e '.[clients]')")
    import transformers

    # TRL 0.29 refuses transformers 5 because llm_blender does; what stands in for it does not.
    with monkeypatch.context() as version:
        version.setattr(transformers, "__version__", "4.57.0")
        judge = judges.PairRMJudge()
    pairs = [texts[:2] for texts in CANDIDATES]
    ranks = blender.rank(INPUTS, pairs)
    for shuffled in (False, True):
        assert judge.judge(INPUTS, [list(pair) for pair in pairs], shuffle_order=shuffled) == (ranks[:, 0] - 1).tolist()
    probabilities = judge.judge(INPUTS, pairs, shuffle_order=False, return_scores=True, temperature=0.5)
    scores = blender.rank(INPUTS, pairs, return_scores=True) / 0.5
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(scores[:, 1] - scores[:, 0])), rtol=1e-4)
