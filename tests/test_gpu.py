"""What only a GPU can show. `bin/bench gpu` runs these, and checks each form of attention beside them."""

from __future__ import annotations

import pytest
from conftest import examples

import blendkit as library
from blendkit.models.attention_forms import BOUNDS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    # What was compiled for one ranker counts against the limit of the next.
    torch.compiler.reset()


def embedded(folder, paired):
    """The embedded ranker's weights with so many paired layers; with None, they read each pair together."""
    import torch

    from blendkit.models.pairrm import load_pairrm, save_pairrm
    from blendkit.training.new_pairranker import late_paired

    model, tokenizer = load_pairrm("embedded")
    model = late_paired(model, paired)
    if paired is not None:
        # Else all heads are alike.
        torch.nn.init.normal_(model.paired_bias, std=0.02)
    save_pairrm(folder, model, tokenizer, torch.float32)
    return str(folder)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_on_the_gpu_are_those_of_the_cpu(tmp_path, dtype):
    same_on_both(embedded(tmp_path, None), dtype)


@pytest.mark.parametrize("paired", [1, 2])
def test_a_late_paired_rankers_logits_on_the_gpu_are_those_of_the_cpu(tmp_path, paired):
    same_on_both(embedded(tmp_path, paired), "float32")


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_embedded_ranker_on_the_gpu_is_that_of_the_cpu(dtype):
    same_on_both("embedded", dtype)


@pytest.mark.parametrize("form", ["flex", "varlen", "batched", "per-input"])
def test_each_form_gives_the_same_logits(tmp_path, form):
    # FlashAttention has no float32.
    same_on_both(embedded(tmp_path, None), "bfloat16" if form == "varlen" else "float32", form)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_debertas_attention_goes_through_its_kernel(dtype, monkeypatch):
    import torch

    from blendkit.models.attention_forms import Machine, triton_fault
    from blendkit.models.fast import rows
    from blendkit.models.fast.packing import pack
    from blendkit.models.fast.relative import Buckets, Relative

    device, kind = torch.device("cuda"), getattr(torch, dtype)
    if fault := triton_fault(Machine.of(device), dtype):
        pytest.skip(fault)
    kernel, ran = rows.attention_kernel(device, kind), []
    monkeypatch.setattr(rows, "attention_kernel", lambda device, dtype: (lambda *given: ran.append(1) or kernel(*given)) if device.type == "cuda" else None)
    generator = torch.Generator().manual_seed(0)
    # Relative scores are as large as the others, so that contexts without them would be quite different.
    tables = [torch.randn(4, 512, 64, generator=generator), torch.randn(4, 512, 64, generator=generator) / 8]
    # Parts of a block, whole ones, and many.
    lengths = [1, 17, 128, 129, 200, 457, 470, 800, 1100]
    qkv = torch.randn(sum(lengths), 3, 4, 64, generator=generator)
    qkv[:, 0] /= 8
    for given in ((0, 1), (1, 0), (1, 1)):
        found = []
        for where, number in ((torch.device("cpu"), torch.float32), (device, kind)):
            buckets = Buckets(256, 256, 512, where)
            relative = Relative(*(table.to(where, number) if there else None for table, there in zip(tables, given, strict=True)))
            batch = pack([[7] * length for length in lengths]).to(where)
            form = rows.Batched(buckets, 0.0)
            found.append(form(qkv.to(where, number), batch, relative, None).float().cpu())
        torch.testing.assert_close(found[1], found[0], atol=min(BOUNDS[dtype], 0.03), rtol=0)
    assert len(ran) == 3


@pytest.mark.parametrize("dtype", BOUNDS)
def test_states_of_an_encoder_that_adds_nothing_to_scores_go_through_every_form(dtype):
    def scores(**how):
        (record,) = library.score(examples(1), ["bertscore"], **how)
        return [candidate["scores"]["bertscore"] for candidate in record["candidates"]]

    expected = scores(device="cpu", dtype="float32")
    for form in ("flex", "varlen", "batched"):
        # Each has its first batch compared, too.
        assert scores(device="cuda", dtype=dtype, attention=form) == pytest.approx(expected, abs=BOUNDS[dtype]), form


