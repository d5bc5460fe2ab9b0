"""A late-paired ranker gives what its definition says, for every family, in any batch and order; candidates are read once."""

from __future__ import annotations

import json
import shutil
from itertools import permutations

import pytest
import torch
from conftest import examples, lines, parsed
from test_fast_models import ENCODERS, Tokenizer
from test_fast_models import network as encoder_of

from blendkit.models.fast import layers
from blendkit.models.fast.attention import Flex
from blendkit.models.fast.late import Late
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.fast.written_out import WrittenOut
from blendkit.models.pair_inputs import PairInputs
from blendkit.models.pairrm import PairRM, PairRMConfig, load_pairrm, save_pairrm
from blendkit.pipeline.runner import apply
from blendkit.rankers import pairranker
from blendkit.rankers.pairranker import PairRanker
from blendkit.training.losses import soft
from blendkit.training.new_pairranker import late_paired

CPU = torch.device("cpu")
ALL = list(permutations(range(3), 2))


class Inputs(PairInputs):
    def __init__(self, config: PairRMConfig) -> None:
        self.tokenizer, self.config, self.candidate_ids = Tokenizer(), config, (5, 6)


def network(name: str, paired: int, tasks: int = 2) -> PairRM:
    encoder, positions = encoder_of(name).pretrained_model, "segment" if name.endswith("segments") else "running"
    model = PairRM(PairRMConfig(100, 100, tasks, positions=positions, candidate_bias=-1.0, paired_layers=paired), encoder).eval()
    for layer in (model.head_layer[1], model.head_layer[4]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    if paired:
        torch.nn.init.normal_(model.paired_bias, std=0.02)
    return model


def texts(*lengths: int, seed: int = 1) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(0, 5, *torch.randint(7, 300, (length - 2,), generator=generator).tolist()) for length in lengths]


def rows_of(inputs: PairInputs, source, candidates) -> list:
    return [inputs.pair(source, candidates[i], candidates[j]) for i, j in permutations(range(len(candidates)), 2)]


@pytest.mark.parametrize(("name", "paired"), [*((name, paired) for name in ENCODERS for paired in (1, 2)), ("bert-segments", 0)])
def test_it_is_what_is_written_out(name, paired):
    model = network(name, paired)
    inputs = Inputs(model.config)
    source, *candidates = texts(17, 3, 41, 90)
    other, *two = texts(4, 60, 9, seed=2)
    rows = rows_of(inputs, source, candidates) + rows_of(inputs, other, two)
    plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)(rows)
    late = PairScorer(model, inputs, CPU, torch.float32)
    torch.testing.assert_close(late(rows), plain, atol=1e-5, rtol=0)
    assert plain.std() > 0.05
    # Read apart and in other company, compared one by one.
    alone = torch.cat([late([row]) for row in rows])
    torch.testing.assert_close(alone, plain, atol=1e-5, rtol=0)
    # The order within a pair decides the sign and nothing else.
    reads = late.read([(source, text) for text in candidates])
    forth, back = (late.compare([(reads[i], reads[j])]) for i, j in ((0, 2), (2, 0)))
    torch.testing.assert_close(forth, -back, atol=1e-5, rtol=0)
    # With layers that are paired, the other candidate matters; without, it does not.
    left, right = (late.late.compare([(reads[0], other)])[0, 1] for other in reads[1:])
    assert torch.equal(left, right) == (paired == 0)


def test_the_gpu_attention_reads_the_same():
    model = network("bert-segments", 2)
    source, *candidates = texts(17, 3, 41, 90)
    late = PairScorer(model, Inputs(model.config), CPU, torch.float32)
    rows = rows_of(late.inputs, source, candidates)
    exact = late(rows)
    late.late.attention = Flex(None, 0.0)
    torch.testing.assert_close(late(rows), exact, atol=1e-5, rtol=0)


