"""A head for relevance adds to a late-paired ranker's logits what it says of each candidate, and lives in a file of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import examples
from safetensors.torch import load_file
from test_expert import logits, refused, trained
from test_fast_models import ENCODERS
from test_int8 import bytes_here
from test_late import Inputs, network, rows_of, texts
from tiny_models import with_relevance
from torch.nn import functional

from blendkit.models.expert import expert_alone, with_expert, without_expert
from blendkit.models.fast.late import Late
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.layer_list import layers_of
from blendkit.models.loading import fingerprint
from blendkit.models.pairrm import load_pairrm, save_pairrm, without_relevance
from blendkit.models.relevance import FILE, means
from blendkit.rankers.conversations import pair_texts
from blendkit.rankers.pairranker import PairRanker
from blendkit.training.new_pairranker import late_paired

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair_of(tiny_ranker, tmp_path_factory):
    """A ranker with such a head, and the same without, as checkpoints."""
    return checkpoints(tiny_ranker, tmp_path_factory, 0, 1)


@pytest.fixture(scope="module")
def pair_of_own(tiny_ranker, tmp_path_factory):
    """The same, and the head has a layer of its own."""
    return checkpoints(tiny_ranker, tmp_path_factory, 0, 2, own=1)


def checkpoints(tiny_ranker, tmp_path_factory, *layers, own=0) -> list[str]:
    model, tokenizer = load_pairrm(str(tiny_ranker))
    model = with_relevance(late_paired(model, 1), *layers, own=own)
    folders = [tmp_path_factory.mktemp(name) for name in ("with", "without")]
    for folder, saved in zip(folders, (model, without_relevance(model)), strict=True):
        save_pairrm(folder, saved, tokenizer, torch.float32)
    return list(map(str, folders))


@pytest.mark.parametrize(("name", "paired"), [*((name, paired) for name in ENCODERS for paired in (1, 2)), ("bert-segments", 0)])
def test_it_is_what_is_written_out(name, paired):
    bare = network(name, paired)
    inputs = Inputs(bare.config)
    source, *candidates = texts(17, 3, 41, 90)
    other, *two = texts(4, 60, 9, seed=2)
    rows = rows_of(inputs, source, candidates) + rows_of(inputs, other, two)
    without = PairScorer(bare, inputs, CPU, torch.float32)(rows)
    # The last one is the highest that reads each candidate once.
    model = with_relevance(bare, 0, len(layers_of(bare.pretrained_model)) - max(1, paired))
    plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)(rows)
    late = PairScorer(model, inputs, CPU, torch.float32)
    torch.testing.assert_close(late(rows), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([late([row]) for row in rows]), plain, atol=1e-5, rtol=0)
    assert (plain - without).abs().max() > 0.05


@pytest.mark.parametrize(("name", "paired"), [*((name, paired) for name in ENCODERS for paired in (1, 2)), ("bert-segments", 0)])
def test_its_own_layers_are_what_is_written_out(name, paired):
    bare = network(name, paired)
    inputs, (source, *candidates) = Inputs(bare.config), texts(17, 3, 41, 90)
    rows = rows_of(inputs, source, candidates)
    layers = len(layers_of(bare.pretrained_model))
    kept = {key: value.clone() for key, value in bare.state_dict().items()}
    for own in range(max(1, paired), layers + 1):
        model = with_relevance(bare, *{0, layers - own, layers}, own=own)
        plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)(rows)
        torch.testing.assert_close(PairScorer(model, inputs, CPU, torch.float32)(rows), plain, atol=1e-5, rtol=0)
        # They are copies: the ranker's own stay as they are.
        assert all(torch.equal(model.state_dict()[key], value) for key, value in kept.items())
        nothing_added(model)
        assert (PairScorer(model, inputs, CPU, torch.float32)(rows) - plain).abs().max() > 1e-3


def nothing_added(model) -> None:
    """Makes its own layers the ranker's."""
    with torch.no_grad():
        for weight in model.relevance.added.parameters():
            weight.zero_()


@pytest.mark.parametrize("name", ENCODERS)
def test_own_layers_to_which_nothing_is_added_are_the_shared_ones(name):
    """All but the first, so that each is a copy of the right one, whatever its family tells by its number."""
    model = network(name, 1)
    layers = len(layers_of(model.pretrained_model))
    model = with_relevance(model, 0, layers - 1)
    inputs, (source, *candidates) = Inputs(model.config), texts(17, 30, 41)
    rows = rows_of(inputs, source, candidates)
    expected, weights = PairScorer(model, inputs, CPU, torch.float32)(rows), model.relevance.state_dict()
    own = with_relevance(model, 0, layers - 1, own=layers - 1)
    own.relevance.load_state_dict(weights, strict=False)
    nothing_added(own)
    torch.testing.assert_close(PairScorer(own, inputs, CPU, torch.float32)(rows), expected, atol=1e-5, rtol=0)


