"""The first batch on a GPU proves itself: some of it is held to the plain form in float32."""

from __future__ import annotations

import pytest
import torch
from test_fast_models import CPU, ENCODERS, Inputs, network, rows
from test_late import network as late_network
from test_late import rows_of, texts
from transformers import AutoConfig, AutoModel

from blendkit.errors import BlendkitError
from blendkit.models import attention_forms, encoder_reader
from blendkit.models.attention_forms import attending
from blendkit.models.encoder_reader import EncoderReader
from blendkit.models.fast import forms, scorer
from blendkit.models.fast.scorer import PairScorer


class Wrong(forms.PerInput):
    """Attention that reads each input as if its last token were not there."""

    def __call__(self, qkv, batch, relative, window):
        return super().__call__(qkv, batch, relative, window).roll(1, 0)


@pytest.mark.parametrize("name", ["deberta-v3", "modernbert", "late"])
def test_a_wrong_first_batch_stops_the_run_with_both_numbers(name, monkeypatch):
    monkeypatch.setattr(scorer, "wanted", lambda device: attention_forms.current().self_check)
    if name == "late":
        model = late_network("bert-segments", 2)
        inputs = Inputs(model.config)
        inputs.candidate_ids = (5, 6)
        source, *candidates = texts(17, 3, 41, 90)
        batch = rows_of(inputs, source, candidates)
    else:
        model = network(name)
        torch.nn.init.normal_(model.head_layer[4].weight)
        inputs, batch = Inputs(model.config), rows()

    def of(self_check=True, attention=None):
        with attending(self_check=self_check):
            found = PairScorer(model, inputs, CPU, torch.float32)
        if attention is not None:
            encoder = found.encoder or found.late.encoder
            encoder.attention = attention(encoder.buckets, encoder.candidate_bias, encoder.shared)
            if found.late:
                found.late.attention = encoder.attention
        return found

    right = of()
    right(batch)
    assert right.plain is None  # it was looked at, and is not kept
    with pytest.raises(BlendkitError) as error:
        of(attention=Wrong)(batch)
    said = r"the first batch does not prove itself: a logit is -?[\d.e-]+ with per-input attention in float32 on cpu, and -?[\d.e-]+ by the plain form"
    assert error.value.exit_code == 1 and error.match(said) and "\n" not in str(error.value) and "--no-self-check" in str(error.value)
    of(self_check=False, attention=Wrong)(batch)
    # A first batch that memory runs out for is none: the next one proves itself.
    wrong = of(attention=Wrong)
    with monkeypatch.context() as full:
        full.setattr(scorer.Proof, "logits", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(torch.OutOfMemoryError):
            wrong(batch)
    with pytest.raises(BlendkitError, match="does not prove itself"):
        wrong(batch)


@pytest.mark.parametrize("name", ["bert", "mpnet", "deberta-own-projections"])
def test_states_prove_themselves_as_well(name, monkeypatch):
    monkeypatch.setattr(encoder_reader, "wanted", lambda device: attention_forms.current().self_check)
    torch.manual_seed(0)
    kind, shape = ENCODERS[name]
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **shape)).eval()
    ids = [[7, 8, 9], [9] * 70, list(range(6, 40))]

    def reader(places_only, self_check=True, attention=None):
        with attending(self_check=self_check):
            found = EncoderReader(encoder, 0, CPU, torch.float32, places_only=places_only)
        if attention:
            found.packed.attention = attention(found.packed.buckets, 0.0, found.packed.shared)
        return found

    for places_only in (True, False):
        right, wrong, unheld = (reader(places_only, *more) for more in ((), (True, Wrong), (False, Wrong)))
        for one in (right, wrong, unheld):
            one.read = (lambda one=one: one.at(ids, [[0], [69], [3]], [[0] * 3, [0] * 70, [0] * 34])) if places_only else lambda one=one: one.states(ids)
        right.read()
        right.read()
        unheld.read()
        assert right.plain is None and unheld.plain is None
        with pytest.raises(BlendkitError, match=r"a state is .* an input's states differ by [\d.]+% of their length and may by 0.1%"):
            wrong.read()


def test_what_was_there_stays_where_it_is_for_the_plain_form():
    from blendkit.models.fast.linear import keeping_gradients, moved

    module = torch.nn.Linear(2, 2)
    assert moved(module, CPU, torch.float32) is module
    there = moved(module, torch.device("meta"), torch.bfloat16)
    assert there.weight.is_meta and there.weight.dtype == torch.bfloat16 and not module.weight.is_meta
    with keeping_gradients():
        assert moved(module, CPU, torch.float64) is module and module.weight.dtype == torch.float32