def test_written_out_is_the_encoder_of_transformers_with_a_mask_for_each_layer():
    model = network("bert-segments", 2)
    source, first, second = texts(9, 14, 30)
    found = PairScorer(model, Inputs(model.config), CPU, torch.float32, packed=False).written_out([(source, first, second)])[0]
    owner = torch.tensor([0] * 9 + [1] * 14 + [2] * 30)
    shared = (owner[None] == 0) | (owner[:, None] == owner)
    masks = []
    for place in range(-1, 2):
        bias = torch.zeros(4, len(owner), len(owner)).masked_fill_(~shared, float("-inf"))
        if place >= 0:
            bias = torch.where((owner[:, None] * owner) == 2, model.biases()[place][:, None, None], bias)
        masks.append(bias[None].detach())
    encoder = model.pretrained_model
    for layer, mask in zip(encoder.encoder.layer, masks, strict=True):
        layer.register_forward_pre_hook(lambda module, given, named, mask=mask: ((given[0], mask, *given[2:]), named), with_kwargs=True)
    positions = torch.cat([torch.arange(len(text)) for text in (source, first, second)])[None]
    ids = torch.tensor([[*source, *first, *second]])
    with torch.no_grad():
        states = encoder(input_ids=ids, attention_mask=masks[0], position_ids=positions, token_type_ids=(owner > 0).long()[None]).last_hidden_state[0]
    torch.testing.assert_close(found, states[[1, 10, 24]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "paired", "checkpointing", "in_rows"),
    [
        ("bert-segments", 1, False, False),
        ("bert-segments", 1, False, True),
        ("deberta-v3", 2, True, False),
        ("deberta-v3", 1, False, True),
        ("deberta-own-projections", 1, False, False),
        ("modernbert", 2, False, False),
        ("modernbert", 1, False, True),
        ("roberta", 0, False, False),
        ("mpnet", 1, False, False),
        ("mpnet", 2, True, True),
    ],
)
def test_gradients_are_those_of_what_is_written_out(name, paired, checkpointing, in_rows):
    """`in_rows` is how a GPU attends in training."""
    model = network(name, paired)
    source, *candidates = texts(7, 12, 5, 30)
    labels = torch.tensor([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])

    def loss(states):
        left, right = (model.head_layer(torch.cat([states[:, 0], states[:, side]], -1)) for side in (1, 2))
        return soft(left, right, *(labels[list(side)] for side in zip(*ALL, strict=True))).mean()

    late = Late(model, CPU, torch.float32, gradients=True, checkpointing=checkpointing)
    late.text_by_text = not in_rows
    (read,) = late.read([(source, candidates)])
    found = loss(late.compare([(read[i], read[j]) for i, j in ALL]))
    found.backward()
    grown = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    exact = loss(WrittenOut(model, CPU, torch.float32, gradients=True)([(source, candidates[i], candidates[j]) for i, j in ALL]))
    exact.backward()
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    wanted = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    assert set(grown) == set(wanted) and sum(".layer" in key for key in wanted) > 20
    for key, gradient in wanted.items():
        torch.testing.assert_close(grown[key], gradient, atol=1e-5, rtol=1e-3, msg=lambda said, key=key: f"{key}: {said}")
    assert not paired or float(wanted["paired_bias"].abs().max()) > 1e-4
    assert (name == "mpnet") == any("relative_attention_bias" in key for key in wanted)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(("name", "paired"), [("bert-segments", 1), ("deberta-v3", 2), ("mpnet", 1)])