def test_a_first_batch_that_is_wrong_stops_the_run(monkeypatch):
    from blendkit.errors import BlendkitError
    from blendkit.models.fast.rows import Batched

    inner = Batched.__call__
    monkeypatch.setattr(Batched, "__call__", lambda *given: inner(*given).roll(1, 0))
    with pytest.raises(BlendkitError, match=r"the first batch does not prove itself: a logit is .* with batched attention in float32 on cuda"):
        list(library.pair(examples(1), device="cuda", dtype="float32", attention="batched"))
    list(library.pair(examples(1), device="cuda", dtype="float32", attention="batched", self_check=False))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_ranker_on_a_causal_lm_is_that_of_the_cpu(dtype, tiny_chat, tmp_path):
    """There all candidates of an x are one call."""
    import torch

    from blendkit.models.lm_ranker import LMRankerConfig, new_lm_ranker, save_lm_ranker

    model, _ = new_lm_ranker(LMRankerConfig(str(tiny_chat), 0, 0, 96, 64, read_layers=(1, 2)))
    torch.manual_seed(1)
    model.weight.data.normal_()
    save_lm_ranker(tmp_path, model)
    same_on_both(str(tmp_path), dtype)


def same_on_both(model: str, dtype: str, form: str = "auto") -> None:
    """Logits of `dtype` on the GPU against those of float32 on the CPU."""
    both = (("cpu", "float32", "auto"), ("cuda", dtype, form))
    expected, found = (list(library.pair(examples(3), model, device=device, dtype=kind, attention=how)) for device, kind, how in both)
    pairs = [[record["comparisons"]["pairrm"]["pairs"] for record in records] for records in (expected, found)]
    assert [[pair[:2] for pair in record] for record in pairs[0]] == [[pair[:2] for pair in record] for record in pairs[1]]
    logits = [[logit for record in side for *_, logit in record] for side in pairs]
    assert logits[1] == pytest.approx(logits[0], abs=BOUNDS[dtype] * max(1.0, *map(abs, logits[0])))


def test_what_is_sent_arrives_and_windows_follow_the_budget():
    import torch

    from blendkit.models.fast.transfer import sent
    from blendkit.pipeline.plan import Plan
    from blendkit.pipeline.runner import process
    from blendkit.rankers.pairranker import PairRanker
    from blendkit.streams.lines import Line

    parts = [torch.arange(6).view(2, 3), torch.tensor([7])]
    assert all(torch.equal(found.cpu(), part) for found, part in zip(sent(parts, torch.device("cuda")), parts, strict=True))
    stage = PairRanker("embedded", device="cuda")
    records = [dict(record, id=str(number), candidates=record["candidates"][:2]) for number, record in enumerate(examples(5) * 6)]
    lines = [Line(number, b"", record) for number, record in enumerate(records)]
    assert len(list(process(stage, lines, Plan(window=stage.in_flight, batch_tokens=stage.batch_tokens)))) == 1


@pytest.mark.parametrize("metric", ["bertscore", "cosine", "bartscore", "bleurt", "mlm", "simcls", "summareranker"])
def test_scores_on_the_gpu_are_those_of_the_cpu(tiny, metric):
    from tiny_scorers import spec

    scored = [list(library.score(examples(4), [spec(tiny, metric)], device=device, dtype="float32")) for device in ("cpu", "cuda")]
    values = [[candidate["scores"][metric] for record in records for candidate in record["candidates"]] for records in scored]
    assert values[1] == pytest.approx(values[0], abs=BOUNDS["float32"], rel=BOUNDS["float32"])


def test_batches_are_by_the_gpus_memory_and_draws_by_the_seed(tiny_t5, tiny_chat):
    from blendkit.fusers.genfuser import GenFuser
    from blendkit.models.loading import DECODED

    assert GenFuser(str(tiny_t5), device="cuda").batch_tokens > DECODED
    asked = [{"id": record["id"], "instruction": record["instruction"]} for record in examples(4)]
    settings = {"device": "cuda", "dtype": "float32", "temperature": 1.0, "max_new_tokens": 8}
    whole, again, alone = (list(library.generate(asked, [str(tiny_chat)], **settings, **more)) for more in ({}, {}, {"batch_tokens": 1}))
    assert whole == again == alone
