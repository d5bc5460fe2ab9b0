"""Every form of attention gives the plain form's numbers, and each machine gets one that runs there."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from conftest import lines, parsed
from test_fast_models import CPU, ENCODERS, Inputs, network, rows
from test_late import network as late_network
from test_late import rows_of, texts
from torch.utils._python_dispatch import TorchDispatchMode

import blendkit as library
from blendkit.errors import BlendkitWarning, UsageError
from blendkit.models import attention_forms
from blendkit.models.attention_forms import Attending, Machine, Needs, TakenForm, attending, choose, compiler_fault, has_triton
from blendkit.models.fast import attention, varlen
from blendkit.models.fast import rows as in_rows
from blendkit.models.fast.packing import pack
from blendkit.models.fast.scorer import PairScorer

A100 = Machine("cuda", (8, 0), triton=True)
DEBERTA, BERT = Needs(64, "bfloat16", relative=True), Needs(64, "bfloat16")
MPNET, MODERNBERT = Needs(64, "bfloat16", bias=True), Needs(64, "bfloat16", windows=True)


def made(name: str, form: str) -> PairScorer:
    model = network(name)
    with attending(form):
        return PairScorer(model, Inputs(model.config), CPU, torch.float32)


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_and_variable_lengths_are_the_plain_forward_pass(name, monkeypatch):
    model = network(name)
    plain = PairScorer(model, Inputs(model.config), CPU, torch.float32, packed=False)(rows())
    batched = made(name, "batched")
    torch.testing.assert_close(batched(rows()), plain, atol=1e-5, rtol=0)
    assert isinstance(batched.encoder.attention, in_rows.Batched)
    # One input at a time, as where the scores of several have no room.
    monkeypatch.setattr(in_rows, "CELLS", 1)
    torch.testing.assert_close(batched(rows()), plain, atol=1e-5, rtol=0)
    if name.startswith(("deberta", "mpnet")) or name == "modernbert":
        what = "relative scores" if "deberta" in name else "layers that see a window" if name == "modernbert" else "numbers that are added to scores"
        with pytest.raises(UsageError, match=f"^--attention varlen: .*{what}.*; try --attention per-input$"):
            made(name, "varlen")
    else:
        torch.testing.assert_close(made(name, "varlen")(rows()), plain, atol=1e-5, rtol=0)


def test_windows_go_into_the_kernel_of_variable_lengths(monkeypatch):
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        """What torch's own does on a GPU, written out."""
        assert cu_q.dtype == torch.int32 and int(cu_q[-1]) == len(q) and max_q == int(cu_q.diff().max()) and torch.equal(cu_q, cu_k)
        owner = torch.repeat_interleave(torch.arange(len(cu_q) - 1), cu_q.diff().long())
        near = torch.arange(len(q))[:, None] - torch.arange(len(q))
        allowed = (owner[:, None] == owner) & ((near.abs() <= window_size[0]) | (window_size[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, float("-inf")).softmax(-1), v)

    monkeypatch.setattr(varlen, "varlen_kernel", lambda *what: varlen_attn)
    monkeypatch.setattr(attention_forms, "has_varlen_kernel", lambda *what: True)
    for name in ("modernbert", "bert", "bert-segments"):
        model = network(name)
        plain = PairScorer(model, Inputs(model.config), CPU, torch.float32, packed=False)(rows())
        torch.testing.assert_close(made(name, "varlen")(rows()), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["batched", "varlen", "flex"])
@pytest.mark.filterwarnings("ignore")
def test_a_late_paired_ranker_attends_in_every_form(form):
    name = "bert-segments" if form == "varlen" else "deberta-v3"
    model = late_network(name, 1)
    source, *candidates = texts(17, 3, 41, 90)
    inputs = Inputs(model.config)
    inputs.candidate_ids = (5, 6)
    exact = PairScorer(model, inputs, CPU, torch.float32, packed=False)(found_rows := rows_of(inputs, source, candidates))
    with attending(form) as how:
        late = PairScorer(model, inputs, CPU, torch.float32)
    torch.testing.assert_close(late(found_rows), exact, atol=1e-5, rtol=0)
    assert how.described() == {"attention": form}


@pytest.mark.parametrize(
    ("machine", "needs", "form", "why"),
    [
        (Machine("cpu"), DEBERTA, "per-input", ""),
        (A100, DEBERTA, "batched", ""),
        (A100, MODERNBERT, "varlen", ""),
        (A100, BERT, "varlen", ""),
        (A100, Needs(64, "float32"), "flex", ""),
        (Machine("cuda", (8, 0)), DEBERTA, "batched", "^without its kernel: Triton is not installed$"),
        (Machine("cuda", (8, 0)), BERT, "varlen", ""),
        (Machine("cuda", (8, 0)), Needs(64, "float32"), "varlen", "no flex: Triton is not installed"),
        (Machine("cuda", (8, 0)), MPNET, "batched", "no varlen: .* added to scores by distance"),
        (Machine("cuda", (9, 0), triton=True, compiler="no C compiler here"), Needs(64, "float32"), "varlen", "no flex: no C compiler here"),
        (Machine("cuda", (6, 1), triton=True), Needs(64, "float16"), "varlen", "capability 7.0, and the card has 6.1"),
        (Machine("cuda", (7, 5), triton=True), DEBERTA, "batched", "bfloat16 needs compute capability 8.0 there, and the card has 7.5"),
        (Machine("cuda", (7, 5), triton=True), Needs(64, "float16", relative=True), "batched", ""),
        (Machine("cuda", (7, 5), triton=True), Needs(64, "float16"), "flex", ""),
        (Machine("cuda", (7, 5)), Needs(64, "float16", windows=True), "batched", "no varlen: layers that see a window"),
        (A100, Needs(8, "float32"), "varlen", "heads of 16 numbers, and the encoder's have 8"),
        (A100, Needs(12, "bfloat16"), "varlen", "heads of 16 numbers, and the encoder's have 12"),
        (Machine("cuda", (9, 4), rocm=True, triton=True), BERT, "batched", "not been tried on ROCm"),
        (Machine("mps"), BERT, "batched", "the device is mps"),
    ],
)
def test_each_machine_gets_a_form_that_runs_there(machine, needs, form, why):
    found = choose("auto", machine, needs)
    assert found.form == form and attention_forms.obstacle(form, machine, needs) == ""
    assert bool(found.why) == bool(why)
    assert re.search(why, found.why)
    for plain in ("batched", "per-input"):
        assert choose(plain, machine, needs) == TakenForm(plain)


def test_flex_may_be_asked_for_where_it_is_not_taken_by_itself():
    assert choose("flex", A100, DEBERTA) == TakenForm("flex")


def test_a_form_that_was_asked_for_and_cannot_run_is_one_line():
    with pytest.raises(UsageError) as found:
        choose("flex", Machine("cuda", (8, 0)), DEBERTA)
    assert str(found.value) == "--attention flex: Triton is not installed; try --attention batched" and found.value.exit_code == 2
    with pytest.raises(UsageError, match=r"^--attention varlen: .* the device is mps"):
        choose("varlen", Machine("mps"), BERT)


def test_what_flex_needs_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not has_triton()
    find = compiler_fault.__wrapped__
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert find().startswith("no C compiler (gcc, clang, or the one that CC names)")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "cannot read Python.h, which Triton needs (fatal error: Python.h: No such file)" in find()
    broken.write_text("#!/bin/sh\nexit 0\n")
    assert find() == ""
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert "none does not run (FileNotFoundError)" in find()


RECORD = {"id": "1", "instruction": "Say it.", "candidates": [{"model": str(n), "text": text} for n, text in enumerate(("a cat", "the dog sat there", "no"))]}


def test_without_triton_pair_says_what_it_takes_instead(called, tmp_path, tiny_ranker, monkeypatch):
    manifest = tmp_path / "manifest.json"
    flags = ("pair", "--model", tiny_ranker, "--device", "cpu", "--dtype", "float32", "--manifest", manifest)

    def run(*more):
        code, out, err = called(*flags, *more, stdin=lines([RECORD]))
        return code, out, err, json.loads(manifest.read_text())["attention"] if code == 0 else None

    code, expected, err, form = run()
    assert (code, err, form) == (0, "", "per-input")
    # The same code path as on a GPU, where only the numbers are a CPU's.
    monkeypatch.setattr(Machine, "of", classmethod(lambda cls, device: cls("cuda", (8, 0), triton=has_triton())))
    monkeypatch.setitem(sys.modules, "triton", None)
    code, out, err, form = run()
    assert (code, err, form) == (0, "blendkit pair: attention: varlen (no flex: Triton is not installed)\n", "varlen")
    for mine, theirs in zip(*(parsed(text)[0]["comparisons"]["pairrm"]["pairs"] for text in (out, expected)), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert run("--attention", "per-input")[2:] == ("blendkit pair: attention: per-input\n", "per-input")
    assert run("--attention", "flex") == (2, "", "blendkit pair: --attention flex: Triton is not installed; try --attention varlen\n", None)
    code, out, err, _ = run("--attention", "quick")
    assert (code, out) == (2, "") and err.endswith("--attention quick: expected auto, flex, varlen, batched or per-input\n")


def test_score_takes_a_form_too_and_says_where_there_is_nothing_to_choose():
    record = {**RECORD, "output": "a cat sat"}
    scores = []
    for form in ("auto", "batched", "varlen"):
        (done,) = library.score([record], ["bertscore", "cosine"], device="cpu", attention=form)
        scores.append([value for candidate in done["candidates"] for value in candidate["scores"].values()])
    assert scores[1] == pytest.approx(scores[0], abs=1e-5) and scores[2] == pytest.approx(scores[0], abs=1e-5)
    with pytest.raises(UsageError, match=r"^--attention batched: nothing here is computed by a packed encoder"):
        list(library.score([record], ["bleu"], attention="batched"))


def test_an_encoder_that_two_share_is_told_for_both():
    from blendkit.scorers import make_scorer

    with attending("batched") as one:
        first = make_scorer("bertscore", device="cpu")
    with attending("batched") as other:
        second = make_scorer("bertscore-recall", device="cpu")
    with attending() as third:
        apart = make_scorer("bertscore", device="cpu")
    assert first.encoder is second.encoder and first.encoder is not apart.encoder
    assert one.described() == other.described() == {"attention": "batched"} and third.described() == {"attention": "per-input"}


def test_what_does_not_compile_is_told_and_another_form_goes_on(monkeypatch):
    def broken(device):
        def compiled(*given, **named):
            raise RuntimeError("BackendCompilerFailed: fatal error\nand more of it")

        return compiled

    exact = made("bert", "auto")(rows())
    monkeypatch.setattr(attention, "_flex", broken)
    monkeypatch.setattr(attention_forms, "LEAST_HEAD", 1)
    monkeypatch.setattr(Machine, "of", classmethod(lambda cls, device: A100))
    with attending() as how:
        found = PairScorer(network("bert"), Inputs(network("bert").config), CPU, torch.float32)
    assert how.lines() == ["attention: flex"]
    monkeypatch.setattr(Machine, "of", classmethod(lambda cls, device: Machine("cuda", (7, 5), triton=True)))
    with pytest.warns(
        BlendkitWarning, match=r"^attention: varlen from here on, as torch cannot compile flex here \(RuntimeError: BackendCompilerFailed: fatal"
    ):
        torch.testing.assert_close(found(rows()), exact, atol=1e-5, rtol=0)
    assert how.described() == {"attention": "varlen"} and how.chosen[0][1].why.startswith("flex does not compile: ")
    asked = made("bert", "flex")
    with pytest.raises(UsageError, match=r"^--attention flex: torch cannot compile it here"):
        asked(rows())
    # What another form would meet as well is no reason to take one.
    monkeypatch.setattr(attention, "_flex", lambda device: lambda *given, **named: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        made("bert", "flex")(rows())


def test_what_compiled_before_and_fails_later_has_another_fault(monkeypatch):
    working = attention._flex
    found = made("bert", "flex")
    found(rows())
    monkeypatch.setattr(attention, "_flex", lambda device: lambda *given, **named: (_ for _ in ()).throw(RuntimeError("another fault")))
    with pytest.raises(RuntimeError, match=r"^another fault"):
        found(rows())
    monkeypatch.setattr(attention, "_flex", working)
    found(rows())


class Seen(TorchDispatchMode):
    """Names of operations, with a mark on those that read a mask, and the size of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        masks = (
            any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in args[1] or ())
            if "index" in str(function) and isinstance(args[1], list)
            else False
        )
        self.names.append(f"{function}{' by a mask' if masks else ''}")
        if isinstance(found, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, found.numel())
        return found


# What waits for the device: a number or a shape that the host must know.
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero", "repeat_interleave.Tensor", "by a mask")


@pytest.mark.parametrize("form", ["flex", "batched", "per-input", "varlen"])
def test_the_layers_never_wait_for_the_device(form, monkeypatch):
    # The kernels are torch's own affair, and on a CPU they are others.
    monkeypatch.setattr(attention, "_flex", lambda device: lambda q, k, v, **named: q)
    monkeypatch.setattr(varlen, "varlen_kernel", lambda *what: lambda q, *others, **named: q)
    monkeypatch.setattr(attention_forms, "has_varlen_kernel", lambda *what: True)
    for name in ("bert", "modernbert", "bert-segments") if form == "varlen" else ("deberta-v3", "mpnet-segments", "modernbert", "bert-segments"):
        found = made(name, form)
        batch = found.inputs.pack(rows())
        with torch.inference_mode(), Seen() as seen:
            found.encoder(batch)
        assert len(seen.names) > 50 and [one for one in seen.names if any(word in one for word in WAITS)] == []


def test_the_wait_would_be_seen():
    with Seen() as seen:
        torch.ones(3)[torch.ones(3, dtype=torch.bool)].sum().item()
    assert sum(any(word in one for word in WAITS) for one in seen.names) >= 2


def test_tables_of_relative_scores_have_a_bound(monkeypatch):
    """[h, T, rows met], a part of the heads at a time: never more than the bound and what the packed states themselves take."""
    found = made("deberta-v3", "flex")
    encoder, calls = found.encoder, []
    assert encoder.buckets.span == 16
    monkeypatch.setattr(attention, "_flex", lambda device: lambda q, k, v, **named: calls.append(q.shape[1]) or q)
    # 512 buckets, as in DeBERTa-v3; short inputs meet a part of them.
    from blendkit.models.fast.relative import Buckets, Relative

    heads, size, tokens = 4, 12, 4096
    buckets = Buckets(256, 256, 512, CPU)
    assert buckets.met(512) == (0, 512) and buckets.met(100) == (128, 384) and buckets.met(30) == (192, 320)
    form = attention.Flex(buckets, 0.0)
    table = torch.randn(heads, 512, size)
    qkv = torch.randn(tokens, 3, heads, size)
    # Four heads of 512 rows are all that a batch of 32,768 tokens has room for.
    assert len(form._heads(qkv, Relative(table, table))) == 1 and attention.TOKENS * 512 * heads == attention.TABLE
    monkeypatch.setattr(attention, "TOKENS", 1)
    for length, bound, parts in ((512, 1 << 22, [2, 2]), (512, 1 << 26, [4]), (30, 1 << 22, [2, 2]), (512, 1, [1, 1, 1, 1])):
        monkeypatch.setattr(attention, "TABLE", bound)
        calls.clear()
        batch = pack([[7] * length] * (tokens // length) + [[7] * (tokens % length)] * bool(tokens % length))
        with torch.inference_mode(), Seen() as seen:
            form(qkv, batch, Relative(table, table), None)
        width = 128 if length == 30 else 512
        assert calls == parts and seen.largest <= max(bound, tokens * width, qkv.numel()) and len(batch.ids) == tokens
    monkeypatch.undo()
    # Short inputs, whose table is cut, and parts of the heads give the same numbers.
    monkeypatch.setattr(attention, "TABLE", 1)
    exact = made("deberta-v3", "per-input")(rows())
    torch.testing.assert_close(made("deberta-v3", "flex")(rows()), exact, atol=1e-5, rtol=0)


def test_rows_of_every_length_are_computed():
    """Of 1 and of 129 tokens, the last block is a single row."""
    heads, size = 2, 8
    buckets, table = in_rows.Buckets(16, 16, 32, CPU), torch.randn(heads, 32, size)
    for lengths in ([1], [129, 128], [257, 240, 230]):
        qkv, relative = torch.randn(sum(lengths), 3, heads, size), in_rows.Relative(table, table / 4)
        batch = pack([[7] * length for length in lengths])
        (rows,) = in_rows.rows_of(batch, lambda length: 0, in_rows.FULL)
        assert rows.length == max(lengths)
        exact = attention.PerInput(buckets, 0.0)(qkv, batch, relative, None)
        torch.testing.assert_close(in_rows.Batched(buckets, 0.0)(qkv, batch, relative, None), exact, atol=1e-5, rtol=0)


def test_a_kernel_that_does_not_compile_is_told_once_and_torch_goes_on(monkeypatch):
    calls = []

    def kernel(*given):
        calls.append(1)
        raise fault

    exact = made("deberta-v3", "batched")(rows())
    monkeypatch.setattr(in_rows, "attention_kernel", lambda *what: kernel)
    fault = RuntimeError("no ptxas\nand more of it")
    found = made("deberta-v3", "batched")
    with pytest.warns(BlendkitWarning, match=r"^attention: batched goes on without its kernel, .* here \(RuntimeError: no ptxas\)$"):
        torch.testing.assert_close(found(rows()), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(found(rows()), exact, atol=1e-5, rtol=0)
    assert len(calls) == 1
    # What torch's own operations would meet as well is no reason to take them.
    fault = RuntimeError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        made("deberta-v3", "batched")(rows())


def test_inputs_share_rows_with_their_like():
    groups = list(in_rows.groups([10, 100, 90, 11, 79, 100, 3], lambda length: 2 * length**2, in_rows.FULL))
    assert [[[10, 100, 90, 11, 79, 100, 3][one] for one in group] for group in groups] == [[100, 100, 90], [79], [11, 10], [3]]
    many = list(in_rows.groups([1000] * 100, lambda length: 16 * length**2, in_rows.FULL))
    assert all(len(group) * 16 * 1000**2 <= in_rows.CELLS for group in many) and sum(map(len, many)) == 100
    assert list(in_rows.groups([9000, 9000], lambda length: 16 * length**2, in_rows.FULL)) == [[0], [1]]


def test_nothing_is_told_of_a_cpu_that_was_not_asked():
    assert Attending(chosen=[("cpu", TakenForm("per-input"))]).lines() == []
    assert Attending(chosen=[("cuda", TakenForm("flex")), ("cuda", TakenForm("flex"))]).lines() == ["attention: flex"]
