"""A ranker on a causal LM: its rewards are those of each whole text, and `pair` compares by them."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import bpe_tokenizer, examples
from tiny_models import saved as saved_model
from tiny_models import t5
from transformers import (
    AutoModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from blendkit.errors import NoInputError
from blendkit.models import lm_ranker
from blendkit.models.fast import shared_prefix
from blendkit.models.lm_ranker import LMInputs, LMRanker, LMRankerConfig, lm_ranker_config, load_lm_ranker, new_lm_ranker, save_lm_ranker
from blendkit.models.loading import SHIPPED, locate, read_weights
from blendkit.models.pairrm import load_pairrm
from blendkit.models.pretrained import pretrained
from blendkit.models.relevance import linears_of, module_key

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXTS = ["Four.", "It is four, because two and two make four and nothing else does.", "No"]


@pytest.fixture(scope="module")
def drawn(tiny_chat):
    """One whose products and weights are drawn, in float32; and its tokenizer."""
    model, tokenizer = new_lm_ranker(LMRankerConfig(str(tiny_chat), 1, 4, 96, 64))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    return model.eval(), tokenizer


@pytest.fixture
def saved(drawn, tmp_path):
    save_lm_ranker(tmp_path / "ranker", drawn[0])
    return tmp_path / "ranker"


def with_turns(tokenizer):
    """The tokenizer with a template that ends each turn by a token."""
    tokenizer = copy.deepcopy(tokenizer)
    turn = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}[assistant] {% endif %}"
    return tokenizer


def groups(inputs, *questions):
    found = [(inputs.source(question), place) for place, question in enumerate(questions, 1)]
    return [(source, inputs.candidates(TEXTS[:place], source)) for source, place in found]


@torch.no_grad()
def test_rewards_are_those_of_each_whole_text_alone(saved):
    model, tokenizer = load_lm_ranker(str(saved))
    asked = groups(LMInputs(tokenizer, model.config), "What is two and two?", "Why? " * 9, "And?")
    found = model(asked).tolist()
    plain = []
    model.lm.set_attn_implementation("eager")
    for source, candidates in asked:
        for candidate in candidates:
            states = model.lm(input_ids=torch.tensor([[*source, *candidate]])).last_hidden_state[0, len(source) :]
            plain.append(float(torch.cat([states.mean(0), torch.tensor([float(len(candidate))]).log()]) @ model.weight))
    assert found == pytest.approx(plain, abs=1e-4)
    assert max(found) - min(found) > 0.1


@torch.no_grad()
def test_candidates_that_go_through_together_have_the_same_rewards(drawn, monkeypatch):
    """As on a GPU, where all candidates of an x are one call."""
    model, tokenizer = drawn
    inputs = LMInputs(tokenizer, model.config)
    asked = [*groups(inputs, "What is two and two?", "Why? " * 9, "And?"), (inputs.source("Nobody answers."), [])]
    # Lengths that are the same numbers as places are.
    same = [((5, 6, 7, 8, 9), [(10, 11, 12), tuple(range(14, 22))]), ((1,) * 3, [(2,) * 4]), ((3,) * 3, [(2,) * 7])]
    found, row = [model(given) for given in (asked, same)], lm_ranker.row_of
    monkeypatch.setattr(lm_ranker, "row_of", lambda *given: replace(row(*given), together=True))
    for given, rewards in zip((asked, same), found, strict=True):
        torch.testing.assert_close(model(given), rewards, atol=1e-4, rtol=1e-4)
    assert model([]).shape == model([((1, 2), [])]).shape == (0,)


@pytest.mark.parametrize("read", [(1,), (1, 2)])
@torch.no_grad()
def test_states_of_lower_layers_count_as_the_checkpoint_says(tiny_chat, tmp_path, read):
    """Without products: a linear function of what the LM knows by itself."""
    made, tokenizer = new_lm_ranker(LMRankerConfig(str(tiny_chat), 0, 0, 96, 64, read_layers=read))
    torch.manual_seed(1)
    for weight in (made.scale, made.weight):
        weight.uniform_(0.5, 2)
    save_lm_ranker(tmp_path / "linear", made)
    model, _ = load_lm_ranker(str(tmp_path / "linear"))
    assert model.config.read_layers == read and len(model.lm.layers) == read[-1] and not len(model.added)
    torch.testing.assert_close(model.scale, made.scale, rtol=0, atol=0)
    ((source, candidates),) = asked = groups(LMInputs(tokenizer, model.config), "What is two and two?", "Why?")[1:]
    found = model(asked)
    plain = AutoModel.from_pretrained(tiny_chat)
    for candidate, reward in zip(candidates, found, strict=True):
        states = plain(input_ids=torch.tensor([[*source, *candidate]]), output_hidden_states=True).hidden_states
        means = [states[layer][0, len(source) :].mean(0) for layer in read]
        features = torch.cat([*means, torch.tensor([float(len(candidate))]).log()])
        assert float(reward) == pytest.approx(float(features * made.scale @ made.weight), abs=1e-4)


@torch.no_grad()
def test_what_is_added_changes_the_rewards_as_the_sum_of_weights_would(saved):
    model, tokenizer = load_lm_ranker(str(saved))
    asked = groups(LMInputs(tokenizer, model.config), "What is two and two?", "Why?")
    found = model(asked)
    products = {key: added() for key, added in model.added[0].items()}
    for added in model.added[0].values():
        added.widen.zero_()
    assert not torch.allclose(model(asked), found, atol=1e-2)
    for name, linear in linears_of(model.lm.layers[-1]).items():
        linear.weight += products[module_key(name)]
    torch.testing.assert_close(model(asked), found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_narrow_type_is_near_and_keeps_the_positions(saved):
    model, tokenizer = load_lm_ranker(str(saved))
    narrow, _ = load_lm_ranker(str(saved), torch.bfloat16)
    assert narrow.lm.rotary_emb.inv_freq.dtype == torch.float32 and narrow.lm.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    asked = groups(LMInputs(tokenizer, model.config), "What is two and two?", "Why?")
    exact = model(asked)
    assert float((narrow(asked) - exact).abs().max()) < 0.1 * float(exact.abs().max())


IN_ITS_OWN = "reads texts that share their beginning in a way of its own; try another LM"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=2)), IN_ITS_OWN),
        # Scores are capped.
        (lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=600, layer_types=["full_attention"] * 2, **SHAPE)), IN_ITS_OWN),
        # Its attention is not told where the texts lie.
        (lambda: StableLmForCausalLM(StableLmConfig(vocab_size=600, **SHAPE)), IN_ITS_OWN),
    ],
)
def test_an_lm_that_reads_a_row_in_another_way_is_refused(tmp_path, model, said):
    where = saved_model(model(), bpe_tokenizer(), tmp_path / "lm")
    with pytest.raises(NoInputError, match=said):
        new_lm_ranker(LMRankerConfig(str(where), 0, 0))


@pytest.mark.parametrize("wrong", ["_sees", "positions"])
def test_states_that_are_not_those_of_each_text_alone_are_found(tiny_chat, monkeypatch, wrong):
    if wrong == "_sees":
        monkeypatch.setattr(shared_prefix, "_sees", lambda row, before, own, device: torch.ones(own, before + own, dtype=torch.bool))
    else:
        right = shared_prefix.row_of
        monkeypatch.setattr(shared_prefix, "row_of", lambda *given: replace(row := right(*given), positions=torch.arange(row.ids.shape[1])[None]))
    with pytest.raises(NoInputError, match=IN_ITS_OWN):
        new_lm_ranker(LMRankerConfig(str(tiny_chat), 0, 0))


def test_an_lm_that_is_a_package_is_none_of_the_folder(tiny_chat, tmp_path, monkeypatch):
    """Its name stays a name where a folder is called so."""
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(lm_ranker, "pretrained", lambda kind, name, *_, **__: asked.append(name) or pretrained(kind, str(tiny_chat), "LM"))
    monkeypatch.setattr(lm_ranker, "fingerprint", str)
    model, _ = new_lm_ranker(LMRankerConfig("smollm2", 0, 0))
    assert (model.config.model_name, asked) == ("smollm2", ["smollm2"] * 2)


@pytest.mark.parametrize(("wrong", "right"), [("smollm2-rankr", "smollm2-ranker"), ("embeded", "embedded"), ("smolm2", "smollm2")])
def test_a_typo_in_the_name_of_a_model_that_is_here(called, wrong, right):
    for command in ("pair", "generate"):
        rc, out, err = called(command, "--model", wrong, stdin=json.dumps(examples(1)[0]))
        assert (rc, out) == (66, "") and err.endswith(f"the hub cannot be reached; did you mean {right}?\n")


def test_what_ships_is_whole():
    for name in SHIPPED:
        folder = locate(name)
        card = (folder / "README.md").read_text()
        assert (folder / "config.json").exists() and "research use only" in card and "MEASURED" not in card
    assert read_weights(locate("smollm2-ranker"))["weight"].shape == (3 * 576 + 1,)
    assert lm_ranker_config("smollm2-ranker").read_layers == (10, 15, 20)


def test_positions_that_depend_on_the_longest_text_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    where = saved_model(
        LlamaForCausalLM(LlamaConfig(vocab_size=600, max_position_embeddings=64, rope_parameters=rope, **SHAPE)), bpe_tokenizer(), tmp_path / "lm"
    )
    new_lm_ranker(LMRankerConfig(str(where), 0, 0, 28, 28))
    with pytest.raises(NoInputError, match=r"reads texts of more than 64 tokens in another way than short ones: expected .* of at most 56 in all, got 57"):
        new_lm_ranker(LMRankerConfig(str(where), 0, 0, 29, 28))


@pytest.mark.parametrize("kind", ["window", "t5"])
def test_what_does_not_keep_the_whole_text_is_refused(tiny_chat, tmp_path, kind):
    if kind == "t5":
        where = t5(tmp_path / "t5")
    else:
        where = saved_model(MistralForCausalLM(MistralConfig(vocab_size=600, sliding_window=16, **SHAPE)), bpe_tokenizer(), tmp_path / "window")
    with pytest.raises(NoInputError, match="whose layers all see the whole text"):
        new_lm_ranker(LMRankerConfig(str(where), 1, 4))


def test_a_long_x_keeps_both_ends_and_a_long_candidate_its_beginning(drawn):
    model, tokenizer = drawn[0], with_turns(drawn[1])
    inputs, cuts = LMInputs(tokenizer, model.config), []
    assert inputs.end == (tokenizer.eos_token_id,)
    whole = inputs.source("Say it.", cuts)
    assert not cuts
    long = inputs.source("Say it. " + "word " * 300 + "Now.", cuts)
    assert len(long) == 96 and cuts[0].length > 300 and cuts[0].budget == 96
    assert tokenizer.decode(long[-8:]) == tokenizer.decode(inputs.source("Say it. Now.")[-8:])
    assert long[:4] == whole[:4]
    short, cut = inputs.candidates(["no", "word " * 300], whole, cuts)
    assert short[-1:] == inputs.end and cut[-1:] != inputs.end and len(cut) == 64 and len(cuts) == 2


def test_a_text_that_spells_the_end_of_a_turn_is_text(drawn):
    tokenizer = with_turns(drawn[1])
    inputs = LMInputs(tokenizer, drawn[0].config)
    (ids,) = inputs.candidates([f"no {tokenizer.eos_token} yes"], inputs.source("?"))
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


def test_pair_takes_the_difference_of_two_rewards(saved, called):
    lines = "".join(json.dumps(record) + "\n" for record in examples(3))
    rc, out, _ = called("pair", "--model", saved, "--dtype", "float32", stdin=lines)
    assert rc == 0
    model, tokenizer = load_lm_ranker(str(saved))
    inputs = LMInputs(tokenizer, model.config)
    for line in out.splitlines():
        record = json.loads(line)
        source = inputs.source("\n".join(part for part in (record["instruction"], record.get("input")) if part))
        with torch.no_grad():
            rewards = model([(source, inputs.candidates([candidate["text"] for candidate in record["candidates"]], source))]).tolist()
        pairs = record["comparisons"]["pairrm"]["pairs"]
        assert len(pairs) == len(rewards) * (len(rewards) - 1)
        assert [logit for _, _, logit in pairs] == pytest.approx([rewards[i] - rewards[j] for i, j, _ in pairs], abs=2e-3)


def test_the_signature_names_the_lm_too(saved, tiny_chat):
    from blendkit.models.loading import fingerprint
    from blendkit.rankers.pairranker import PairRanker

    stage = PairRanker(str(saved), device="cpu")
    assert f"{saved}@{fingerprint(str(saved))}+{tiny_chat}@{fingerprint(str(tiny_chat))}" in stage.signature
    assert stage.describe()["models"] == {str(saved): fingerprint(str(saved)), str(tiny_chat): fingerprint(str(tiny_chat))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 3}, "does not fit config.json"),
        ({"adapted_layers": 3}, "has 2 layers to read, got 3"),
        ({"adapted_layers": -1}, "adapted_layers: expected a number from 0 to 1,000, got '-1'"),
        ({"adapted_layers": 0}, "does not fit config.json: it has 14 weights too many, added.0."),
        ({"read_layers": [3]}, "has 2 layers; got [3]"),
        ({"read_layers": [2, 1]}, "read_layers: expected a list of rising numbers from 1, got '[2, 1]'"),
        ({"read_layers": ["1"]}, "read_layers: expected a list of rising numbers"),
        ({"adapted_layers": 2, "read_layers": [1]}, "has 1 layer to read, got 2"),
        ({"read_layers": [1, 2]}, "does not fit config.json: "),
        ({"model_name": None}, "lacks `ranker_type: lmranker` or `model_name`"),
        ({"lm": "another"}, "learnt with another"),
        ({"model_name": "no/such"}, "no model 'no/such'"),
        ({"candidate_maxlength": "long"}, "candidate_maxlength: expected a number"),
    ],
)
def test_a_config_that_says_what_is_not_there_is_one_line(saved, called, change, said):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    rc, out, err = called("pair", "--model", saved, stdin=json.dumps(examples(1)[0]))
    assert (rc, out) == (66, "") and said in err and len(err.splitlines()) == 1


def test_a_missing_weight_or_template_is_one_line(saved, tiny_chat, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    save_file({key: value for key, value in weights.items() if key != "weight"}, saved / "model.safetensors")
    with pytest.raises(NoInputError, match="lacks 1 weight of a ranker on a causal LM, weight first"):
        load_lm_ranker(str(saved))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_chat, bare)
    for file in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        if file.exists():
            text = file.read_text()
            file.unlink()
            if file.suffix == ".json":
                file.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "chat_template"}))
    model, tokenizer = new_lm_ranker(LMRankerConfig(str(bare), 1, 4))
    with pytest.raises(NoInputError, match="has no chat template"):
        LMInputs(tokenizer, model.config)


def test_the_lm_is_no_part_of_the_checkpoint(drawn, saved):
    model, _ = drawn
    assert isinstance(model, LMRanker)
    assert set(model.state_dict()) == {"scale", "weight", *(f"added.0.{key}.{side}" for key in model.added[0] for side in ("narrow", "widen"))}
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}


def test_who_takes_no_such_ranker_says_so_in_one_line(saved, called):
    record = json.dumps(examples(1)[0])
    rc, _, err = called("pair", "--model", saved, "--dtype", "int8", stdin=record)
    assert rc == 2 and "stands on a causal LM, which does not run in it" in err and len(err.splitlines()) == 1
    with pytest.raises(NoInputError, match="is a ranker on a causal LM"):
        load_pairrm(str(saved))


def test_an_lm_in_a_relative_folder_is_found_from_elsewhere(tiny_chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_chat.parent)
    model, _ = new_lm_ranker(LMRankerConfig(tiny_chat.name, 1, 4))
    save_lm_ranker(tmp_path / "ranker", model)
    monkeypatch.chdir(tmp_path)
    assert load_lm_ranker("ranker")[0].config == model.config