def test_the_packages_encoder_has_the_layers_that_transformers_has():
    """What is added to a matrix is found by its name."""
    named = [[name for name, _ in load_pairrm("embedded", packed_only=light)[0].pretrained_model.encoder.layer.named_parameters()] for light in (True, False)]
    assert sorted(named[0]) == sorted(named[1])


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_reach_what_is_added(name):
    """In the form that training has, text by text, which differs from the one that reads."""
    paired = network(name, 1)
    layers = len(layers_of(paired.pretrained_model))
    model = with_relevance(paired, layers, own=1)
    for weight in model.parameters():
        weight.requires_grad_(False)
    (source, *candidates), added = texts(17, 30, 41), list(model.relevance.added.parameters())

    def said(gradients):
        reads = Late(model, CPU, torch.float32, gradients=gradients).read([(source, candidates)])[0]
        return torch.stack([read.relevance for read in reads])

    torch.testing.assert_close(said(True), said(False), atol=1e-5, rtol=0)
    for weight in added:
        weight.requires_grad_(True)
    whole = said(True).sum()
    whole.backward()
    weight = max(added, key=lambda one: float(one.grad.abs().max()))
    place = int(weight.grad.abs().argmax())
    with torch.no_grad():
        weight.view(-1)[place] += 1e-3
        up = said(False).sum()
        weight.view(-1)[place] -= 2e-3
        down = said(False).sum()
    slope = float((up - down) / 2e-3)
    assert abs(slope - float(weight.grad.view(-1)[place])) < 0.05 * abs(slope) + 1e-3


def test_what_it_adds_is_of_each_candidate_alone(pair_of):
    (first, second), records = (PairRanker(folder, device="cpu") for folder in pair_of), examples()
    for record, ours, theirs in zip(records, logits(first, examples()), logits(second, examples()), strict=True):
        n = len(record["candidates"])
        added = {(i, j): logit - other for (i, j, logit), (*_, other) in zip(ours, theirs, strict=True)}
        own = [sum(added.get((i, j), 0.0) for j in range(n)) / n for i in range(n)]
        assert all(abs(value - (own[i] - own[j])) < 1e-4 for (i, j), value in added.items())
        # What it says: of x and a candidate as the layers have them.
        source = first.inputs.source(pair_texts(record, [])[0])
        ids = first.inputs.candidates(pair_texts(record, [c["text"] for c in record["candidates"]])[1], source)
        reads = first.common.scorer.read([(source, text) for text in ids])
        said = [float(read.relevance) for read in reads]
        assert all(abs(added[i, j] - (said[i] - said[j])) < 1e-4 for i, j in added)
        embedded = first.common.scorer.late.encoder.embedded(first.inputs.pack([first.inputs.single(source, ids[0], 1)]))
        lengths = [len(source), len(ids[0])]
        # What lies behind the last text is no part of it.
        seen = means(torch.cat([embedded, embedded.new_full((3, embedded.shape[1]), 9.0)]), lengths, torch.tensor(lengths))
        torch.testing.assert_close(seen[1], embedded[len(source) :].mean(0), atol=1e-5, rtol=0)


