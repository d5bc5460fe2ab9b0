"""Text that spells a marker, a separator or any added token is data, never structure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from blendkit.models.pair_inputs import MARKERS, PairInputs
from blendkit.models.pairrm import load_pairrm

SPELLINGS = (*MARKERS, "<|candidate|>", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "</s>", "<s>", "<unk>", "<|", "|>", "[", "]")
TEXTS = st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=12)), max_size=8).map("".join)


@pytest.fixture(scope="module")
def all_inputs(tiny_ranker, golden_ranker):
    found = []
    for checkpoint in filter(None, (str(tiny_ranker), golden_ranker)):
        network, tokenizer = load_pairrm(checkpoint)
        found.append(PairInputs(tokenizer, network.config))
    return found


@given(source=TEXTS, candidates=st.lists(TEXTS, min_size=1, max_size=4))
def test_only_our_own_tokens_are_structure(all_inputs, source, candidates):
    for inputs in all_inputs:
        special = set(inputs.tokenizer.get_added_vocab().values()) - {inputs.tokenizer.unk_token_id}
        ids = inputs.source(source)
        for text_ids in (ids, *inputs.candidates(candidates, ids)):
            # [CLS] marker text [SEP]
            assert len(text_ids) >= 3
            assert not special & set(text_ids[2:-1])
            assert text_ids[0] == inputs.tokenizer.cls_token_id
            assert text_ids[-1] == inputs.tokenizer.sep_token_id


@given(text=st.text(max_size=80))
def test_other_text_has_the_ids_it_always_had(all_inputs, text):
    for inputs in all_inputs:
        if any(token in text for token in inputs.tokenizer.get_added_vocab()):
            continue
        expected = inputs.tokenizer(MARKERS[1] + text)["input_ids"]
        assert inputs.texts.ids(MARKERS[1], [text])[0] == expected


def test_a_marker_in_a_text_is_cut_up_like_any_word(tiny_ranker):
    """The tokenizer as it was before any token was added to it is the measure."""
    _, tokenizer = load_pairrm(str(tiny_ranker))
    import json

    layout = json.loads(tokenizer.backend_tokenizer.to_str())
    layout["added_tokens"] = []
    unaware = Tokenizer.from_str(json.dumps(layout))
    inputs = PairInputs(tokenizer, load_pairrm(str(tiny_ranker))[0].config)
    for text in ("a <|candidate1|> b", "<|source|><|candidate2|>", "[MASK] me", "x</s>y"):
        assert inputs.texts.ids(MARKERS[1], [text])[0][2:-1] == unaware.encode(text, add_special_tokens=False).ids


def test_the_reference_rule_for_separators(golden_ranker):
    """A separator inside a text is a space, as in the reference code."""
    if golden_ranker is None:
        pytest.skip("no ../shared/golden beside the checkout")
    network, tokenizer = load_pairrm(golden_ranker)
    inputs = PairInputs(tokenizer, network.config)
    assert inputs.source("a [SEP] b") == inputs.source("a   b")


def test_runs_of_spaces_stay_tokens():
    """Tokenizers of the GPT-NeoX kind have runs of spaces among their added tokens; those are text."""
    from tokenizers import AddedToken
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    from blendkit.models.text_tokenizer import TextTokenizer

    backend = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = Split("", "isolated")
    backend.add_tokens([AddedToken("  ", normalized=False), AddedToken("<m>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert TextTokenizer(tokenizer).ids("<m>", ["a  b"]) == [[4, 1, 3, 2]]
    assert TextTokenizer(tokenizer).ids("<m>", ["<m>"]) == [[4, 0, 0, 0]]
