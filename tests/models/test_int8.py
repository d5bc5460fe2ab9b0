"""--dtype int8: products as they are defined, near float32 in every command that takes it, and one line where it cannot be."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from conftest import examples, lines, parsed
from test_fast_models import CPU, SHAPE, Inputs, network, rows
from test_late import Inputs as LateInputs
from test_late import network as late_network
from test_late import rows_of, texts
from transformers import AutoConfig, AutoModel

from blendkit.errors import UsageError
from blendkit.models.fast import int8
from blendkit.models.fast.int8 import Int8Linear, has_int8
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.pairrm import PairRM, PairRMConfig

# Elsewhere sums of two products may overflow, and int8 is refused.
bytes_here = pytest.mark.skipif(not has_int8(), reason="this processor has no products of bytes")


@bytes_here
def test_a_layer_is_what_is_written_out_whatever_the_batch():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1300, 48) * torch.rand(1300, 1).exp(), torch.randn(40, 48), torch.randn(40)
    x[7] = 0
    of_tokens, of_channels = x.abs().amax(1).double() / 127, weight.abs().amax(1).double() / 127
    q = (x.double() / of_tokens.clamp(min=1e-30)[:, None]).round()
    w = (weight.double() / of_channels[:, None]).round()
    assert q.abs().max() == w.abs().max() == 127
    written_out = of_tokens[:, None] * of_channels * (q @ w.T) + bias.double()
    layer = Int8Linear(weight, bias)
    found = layer(x)
    # A quotient halfway between two whole numbers may be rounded to either.
    off = (found - written_out).abs()
    assert (off > 1e-4).float().mean() < 1e-3 and off.max() < 0.1
    assert torch.equal(found[7], bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert 0.001 < (found - exact).abs().mean() / exact.abs().mean() < 0.02
    # No token feels the others.
    assert torch.equal(torch.cat([layer(x[:3]), layer(x[3:700]), layer(x[700:])]), found)
    gelu = Int8Linear(weight, None, torch.nn.GELU())(x)
    torch.testing.assert_close(gelu, torch.nn.functional.gelu(found - bias), atol=1e-5, rtol=1e-5)


@bytes_here
@pytest.mark.parametrize(("name", "paired"), [("bert-segments", None), ("deberta-v3", None), ("modernbert", None), ("bert-segments", 1)])
def test_rankers_are_near_float32_in_any_batch(name, paired):
    model = network(name) if paired is None else late_network(name, paired)
    inputs = Inputs(model.config) if paired is None else LateInputs(model.config)
    source, *candidates = texts(17, 3, 41, 90, 60)
    some = rows() if paired is None else rows_of(inputs, source, candidates)
    exact, narrow = PairScorer(model, inputs, CPU, torch.float32)(some), PairScorer(model, inputs, CPU, torch.int8)
    found = narrow(some)
    assert not torch.equal(found, exact) and (found - exact).abs().mean() < 0.1 * exact.abs().mean()
    alone = torch.cat([narrow([row]) for row in some])
    assert (alone - found).abs().mean() < 0.05 * exact.abs().mean()


@bytes_here
def test_an_encoder_without_a_packed_form_has_its_layers_in_int8():
    encoder = AutoModel.from_config(AutoConfig.for_model("electra", **SHAPE, embedding_size=48))
    model = PairRM(PairRMConfig(100, 100), encoder).eval()
    exact = PairScorer(deepcopy(model), Inputs(model.config), CPU, torch.float32)(rows(3))
    found = PairScorer(model, Inputs(model.config), CPU, torch.int8)(rows(3))
    assert not torch.equal(found, exact) and (found - exact).abs().max() < 0.1 * exact.abs().max()


@bytes_here
def test_every_command_that_takes_it_is_near_float32(called, tiny, tiny_ranker, tmp_path):
    stream = lines(examples(2))
    takes = ["bertscore", "cosine", "simcls", "summareranker", "bleurt", "roberta-bleurt", "reward", "deberta-reward", "mbr"]
    label = {name: name.partition("-")[2] or name for name in takes}
    metrics = [part for name in takes for part in ("--metric", f"{name}={label[name]}:{tiny[name]}")]
    manifest = tmp_path / "manifest.json"

    def run(dtype):
        code, out, err = called("score", "--device", "cpu", "--dtype", dtype, "--manifest", manifest, *metrics, stdin=stream)
        assert code == 0, err
        said = json.loads(manifest.read_text())
        assert set(said["dtypes"].values()) == {f"torch.{dtype}"} and set(said["dtypes"]) == {*takes}
        scores = {name: [candidate["scores"][name] for record in parsed(out) for candidate in record["candidates"]] for name in takes}
        code, out, err = called("pair", "--device", "cpu", "--dtype", dtype, "--model", tiny_ranker, "--manifest", manifest, stdin=stream)
        assert code == 0, err
        assert json.loads(manifest.read_text())["dtype"] == f"torch.{dtype}"
        scores["pair"] = [logit for record in parsed(out) for *_, logit in record["comparisons"]["pairrm"]["pairs"]]
        return scores, said["signatures"]

    (exact, of_floats), (found, of_bytes) = run("float32"), run("int8")
    for name, values in exact.items():
        near, values = torch.tensor(found[name]), torch.tensor(values)
        assert not torch.equal(near, values), name
        # Of so small a model all scores may be off by as much, which no ranking feels.
        assert (near - values).std() < 0.02 + 0.1 * values.std(), name
        assert (near - values).abs().mean() < 0.02 + 0.1 * values.abs().mean(), name
    assert not set(of_floats) & set(of_bytes)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["score", "--metric", "bartscore:{bartscore}"], "--dtype int8: BARTScore does not run in it"),
        (["score", "--metric", "mlm:{mlm}"], "--dtype int8: the metric mlm does not run in it"),
        (["generate", "-m", "a={judge}"], "--dtype int8: a model that writes does not run in it"),
        (["pair", "--dtype", "int9"], "--dtype int9: expected auto, float32, bfloat16, float16 or int8"),
    ],
)
def test_where_it_cannot_be_is_one_line(called, tiny, arguments, told):
    words = [word.format(**tiny) for word in arguments]
    code, out, err = called(*words, *([] if "--dtype" in words else ["--dtype", "int8"]), "--device", "cpu", stdin=lines(examples(1)))
    assert (code, out, err.count("\n")) == (2, "", 1) and told in err


def test_a_processor_or_device_without_it_is_one_line(called, tiny_ranker, monkeypatch):
    monkeypatch.setattr(int8, "has_int8", lambda: False)
    code, out, err = called("pair", "--model", tiny_ranker, "--device", "cpu", "--dtype", "int8", stdin=lines(examples(1)))
    assert (code, out, err.count("\n")) == (2, "", 1) and "this processor has no products of bytes" in err
    with pytest.raises(UsageError, match="it runs on a CPU, not on cuda"):
        int8.expect_int8(torch.device("cuda"))


@bytes_here
def test_a_network_without_linear_layers_is_refused_and_no_rows_are_no_fault():
    from transformers.pytorch_utils import Conv1D

    with pytest.raises(UsageError, match=r"^--dtype int8: this model's products are no plain linear layers"):
        int8.placed(torch.nn.Sequential(Conv1D(4, 4)), CPU, torch.int8)
    placed = int8.placed(torch.nn.Sequential(torch.nn.Linear(8, 16)), CPU, torch.int8)
    assert placed(torch.randn(0, 8)).shape == (0, 16)
