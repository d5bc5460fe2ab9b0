"""Checks of a GPU, for `bin/bench gpu`: what it is, and whether each form of attention gives the plain form's logits there.

Each row is one JSON line. Expected are the logits of the plain form in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import permutations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pair import ROOT, processor, read_records

DTYPES = ("bfloat16", "float32")
FORMS = ("flex", "varlen", "batched", "per-input", "plain")
DEBERTA = {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
IDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
FAMILIES = {
    "deberta-v2": {**DEBERTA, "position_biased_input": False, "type_vocab_size": 0},
    "modernbert": {**IDS, "local_attention": 128, "global_attn_every_n_layers": 2},
    "mpnet": {},
    "bert": {},
}
# Candidates of one record, of which all ordered pairs are compared.
CANDIDATES = 3


def machine() -> dict:
    """The card and what drives it; `error` where torch has no CUDA device that works."""
    import torch

    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(), "processor": processor()}
    for package in ("transformers", "triton", "flashdeberta"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except Exception as error:
        return {**found, "card": None, "error": first_line(error)}
    card = torch.cuda.get_device_properties(0)
    driver = None
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        driver = asked.stdout.split("\n")[0].strip() if asked.returncode == 0 else None
    return {**found, "card": card.name, "driver": driver, "memory_gib": card.total_memory / 2**30, "capability": f"{card.major}.{card.minor}"}


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def ranker(family: str, tiny: bool):
    """A PairRanker of this family with random weights under which attention matters, or the embedded one; and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel

    from blendkit.models.pairrm import PairRM, PairRMConfig, load_pairrm

    network, tokenizer = load_pairrm("embedded")
    if family == "embedded":
        return network, tokenizer
    torch.manual_seed(0)
    hidden, layers = (64, 3) if tiny else (256, 4)
    sizes = {"vocab_size": 30592, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64 or 1}
    sizes |= {"intermediate_size": 2 * hidden, "max_position_embeddings": 1024}
    found = PairRM(PairRMConfig(160, 384), AutoModel.from_config(AutoConfig.for_model(family, **sizes, **FAMILIES[family]))).eval()
    for weight in found.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    # Logits about as large as a trained ranker's.
    torch.nn.init.normal_(found.head_layer[4].weight, std=5 * hidden**-0.5)
    return found, tokenizer


def scorer_of(network, inputs, form: str, device, dtype):
    """`PairScorer` with this form of attention. Raises UsageError where it cannot run."""
    from blendkit.models.attention_forms import attending
    from blendkit.models.fast.scorer import PairScorer

    if form == "plain":
        return PairScorer(deepcopy(network), inputs, device, dtype, packed=False)
    # Whether it holds is what is measured here.
    with attending(form, self_check=False):
        return PairScorer(deepcopy(network), inputs, device, dtype)


def compared(form: str, device_name: str, families: list[str], tiny: bool) -> Iterator[dict]:
    """A row for each family, number type and way of pairing; one that this form cannot run with says why, and is no fault."""
    import torch

    from blendkit.errors import UsageError
    from blendkit.models.attention_forms import BOUNDS
    from blendkit.models.pair_inputs import PairInputs
    from blendkit.records import source_text
    from blendkit.training.new_pairranker import late_paired

    device, cpu = torch.device(device_name), torch.device("cpu")
    records = read_records(1 if tiny else 2)
    for family in families:
        network, tokenizer = ranker(family, tiny)
        if tiny:
            network.config = replace(network.config, source_maxlength=24, candidate_maxlength=24)
        models = {paired: late_paired(network, paired) for paired in (None, 1, 2)}
        for model in (models[1], models[2]):
            # Else all heads and layers are alike, and what mixes them up would not be seen.
            torch.nn.init.normal_(model.paired_bias, std=0.02)
        expected = {}
        for dtype in DTYPES:
            # Else the compiler gives up on a function that it has compiled for many kinds of model, and runs it uncompiled.
            if device.type == "cuda":
                torch.compiler.reset()
            for paired, model in models.items():
                row = {"form": form, "family": family, "late": paired, "dtype": dtype}
                try:
                    inputs = PairInputs(tokenizer, model.config)
                    rows = []
                    for record in records:
                        source = inputs.source(source_text(record))
                        ids = inputs.candidates([candidate["text"] for candidate in record["candidates"][:CANDIDATES]], source)
                        rows += [inputs.pair(source, ids[i], ids[j]) for i, j in permutations(range(len(ids)), 2)]
                    if paired not in expected:
                        expected[paired] = scorer_of(model, inputs, "plain", cpu, torch.float32)(rows)
                    try:
                        scorer = scorer_of(model, inputs, form, device, getattr(torch, dtype))
                    except UsageError as error:
                        yield {**row, "error": str(error), "ok": None}
                        continue
                    found = scorer(rows)
                    largest, difference = (part.abs().max().item() for part in (expected[paired], found - expected[paired]))
                    bound = BOUNDS[dtype] * max(1.0, largest)
                    yield {**row, "largest_logit": largest, "difference": difference, "bound": bound, "ok": difference <= bound}
                except Exception as error:
                    yield {**row, "error": first_line(error), "ok": False}


class Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.row: dict = {"form": "pytest -m gpu", "passed": 0, "failed": 0, "skipped": 0, "ok": True}

    def pytest_runtest_logreport(self, report) -> None:
        if report.outcome != "passed" or report.when == "call":
            self.row[report.outcome] += 1
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.row |= {"ok": False, "error": (crash.message if crash else str(report.longrepr)).strip().splitlines()[0][:300]}


def tested() -> dict:
    """The tests that need a GPU."""
    missing = [name for name in ("pytest", "hypothesis", "typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        return {"form": "pytest -m gpu", "ok": None, "error": f"not run: {', '.join(missing)} not installed"}
    import pytest

    outcomes = Outcomes()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT), str(ROOT / "tests" / "test_gpu.py")], [outcomes])
    return outcomes.row if code == 0 else {"error": f"pytest ended with {code!s}", **outcomes.row, "ok": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("machine", "tests", *FORMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--families", nargs="+", choices=("embedded", *FAMILIES), default=["deberta-v2"])
    options = parser.parse_args()
    if options.what in FORMS:
        rows = compared(options.what, options.device, options.families, options.tiny)
    else:
        rows = iter([machine() if options.what == "machine" else tested()])
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