def test_bfloat16_is_near(name, paired, tiles, monkeypatch):
    monkeypatch.setattr(layers, "has_amx", lambda: tiles)
    model = network(name, paired)
    inputs = Inputs(model.config)
    source, *candidates = texts(17, 3, 41, 90)
    rows = rows_of(inputs, source, candidates)
    exact, narrow = (PairScorer(model, inputs, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert narrow.late.encoder.stream == (torch.bfloat16 if tiles else torch.float32)
    found = narrow(rows)
    torch.testing.assert_close(found, exact(rows), atol=0.06 if tiles else 0.02, rtol=0)
    assert not torch.equal(found, exact(rows)) and exact(rows).std() > 0.05


@pytest.mark.parametrize(
    ("name", "paired", "in_rows"), [*((name, paired, False) for name in ENCODERS for paired in (1, 2)), ("mpnet", 1, True), ("modernbert", 1, True)]
)
def test_gradients_in_bfloat16_point_where_those_in_float32_do(name, paired, in_rows):
    """Products, attention and what lies between layers are in bfloat16, the weights and their gradients stay in float32."""
    torch.manual_seed(0)
    model = network(name, paired)
    # Beyond 128 tokens all distances share one number of MPNet's, whose gradient is a long sum.
    source, *candidates = texts(7, 12, 90, 260)
    labels = torch.tensor([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        late = Late(model, CPU, dtype, gradients=True)
        late.text_by_text = not in_rows
        assert late.encoder.stream == dtype
        (read,) = late.read([(source, candidates)])
        states = late.compare([(read[i], read[j]) for i, j in ALL])
        left, right = (model.head_layer(torch.cat([states[:, 0], states[:, side]], -1)) for side in (1, 2))
        soft(left, right, *(labels[list(side)] for side in zip(*ALL, strict=True))).mean().backward()
        found.append({key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None})
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact, half = found
    assert exact.keys() == half.keys()
    largest = max(float(gradient.norm()) for gradient in exact.values())
    told = {key: gradient for key, gradient in exact.items() if float(gradient.norm()) > 1e-3 * largest}
    assert len(told) > 20 and name.startswith("mpnet") == any("relative_attention_bias" in key for key in exact)
    for key, gradient in told.items() | {item for item in exact.items() if "relative_attention_bias" in item[0]}:
        # A single small weight's is off by as much as 0.11 where another number of threads adds in another order.
        assert torch.cosine_similarity(gradient.flatten(), half[key].flatten(), dim=0) > 0.7, key
        assert float(half[key].norm()) == pytest.approx(float(gradient.norm()), rel=0.4), key
    whole = [torch.cat([own[key].flatten() for key in told]) for own in found]
    assert torch.cosine_similarity(*whole, dim=0) > 0.97 and float(whole[1].norm()) == pytest.approx(float(whole[0].norm()), rel=0.15)


@pytest.fixture(scope="module")
def late_rankers(tiny_ranker, tmp_path_factory):
    """The tiny ranker with one paired layer of its two, and with both."""
    found = []
    for paired in (1, 2):
        model, tokenizer = load_pairrm(str(tiny_ranker))
        model.config.candidate_bias = -1.0
        late = late_paired(model, paired)
        torch.manual_seed(0)
        torch.nn.init.normal_(late.paired_bias, std=0.02)
        found.append(tmp_path_factory.mktemp("late"))
        save_pairrm(found[-1], late, tokenizer, torch.float32)
    return list(map(str, found))


def of_many_sizes() -> list[dict]:
    """Records of 2 to 11 candidates, some of them cut, some twice; and a record of one candidate."""
    found = examples(5)
    pool = [candidate["text"] for record in found for candidate in record["candidates"]]
    for number, (record, count) in enumerate(zip(found, (2, 11, 3, 5, 1), strict=True)):
        words = [pool[(7 * number + k) % len(pool)] for k in range(count)]
        record["candidates"] = [{"model": str(k), "text": text * (1 + 9 * (k == 1))} for k, text in enumerate(words)]
    found[1]["instruction"] *= 30
    found[3]["candidates"][4]["text"] = found[3]["candidates"][0]["text"]
    return found


def pairs_of(records) -> list[list]:
    return [record["comparisons"]["pairrm"]["pairs"] for record in records]


def test_pair_gives_every_schedule_the_same_logits_in_whatever_batches(late_rankers):
    records = of_many_sizes()
    for model in late_rankers:
        written = PairRanker(model, device="cpu", packed=False)
        plain = pairs_of(apply(written, records))
        assert [len(pairs) for pairs in plain] == [2, 110, 6, 20, 0] and written.truncation.candidates_cut >= 3 and written.truncation.sources_cut >= 1
        logits = [{(i, j): logit for i, j, logit in pairs} for pairs in plain]
        for schedule, batch_tokens in (("full", None), ("full", 150), ("full", 1), ("bubble", None), ("active:4", 300), ("single", None)):
            found = pairs_of(apply(PairRanker(model, device="cpu", schedule=schedule), records, batch_tokens=batch_tokens))
            for pairs, exact in zip(found, logits, strict=True):
                assert schedule != "full" or len(pairs) == len(exact)
                assert all(abs(logit - exact[i, j]) < 2e-5 for i, j, logit in pairs)
                sent = {(i, j): logit for i, j, logit in pairs}
                assert all(logit == -sent.get((j, i), -logit) for i, j, logit in pairs)
        assert abs(logits[3][0, 4]) < 2e-5 and max(map(abs, logits[1].values())) > 0.02


def test_pair_reads_each_candidate_once(late_rankers, monkeypatch):
    ranker, read = PairRanker(late_rankers[0], device="cpu", schedule="sort"), []
    inner = ranker.common.scorer.late.read
    monkeypatch.setattr(ranker.common.scorer.late, "read", lambda groups: read.extend((x, y) for x, ys in groups for y in ys) or inner(groups))
    records = of_many_sizes()
    done = list(apply(ranker, [*records, {**records[1], "id": "again"}]))
    assert len(read) == len(set(read)) == 2 + 11 + 3 + 4
    # The schedule draws by the record's id, and asks the two for other pairs.
    first, again = ({(i, j): logit for i, j, logit in pairs} for pairs in pairs_of([done[1], done[-1]]))
    assert first != again and all(first[pair] == again[pair] for pair in first.keys() & again.keys())


def test_memory_that_runs_out_halves_the_batches(late_rankers, monkeypatch):
    records = of_many_sizes()[:3]
    exact = pairs_of(apply(PairRanker(late_rankers[1], device="cpu"), records))
    ranker = PairRanker(late_rankers[1], device="cpu")
    sizes = []

    def short_of_memory(name, most):
        inner = getattr(ranker.common.scorer.late, name)

        def called(given):
            size = sum(len(part[1]) for part in given) if name == "read" else len(given)
            sizes.append((name, size))
            if size > most:
                raise torch.OutOfMemoryError
            return inner(given)

        monkeypatch.setattr(ranker.common.scorer.late, name, called)

    short_of_memory("read", 3)
    short_of_memory("compare", 4)
    found = pairs_of(apply(ranker, records))
    assert all(abs(a[2] - b[2]) < 2e-5 for ours, theirs in zip(found, exact, strict=True) for a, b in zip(ours, theirs, strict=True))
    assert max(size for name, size in sizes if name == "read") > 3 and max(size for name, size in sizes if name == "compare") > 4


def test_a_prefilter_leaves_out_what_is_then_not_read(called, late_rankers):
    code, out, err = called("pair", "--model", late_rankers[0], "--device", "cpu", "--prefilter", "length:3", stdin=lines(of_many_sizes()))
    assert code == 0, err
    assert [len(pairs) for pairs in pairs_of(parsed(out))] == [2, 6, 6, 6, 0]
    kept = apply(PairRanker(late_rankers[0], device="cpu"), of_many_sizes())
    whole = [{(i, j): logit for i, j, logit in pairs} for pairs in pairs_of(kept)]
    assert all(abs(logit - exact[i, j]) < 2e-5 for pairs, exact in zip(pairs_of(parsed(out)), whole, strict=True) for i, j, logit in pairs)


@pytest.mark.parametrize(
    "value, said", [(3, "paired_layers: expected a number from 0 to 2, got '3'"), ("1", "paired_layers: expected a number"), (True, "paired_layers: ")]
)
def test_a_number_of_paired_layers_that_there_is_not_is_no_input(called, late_rankers, tmp_path, value, said):
    folder = shutil.copytree(late_rankers[0], tmp_path / "bad")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "paired_layers": value}))
    code, _, err = called("pair", "--model", str(folder), stdin=lines(examples(1)))
    assert code == 66 and said in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(("paired", "measured"), [(1, True), (2, False)])
def test_products_do_not_decide_the_type_of_two_paired_layers(tiny_ranker, tmp_path, monkeypatch, paired, measured):
    """Most of their time goes into what is computed once a pair."""
    model, tokenizer = load_pairrm(str(tiny_ranker))
    save_pairrm(tmp_path, late_paired(model, paired), tokenizer, torch.float32)
    asked = []
    monkeypatch.setattr(pairranker, "encoder_dtype", lambda name, device, config, hints, packed: asked.append(packed) or torch.float32)
    PairRanker(str(tmp_path), device="cpu")
    assert asked == [measured]
