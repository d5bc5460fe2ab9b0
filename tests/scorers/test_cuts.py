"""Every scorer with a model tells how many of its inputs were longer than the model reads, and by how much."""

from __future__ import annotations

import json

import pytest
from conftest import lines
from tiny_scorers import spec

from blendkit.pipeline.runner import apply
from blendkit.scorers.scoring import Scoring

LONG = "long ago " * 700
METRICS = ["bertscore", "bertscore-recall", "mbr", "cosine", "bartscore", "bleurt", "mlm", "simcls", "summareranker"]


def record(**more) -> dict:
    return {"id": "a", "instruction": "Why?", "output": "So.", "candidates": [{"model": "m", "text": "So it was."}, {"model": "n", "text": "No."}], **more}


@pytest.mark.parametrize("metric", METRICS)
def test_a_scorer_counts_what_it_cut(called, tiny, tmp_path, monkeypatch, metric):
    # It reads a text once for each of its tokens.
    if metric == "mlm":
        monkeypatch.setattr("blendkit.models.encoder_reader.longest_input", lambda *model: 24)
    long = record(id="b", candidates=[{"model": "m", "text": LONG}, {"model": "n", "text": "No."}])
    manifest = tmp_path / "manifest.json"
    score = ("score", "--metric", spec(tiny, metric), "--device", "cpu", "--manifest", manifest)
    code, _, said = called(*score, stdin=lines([record(), long]))
    assert code == 0, said
    (cuts,) = json.loads(manifest.read_text())["truncation"].values()
    (told,) = said.splitlines()
    many = f"{cuts['inputs_cut']:,} of {cuts['inputs']:,} inputs ({cuts['tokens_cut']:,} tokens)"
    assert told == f"blendkit score: {metric}: cut to the model's length: {many}"
    assert 1 <= cuts["inputs_cut"] < cuts["inputs"] and cuts["tokens_cut"] > 80
    # Nothing is told of what fits.
    code, _, said = called(*score, stdin=lines([record()]))
    (cuts,) = json.loads(manifest.read_text())["truncation"].values()
    assert (code, said, cuts["tokens_cut"]) == (0, "", 0)


@pytest.mark.parametrize("length", [1, 507, 508, 509, 510, 511, 512, 513])
def test_a_text_that_just_fits_is_not_cut(tiny_encoder, length):
    """The tokens cut are those that the whole text has beyond the model's length."""
    from blendkit.models.cuts import Cuts
    from blendkit.models.encoder import Encoder

    encoder, cuts = Encoder(str(tiny_encoder), device="cpu"), Cuts()
    (ids,) = encoder.ids(["the " * length], cuts)
    whole = len(encoder.texts(["the " * length])["input_ids"][0])
    assert (cuts.inputs, cuts.inputs_cut, cuts.tokens_cut) == (1, int(whole > encoder.longest), max(0, whole - encoder.longest))
    assert len(ids) == min(whole, encoder.longest)


def test_the_embedded_judge_and_the_consensus_tell_it_too(called):
    long = record(candidates=[{"model": "m", "text": LONG}, {"model": "n", "text": "No."}], top=[0, 1])
    code, _, said = called("judge", stdin=lines([long]))
    assert code == 0 and "bertscore: cut to the model's length: 1 of 3 inputs (" in said
    code, _, said = called("fuse", stdin=lines([long]))
    assert code == 0 and "cut to the model's length: 1 of 2 inputs (" in said


@pytest.mark.parametrize("metric", ["simcls", "summareranker"])
def test_an_x_is_counted_once_however_many_candidates_read_it(tiny, metric):
    candidates = [{"model": f"m{number}", "text": f"No. {number}"} for number in range(3)]
    stage = Scoring([spec(tiny, metric)], "cpu")
    list(apply(stage, [record(instruction=LONG, candidates=candidates)]))
    (cuts,) = stage.describe()["truncation"].values()
    assert (cuts["inputs"], cuts["inputs_cut"]) == (4, 1)