def test_its_formula():
    head = with_relevance(network("bert-segments", 1), 0, 1).relevance
    x, y = torch.randn(2, 3, 2, head.enter.in_features // 8)
    normed = [(part - part.mean(-1, keepdim=True)) / (part.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() for part in (x, y)]
    a, b = normed
    inner = functional.gelu(torch.cat([part.reshape(3, -1) for part in (b, a, a * b, (a - b).abs())], 1) @ head.enter.weight.T + head.enter.bias)
    r = inner @ head.leave.weight[0] + head.leave.bias
    torch.testing.assert_close(head(x, y), -2 * torch.log1p(torch.exp(-r)), atol=1e-5, rtol=1e-5)


def test_layers_count_in_the_order_in_which_they_are_read():
    model, same = (with_relevance(network("bert-segments", 1), *layers) for layers in ((0, 1), (1, 0)))
    same.load_state_dict(model.state_dict())
    inputs, (source, *candidates) = Inputs(model.config), texts(17, 30, 41)
    for packed in (True, False):
        found = [PairScorer(one, inputs, CPU, torch.float32, packed)(rows_of(inputs, source, candidates)) for one in (model, same)]
        assert torch.equal(*found)


def test_an_experts_logits_are_without_it(tiny_ranker):
    model, _ = load_pairrm(str(tiny_ranker))
    model = with_expert(with_relevance(late_paired(model, 1), 0), None, 1)
    assert without_expert(model).relevance is model.relevance is not None and without_expert(model).config.relevance_layers == (0,)
    assert expert_alone(model).relevance is None and not expert_alone(model).config.relevance_layers
    assert without_relevance(model).expert is model.expert and without_relevance(without_relevance(model)).relevance is None


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=bytes_here)])
@pytest.mark.parametrize("which", ["pair_of", "pair_of_own"])
def test_narrow_types_are_near(request, which, dtype):
    folders = request.getfixturevalue(which)

    def added(name):
        ours, theirs = (logits(PairRanker(folder, device="cpu", dtype=name), examples()) for folder in folders)
        return torch.tensor([a[2] - b[2] for own, other in zip(ours, theirs, strict=True) for a, b in zip(own, other, strict=True)])

    exact, narrow = added("float32"), added(dtype)
    assert 0 < float((narrow - exact).norm()) < 0.3 * float(exact.norm())


def test_it_has_a_file_of_its_own(pair_of, tmp_path):
    both, without = (load_pairrm(folder)[0] for folder in pair_of)
    assert both.config.relevance_layers == (0, 1) and without.relevance is None
    assert [(Path(folder) / FILE).is_file() for folder in pair_of] == [True, False]
    ours, theirs = ((Path(folder) / "model.safetensors").read_bytes() for folder in pair_of)
    assert ours == theirs
    # What another ranker left there is gone.
    folder = shutil.copytree(pair_of[0], tmp_path / "again")
    save_pairrm(folder, without, load_pairrm(pair_of[1])[1], torch.float32)
    assert not (folder / FILE).exists() and fingerprint(str(folder)) == fingerprint(pair_of[1])


@pytest.mark.parametrize(
    ("which", "changes", "said"),
    [
        (0, {"relevance_layers": [0, 2]}, "config.json: relevance_layers: expected numbers from 0 to 1, got 0, 2"),
        (0, {"relevance_layers": [-1]}, "config.json: relevance_layers: expected numbers from 0 to 1, got -1"),
        (0, {"relevance_layers": "all"}, "config.json: relevance_layers: expected a list of different whole numbers, got all"),
        (0, {"relevance_layers": [0.5]}, "config.json: relevance_layers: expected a list of different whole numbers, got [0.5]"),
        (0, {"relevance_layers": [1, 1]}, "config.json: relevance_layers: expected a list of different whole numbers, got [1, 1]"),
        (0, {"relevance_layers": [0]}, f"{FILE} does not fit config.json: relevance.enter.weight: expected [128, "),
        (0, {"relevance_own_layers": 3, "relevance_rank": 4}, "config.json: relevance_own_layers: expected 0, or 1 to 2, got 3"),
        (0, {"relevance_own_layers": 1}, "config.json: relevance_rank: expected 1 or more with 1 layer of its own, got 0"),
        (0, {"relevance_rank": 4}, "config.json: relevance_rank: expected 0 with 0 layers of its own, got 4"),
        (0, {"relevance_layers": [0, 2], "relevance_own_layers": 1, "relevance_rank": 4}, f"{FILE} does not fit config.json: relevance.added.0."),
        (0, {"relevance_layers": [0, 1], "relevance_own_layers": 1, "relevance_rank": 4}, "config.json: relevance_layers: expected 2, the last of its own"),
        (0, {"relevance_layers": [], "relevance_rank": 4}, "config.json: relevance_layers: missing"),
        (0, {"paired_layers": None}, "relevance_layers: only a late-paired ranker has a head for relevance"),
        (1, {"relevance_layers": [0, 1]}, f"{FILE} is missing"),
    ],
)
def test_a_checkpoint_that_has_no_such_head_is_no_input(called, pair_of, tmp_path, which, changes, said):
    refused(called, pair_of[which], tmp_path / "bad", changes, said)


def test_own_layers_that_the_config_does_not_name_are_no_input(called, pair_of_own, tmp_path):
    changes = {"relevance_layers": [0, 1], "relevance_own_layers": 0, "relevance_rank": 0}
    refused(called, pair_of_own[0], tmp_path / "bad", changes, f"{FILE} does not fit config.json: relevance.added.0.")


