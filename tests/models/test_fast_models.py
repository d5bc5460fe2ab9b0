"""The packed encoders give what transformers gives, for every family and however the inputs are batched."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import examples, lines, parsed
from transformers import AutoConfig, AutoModel

from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.fast import layers
from blendkit.models.fast.attention import Flex, block_mask
from blendkit.models.fast.encoder import packed_encoder
from blendkit.models.fast.packing import Packed
from blendkit.models.fast.scorer import PairScorer
from blendkit.models.pair_inputs import PairInputs, Segment
from blendkit.models.pairrm import PairRM, PairRMConfig
from blendkit.pipeline.runner import apply
from blendkit.rankers.pairranker import PairRanker

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 512}
DEBERTA = {**SHAPE, "relative_attention": True, "type_vocab_size": 0, "position_biased_input": False, "norm_rel_ebd": "layer_norm"}
ENCODERS = {
    "deberta-v3": ("deberta-v2", {**DEBERTA, "position_buckets": 16, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-own-projections": ("deberta-v2", {**DEBERTA, "position_buckets": 8, "share_att_key": False, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-c2p": ("deberta-v2", {**DEBERTA, "max_relative_positions": 40, "share_att_key": True, "pos_att_type": ["c2p"], "position_biased_input": True}),
    "deberta-p2c": ("deberta-v2", {**DEBERTA, "position_buckets": 16, "share_att_key": True, "pos_att_type": ["p2c"], "type_vocab_size": 2}),
    "bert": ("bert", SHAPE),
    "bert-segments": ("bert", {**SHAPE, "type_vocab_size": 3}),
    "roberta": ("roberta", {**SHAPE, "pad_token_id": 1, "type_vocab_size": 1}),
    "roberta-segments": ("roberta", {**SHAPE, "pad_token_id": 1, "type_vocab_size": 3}),
    "mpnet": ("mpnet", SHAPE),
    "mpnet-segments": ("mpnet", {**SHAPE, "type_vocab_size": 3}),
    "modernbert": (
        "modernbert",
        {**SHAPE, "num_hidden_layers": 5, "local_attention": 32, "global_attn_every_n_layers": 3}
        | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    ),
}


class Tokenizer:
    """As much of a tokenizer as ready-made ids need."""

    pad_token_id, sep_token = 0, "[SEP]"

    def convert_tokens_to_ids(self, token: str) -> int:
        return 5


class Inputs(PairInputs):
    def __init__(self, config: PairRMConfig) -> None:
        self.tokenizer, self.config = Tokenizer(), config


def network(name: str) -> PairRM:
    kind, shape = ENCODERS[name]
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **shape))
    segments = name.endswith("segments")
    config = PairRMConfig(100, 100, positions="segment" if segments else "running", candidate_bias=-3.0 if segments else 0.0)
    model = PairRM(config, encoder).eval()
    for weight in model.pretrained_model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model


def rows(count: int = 7) -> list[list[Segment]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 90, (count, 3), generator=generator).tolist()
    return [[Segment(tuple(torch.randint(6, 300, (n,), generator=generator).tolist()), role) for role, n in enumerate(row)] for row in lengths]


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_is_the_plain_forward_pass(name):
    model = network(name)
    inputs = Inputs(model.config)
    plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)(rows())
    packed = PairScorer(model, inputs, CPU, torch.float32)
    assert packed.encoder is not None
    assert plain.abs().mean() > 0.02  # differences that are there to be missed
    torch.testing.assert_close(packed(rows()), plain, atol=1e-5, rtol=0)
    one_by_one = torch.cat([packed([row]) for row in rows()])
    torch.testing.assert_close(one_by_one, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.filterwarnings("ignore")
def test_the_gpu_attention_is_the_same_function(name):
    model = network(name)
    inputs = Inputs(model.config)
    plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)(rows())
    packed = PairScorer(model, inputs, CPU, torch.float32)
    packed.encoder.attention = Flex(packed.encoder.buckets, model.config.candidate_bias, packed.encoder.shared)
    torch.testing.assert_close(packed(rows()), plain, atol=1e-5, rtol=0)


def test_mpnet_is_that_of_transformers():
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model("mpnet", **SHAPE, hidden_dropout_prob=0.0)).eval()
    for weight in encoder.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    inputs = [torch.randint(6, 300, (length,)).tolist() for length in (1, 7, 90, 130, 400)]
    with torch.inference_mode():
        alone = [encoder(torch.tensor([row])).last_hidden_state[0] for row in inputs]
        assert alone[-1].std() > 0.1
        for row, states, expected in zip(inputs, EncoderReader(encoder, 1, CPU, torch.float32, places_only=False).states(inputs), alone, strict=True):
            torch.testing.assert_close(states, expected, atol=1e-5, rtol=0, msg=str(len(row)))
        # What a ranker trains with: padded, and with distances that a second candidate does not add to.
        roles = torch.tensor([[0] * 30 + [1] * 50 + [2] * 40])
        ids = torch.tensor([inputs[-1][:120]])
        network = PairRM(PairRMConfig(64, 64, positions="segment"), encoder).pretrained_model.eval()
        network.embeddings.token_type_embeddings = torch.nn.Embedding(3, 48, _weight=torch.zeros(3, 48))
        filled = torch.cat([ids, torch.ones(1, 9, dtype=torch.long)], 1)
        plain = network(filled, (filled != 1).long()).last_hidden_state[:, :120]
        torch.testing.assert_close(plain, encoder(ids).last_hidden_state, atol=1e-5, rtol=0)
        bias = network.bias(ids, roles)[0]
        torch.testing.assert_close(bias[:, :80, :80], network.bias(ids[:, :80], None)[0])
        assert torch.equal(bias[:, 80:, :30], bias[:, 30:70, :30]) and torch.equal(bias[:, 80:, 80:], bias[:, 30:70, 30:70])


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize("lengths", [[7, 130, 255, 300, 1], [1024], [5] * 40, [128, 128, 500]])
def test_the_block_mask_is_that_of_torch(lengths, window):
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = sum(lengths)
    ids = torch.zeros(tokens, dtype=torch.long)
    batch = Packed(ids, ids, ids, lengths, torch.zeros(len(lengths), 3, dtype=torch.long)).rounded(512)
    ours = block_mask(batch, window)
    theirs = create_block_mask(ours.mask_mod, None, None, len(batch.ids), len(batch.ids), device="cpu")

    # A block that is seen in part may turn out empty; none that holds a cell may be missing, and a whole one must be whole.
    def blocks(mask, kind):
        counts, indices = getattr(mask, f"{kind}kv_num_blocks")[0, 0], getattr(mask, f"{kind}kv_indices")[0, 0]
        return {(row, int(column)) for row, count in enumerate(counts) for column in indices[row][: int(count)]}

    assert blocks(ours, "full_") == (blocks(theirs, "full_") if window is None else set())
    assert blocks(ours, "") | blocks(ours, "full_") >= blocks(theirs, "") | blocks(theirs, "full_")
    assert ours.sparsity() >= theirs.sparsity() - 12


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("name", ["deberta-v3", "bert-segments", "mpnet-segments", "modernbert"])
def test_bfloat16_is_near(name, tiles, monkeypatch):
    """With tiles of bfloat16 attention and the states between layers are in it, too."""
    monkeypatch.setattr(layers, "has_amx", lambda: tiles)
    model = network(name)
    inputs = Inputs(model.config)
    exact = PairScorer(model, inputs, CPU, torch.float32)(rows())
    narrow = PairScorer(model, inputs, CPU, torch.bfloat16)
    assert narrow.encoder.stream == (torch.bfloat16 if tiles else torch.float32)
    found = narrow(rows())
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=0.06 if tiles else 0.02, rtol=0)


@pytest.mark.slow
def test_bfloat16_on_a_processor_that_onednn_has_none_for(blendkit, tiny_ranker, monkeypatch):
    def logits(record):
        return [logit for *_, logit in record["comparisons"]["pairrm"]["pairs"]]

    flags = ["--model", tiny_ranker, "--device", "cpu", "--dtype", "bfloat16"]
    # oneDNN as on a processor without AVX-512.
    done = blendkit("pair", *flags, stdin=lines(examples(1)), env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert done.returncode == 0, done.stderr
    # Without tiles here either: with them attention would be in bfloat16, too.
    monkeypatch.setattr(layers, "has_amx", lambda: False)
    (here,) = map(logits, apply(PairRanker(str(tiny_ranker), device="cpu", dtype="bfloat16"), examples(1)))
    assert logits(parsed(done.stdout)[0]) == pytest.approx(here, abs=0.03 * max(map(abs, here)))


def test_a_long_input_needs_more_than_one_block_of_queries():
    model = network("deberta-v3")
    inputs = Inputs(model.config)
    generator = torch.Generator().manual_seed(2)
    row = [Segment(tuple(torch.randint(6, 300, (n,), generator=generator).tolist()), role) for role, n in enumerate((200, 150, 333))]
    plain = PairScorer(model, inputs, CPU, torch.float32, packed=False)([row])
    torch.testing.assert_close(PairScorer(model, inputs, CPU, torch.float32)([row]), plain, atol=1e-5, rtol=0)


def test_other_encoders_run_as_transformers_has_them():
    encoder = AutoModel.from_config(AutoConfig.for_model("electra", **SHAPE, embedding_size=48))
    assert packed_encoder(encoder, 0.0, CPU, torch.float32) is None
    model = PairRM(PairRMConfig(100, 100), encoder).eval()
    for dtype in (torch.float32, torch.bfloat16):
        assert PairScorer(model, Inputs(model.config), CPU, dtype)(rows(2)).isfinite().all()


def test_results_depend_on_no_batch_window_or_order(tiny_ranker, golden_ranker):
    for checkpoint in (str(tiny_ranker), golden_ranker):
        if checkpoint is None:
            continue
        results = []
        for tokens, window, turned in ((2048, 8, False), (100, 1, False), (700, 3, True)):
            records = examples(6)[:: -1 if turned else 1]
            stage = PairRanker(checkpoint, device="cpu", dtype="float32")
            done = list(apply(stage, records, window=window, batch_tokens=tokens))
            results.append({record["id"]: record["comparisons"]["pairrm"]["pairs"] for record in done})
        for other in results[1:]:
            for key, pairs in results[0].items():
                for expected, found in zip(pairs, other[key], strict=True):
                    assert found[:2] == expected[:2]
                    assert found[2] == pytest.approx(expected[2], abs=1e-4)
