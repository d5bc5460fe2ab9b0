"""What goes between the host and a device, counted on a device that stands in for a GPU: torch's `meta`, which has shapes and no numbers."""

from __future__ import annotations

import pytest
import torch
from conftest import examples
from tiny_scorers import spec
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from blendkit.models.attention_forms import attending
from blendkit.models.fast.attention import block_mask
from blendkit.models.fast.meetings import InBlocks, OneByOne
from blendkit.models.fast.packing import pack
from blendkit.models.fast.transfer import counted, sent
from blendkit.pipeline import ahead, runner
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import process
from blendkit.rankers.pairranker import PairRanker
from blendkit.scorers.scoring import Scoring
from blendkit.streams.lines import Line

META = torch.device("meta")
USERS = (
    "rankers.pairranker", "models.encoder", "models.regression", "models.token_logit", "scorers.bartscore", "scorers.mlm", "scorers.perplexity",
    "scorers.simcls", "scorers.summareranker",
)  # fmt: skip


class Copies(TorchDispatchMode):
    """Counts copies to the device and back; what comes back is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.there = self.back = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [value for value in args if isinstance(value, torch.Tensor)]
        wanted = kwargs.get("device")
        if given and given[0].device == META and (str(func).startswith(("aten.item", "aten._local")) or (wanted is not None and wanted.type == "cpu")):
            self.back += 1
            if wanted is None:
                return 0.0
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        found = func(*args, **kwargs)
        self.there += bool(given) and isinstance(found, torch.Tensor) and found.device == META and all(value.device != META for value in given)
        return found


@pytest.fixture
def copies(monkeypatch):
    """Runs a stage that `make` makes on the stand-in over 40 records of two candidates: the stage, copies there, copies back, batches of each job."""
    make_tensor = torch.tensor
    # No window ends early because this machine is busy.
    monkeypatch.setattr(ahead, "PATIENCE", 60.0)

    def run(make, attention="per-input", **plan):
        counter, batches = Copies(), {}

        def tensor(data, *arguments, **settings):
            # The dispatcher does not see this way.
            counter.there += settings.get("device") == META
            return make_tensor(data, *arguments, **settings)

        # `loading` last: a module that is imported here first must not keep the stand-in.
        for module in (*USERS, "models.loading"):
            monkeypatch.setattr(f"blendkit.{module}.choose_device", lambda name: META)
        # Per input, nothing more is sent; flex has a copy more for a mask, batched for its rows.
        with attending(attention, self_check=False):
            stage = make()
        records = [dict(record, candidates=record["candidates"][:2]) for record in examples(5)] * 8
        for number, record in enumerate(records):
            record |= {"id": str(number), "instruction": f"{number} {record['instruction']}"}
        run_batch = runner._run_batch

        def counting(job, batch):
            batches[job.name] = batches.get(job.name, 0) + 1
            return run_batch(job, batch)

        monkeypatch.setattr(runner, "_run_batch", counting)
        monkeypatch.setattr(torch, "tensor", tensor)
        lines = [Line(number, b"", record) for number, record in enumerate(records)]
        with counter:
            done = [line for window in process(stage, lines, Plan(window=stage.in_flight, batch_tokens=stage.batch_tokens, **plan)) for line in window]
        assert len(done) == len(records)
        return stage, counter.there, counter.back, batches

    return run


def test_a_batch_of_pairs_goes_to_the_device_in_one_copy_and_comes_back_in_one(copies, tiny_ranker):
    stage, there, back, batches = copies(lambda: PairRanker(str(tiny_ranker), device="cuda"))
    assert stage.ahead and (there, back) == (1, 1) and sum(batches.values()) == 1


# Copies there and back for each batch of each job: what is read needs one there, and BERTScore's weights of tokens one more; matches come back together.
COUNTS = {
    "bertscore": {"bertscore:": (2, 0), "bertscore": (0, 1)},
    "cosine": {"cosine:": (1, 1)},
    "simcls": {"simcls:": (1, 1)},
    "summareranker": {"summareranker:": (1, 1)},
    "bleurt": {"regression:": (1, 1)},
    "mlm": {"mlm:": (2, 1)},
    # Sources that are encoded go nowhere.
    "bartscore-precision": {"bartscore:": (1, 0.5)},
}


@pytest.mark.parametrize("metric", COUNTS)
def test_a_batch_of_a_metric_goes_to_the_device_in_one_copy_and_comes_back_in_one(copies, tiny, metric):
    stage, there, back, batches = copies(lambda: Scoring([spec(tiny, metric)], "cuda"), attention="auto" if "bart" in metric else "per-input")
    assert stage.ahead
    each = {name: next(counts for begin, counts in COUNTS[metric].items() if name.startswith(begin)) for name in batches}
    assert (there, back) == tuple(sum(each[name][way] * number for name, number in batches.items()) for way in (0, 1)), batches


def test_parts_come_to_the_device_as_they_were():
    parts = [torch.arange(6).view(2, 3), torch.tensor([7]), torch.empty(0, 4, dtype=torch.long)]
    assert [part.shape for part in sent(parts, META)] == [part.shape for part in parts]
    assert all(torch.equal(found, part) for found, part in zip(sent(parts, torch.device("cpu")), parts, strict=True))
    assert counted([3, 0, 2]).tolist() == [0, 1, 2, 0, 1] and counted([]).tolist() == []


def test_a_mask_of_blocks_is_one_copy():
    batch = pack([[1] * 300, [2] * 90, [3] * 200]).to(META)
    with Copies() as counter:
        for window in (None, 64):
            block_mask(batch, window)
    assert (counter.there, counter.back) == (2, 0)


def test_attention_in_blocks_is_attention_span_by_span(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    asking, seen = [3, 200, 70, 1, 90, 150, 5], [9, 80, 300, 2, 90, 1, 5]

    def spans(lengths):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    calls = []
    attend = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *given, **named: calls.append(1) or attend(*given, **named))
    for readers, sources, causal in ((asking, seen, False), (asking, asking, False), (asking, asking, True)):
        q, k, v = (torch.randn(sum(lengths), 2, 4, generator=generator) for lengths in (readers, sources, sources))
        calls.clear()
        one, blocks = (form(spans(readers), spans(sources))(q, k, v, causal) for form in (OneByOne, InBlocks))
        torch.testing.assert_close(blocks, one, atol=1e-5, rtol=1e-5)
        # 300 to 150, 90, and the short ones; 200 and 150, 90 and 70, and the short ones.
        assert len(calls) == len(asking) + 3