def test_its_own_layers_are_read_back(tiny_ranker, tmp_path):
    model, tokenizer = load_pairrm(str(tiny_ranker))
    model = with_relevance(late_paired(model, 1), 0, 2, own=1)
    for name, small in (("exact", False), ("small", True)):
        save_pairrm(tmp_path / name, model, tokenizer, torch.float32, small=small)
    exact, small = (load_pairrm(str(tmp_path / name))[0] for name in ("exact", "small"))
    assert exact.config == small.config == model.config
    ours, theirs = exact.relevance.state_dict(), small.relevance.state_dict()
    assert all(torch.equal(value, model.relevance.state_dict()[key]) for key, value in ours.items())
    for key, value in ours.items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.dim() == 2 else 0 * value
        assert ((theirs[key] - value).abs() <= 0.51 * step).all()
    assert {value.dtype for key, value in load_file(tmp_path / "small" / FILE).items() if value.dim() == 2 and not key.endswith(".scales")} == {torch.int8}
    bare = without_relevance(model).config
    assert (bare.relevance_layers, bare.relevance_own_layers, bare.relevance_rank) == ((), 0, 0)


def test_training_goes_on_from_the_ranker_without_it(called, pair_of, tmp_path):
    new = trained(called, pair_of[0], tmp_path)
    assert not (new / FILE).exists() and load_pairrm(str(new))[0].config == load_pairrm(pair_of[1])[0].config


OFF = [
    (
        "What is the capital of Australia?",
        "Canberra.",
        "Auckland is the largest city of New Zealand. It lies on the North Island between two harbours, "
        "has about 1.5 million inhabitants, and is known for its sailing, its volcanic hills and its many parks and beaches.",
    ),
    (
        "How do I boil an egg?",
        "Put it in boiling water for eight minutes, then cool it under the tap.",
        "A sourdough bread needs patience. First, feed "
        "your starter with flour and water. Second, mix the dough and let it rest. Third, fold it every half hour. Finally, bake it in a hot, covered pot.",
    ),
    (
        "Translate 'good morning' into French.",
        "Bonjour.",
        "German is spoken by some 95 million people as their first language, mostly in Germany, Austria and "
        "Switzerland. Its grammar has four cases and three genders, and its nouns are written with a capital letter.",
    ),
    (
        "Name three primary colours.",
        "Red, yellow and blue.",
        "The planets of the solar system are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. "
        "The four inner ones are rocky and small, and the four outer ones are large and made of gas and ice.",
    ),
    (
        "Why is the sky blue?",
        "Air scatters blue light more than red, so we see blue from all sides.",
        "To change a tyre, first loosen the nuts a little. Then raise the "
        "car with the jack, take the nuts off, and pull the wheel towards you. Put on the spare wheel, tighten the nuts by hand, and lower the car.",
    ),
    (
        "Write a short birthday greeting for a colleague.",
        "Happy birthday, Anna! Have a lovely day.",
        "Dear customers, we regret to tell you that our shop will be closed "
        "from Monday to Wednesday because of construction work in our street. Orders that reach us in these days will be sent on Thursday.",
    ),
    (
        "How many legs does a spider have?",
        "Eight.",
        "Cats sleep between twelve and sixteen hours a day. They are most active at dawn and at dusk, when their prey is about, "
        "and they see well in little light. A cat that sleeps much less than that may be ill and should see a vet.",
    ),
    (
        "Give me a synonym of 'happy'.",
        "Glad.",
        "A healthy breakfast has three parts: whole grains such as oats, some protein such as yoghurt or eggs, and fruit. Eat slowly, "
        "and drink a glass of water with it. It keeps you full until noon and helps you to concentrate.",
    ),
]


def test_the_embedded_ranker_prefers_a_short_answer_to_a_long_one_to_another_question(tmp_path):
    records = [
        {"id": str(number), "instruction": x, "input": "", "candidates": [{"model": "a", "text": right}, {"model": "b", "text": wrong}]}
        for number, (x, right, wrong) in enumerate(OFF)
    ]
    bare, tokenizer = load_pairrm("embedded")
    save_pairrm(tmp_path, without_relevance(bare), tokenizer)
    with_head, without = ([rows[0][2] for rows in logits(PairRanker(model, device="cpu", dtype="float32"), records)] for model in ("embedded", str(tmp_path)))
    # Seven and one; by more than 2, so that no processor turns them.
    assert sum(logit > 2 for logit in with_head) >= 6 and sum(logit > 0 for logit in without) <= 2, (with_head, without)
