"""Pairs a second of `pair` against a plain Hugging Face implementation of the same loop, in one run.

Plain is what the reference implementation does: for each batch of records and each pair index (i, j), one forward
pass of the encoder as transformers has it, padded to the longest input of the batch. Models are random, of a real
shape; texts and their lengths are real. Each variant runs in a process of its own, so that peak memory is its own.

    bin/bench pair                            a 6-layer model, on this machine's best device
    bin/bench pair --model large              DeBERTa-v3-large's shape
    bin/bench pair --records 8 --indices 110  the full matrix of 8 records
    bin/bench pair --model embedded --indices 110   its weights, each pair read together, late-paired, and as it ships but for the expert
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DEV = ROOT.parent / "shared" / "data" / "dev.jsonl.gz"
EXAMPLES = ROOT / "docs" / "examples" / "candidates.jsonl"
SHAPES = {
    "base6": {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
BUCKETS = 256


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench pair", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SHAPES, "embedded"], default="base6", help="6 layers of 768, DeBERTa-v3's shapes, or the embedded ranker")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--indices", type=int, default=12, help="pair indices (i, j) of the 110, drawn by seed; the same for all variants")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[8],
        help="records a batch of the plain implementation (the reference's default is 8); of several, all but the first take pairs sorted by length, "
        "and the first that is slower than one before it, or does not fit into memory, is the last",
    )
    parser.add_argument("--batch-tokens", type=int, help="tokens a batch of ours; the command's own default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plain-dtype", help="float32 on a CPU, float16 on a GPU (the reference's choices)")
    parser.add_argument("--dtypes", nargs="+", help="ours: float32, bfloat16 and, where the processor has it, int8 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--repeats", type=int, default=1, help="each variant this often, in turn; the fastest counts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the plain implementation stops after these and counts what it has done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def read_records(count: int) -> list[dict]:
    if DEV.is_file():
        with gzip.open(DEV) as file:
            return [json.loads(line) for line in file][:count]
    return [json.loads(line) for line in EXAMPLES.read_text().splitlines()][:count]


def random_ranker(shape: str):
    """A PairRanker with a random encoder of DeBERTa-v3's kind, and the embedded ranker's tokenizer."""
    import torch
    from transformers import DebertaV2Config, DebertaV2Model

    from blendkit.models.pairrm import PairRM, PairRMConfig, load_pairrm
    from blendkit.training.new_pairranker import late_paired

    network, tokenizer = load_pairrm("embedded")
    if shape == "embedded":
        # As the paper's ranker reads, each pair together.
        return late_paired(network, None).eval(), tokenizer
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=30592,
        **SHAPES[shape],
        max_position_embeddings=512,
        relative_attention=True,
        position_buckets=BUCKETS,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
    )
    return PairRM(PairRMConfig(1224, 412), DebertaV2Model(config).eval()), tokenizer


def late_variant(scorer, records, indices, batch_tokens: int) -> dict:
    """What `pair` does with a late-paired ranker: reads all candidates, then compares those that it has read; one order gives the other."""
    from blendkit.pipeline.plan import Plan
    from blendkit.pipeline.runner import run_works
    from blendkit.pipeline.work import Job, Work

    reading, comparing = Job("read", scorer.read), Job("compare", lambda payloads: scorer.compare(payloads).tolist())
    read: dict = {}
    plan = Plan(batch_tokens=batch_tokens)
    works = [
        Work(reading, (source, text), (len(source) + sum(map(len, ids))) // len(ids), (source, text)) for source, ids in records for text in dict.fromkeys(ids)
    ]
    run_works(works, plan, read)
    asked = {}
    for number, (source, ids) in enumerate(records):
        for i, j in indices:
            first, second = sorted((ids[i], ids[j]))
            payload = (read[reading, (source, first)], read[reading, (source, second)])
            asked[number, i, j] = Work(comparing, (source, first, second), scorer.tokens_of_pair(first, second), payload)
    results: dict = {}
    run_works(list(asked.values()), plan, results)
    return {key: results[comparing, work.key] * (1 if records[key[0]][1][key[1]] <= records[key[0]][1][key[2]] else -1) for key, work in asked.items()}


def matmul_rate(device, dtype, tiny: bool = False) -> float:
    """FLOP/s of the best of some matrix products of this number type, with plain weights and with weights laid out for the processor."""
    import torch

    from blendkit.models.fast.int8 import Int8Linear
    from blendkit.models.fast.linear import Linear

    narrow = dtype == torch.int8
    side, times = (128, 2) if tiny else (2048, 2) if device.type == "cpu" else (8192, 10)
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32 if narrow else dtype) for _ in range(2))
    linear = Int8Linear(b, None) if narrow else Linear(b, None, device, dtype)
    best = float("inf")
    with torch.inference_mode():
        for product in [lambda: linear(a)] * 12 if narrow else [lambda: a @ b, lambda: linear(a)] * 6:
            synchronize(device)
            start = time.perf_counter()
            for _ in range(times):
                product()
            synchronize(device)
            best = min(best, (time.perf_counter() - start) / times)
    return 2 * side**3 / best


def synchronize(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def nominal_flops(encoder, lengths: list[int]) -> float:
    """Of the plain forward pass over the real tokens: projections, feed-forward, scores, contexts, relative scores."""
    h, f, layers = encoder.hidden_size, encoder.intermediate_size, encoder.num_hidden_layers
    relative = 2 * 2 * 2 * BUCKETS * h if encoder.model_type == "deberta-v2" else 0
    return sum(layers * length * (2 * (4 * h * h + 2 * h * f) + 4 * length * h + relative) for length in lengths)


def run_variant(options: argparse.Namespace) -> Iterator[dict]:
    """One variant, `plain:float16` or `ours:bfloat16`, in this process; the plain one once for each size of batch."""
    import torch

    from blendkit.errors import out_of_memory
    from blendkit.models.fast.scorer import PairScorer
    from blendkit.models.loading import batch_budget, choose_device
    from blendkit.models.pair_inputs import PairInputs
    from blendkit.pipeline.plan import Plan
    from blendkit.pipeline.runner import run_works
    from blendkit.pipeline.work import Job, Work
    from blendkit.records import source_text

    kind, _, dtype_name = options.variant.partition(":")
    device, dtype = choose_device(options.device), getattr(torch, dtype_name)
    network, tokenizer = random_ranker(options.model)
    is_packed = kind in ("ours", "ships") or kind.startswith("late")
    if kind == "ships":
        from blendkit.models.expert import without_expert
        from blendkit.models.pairrm import load_pairrm

        # With its head for relevance; the expert reads few records.
        network = without_expert(load_pairrm("embedded")[0])
    elif kind.startswith("late"):
        from blendkit.models.pairrm import load_pairrm
        from blendkit.training.new_pairranker import late_paired

        # Of the embedded one, the biases between candidates that it was trained with, if it was trained so.
        network = late_paired(load_pairrm("embedded")[0] if options.model == "embedded" else network, int(kind.removeprefix("late"))).eval()
    is_late = is_packed and network.config.paired_layers is not None
    encoder_config = network.pretrained_model.config
    inputs = PairInputs(tokenizer, replace(network.config))
    if kind == "flashdeberta":
        from flashdeberta import FlashDebertaV2Model

        flash = FlashDebertaV2Model(encoder_config).eval()
        flash.load_state_dict(network.pretrained_model.state_dict(), strict=False)
        network.pretrained_model = flash
    scorer = PairScorer(network, inputs, device, dtype, packed=is_packed)

    records = []
    for record in read_records(options.records):
        source = inputs.source(source_text(record))
        records.append((source, inputs.candidates([candidate["text"] for candidate in record["candidates"]], source)))
    count = min(len(candidates) for _, candidates in records)
    indices = list(permutations(range(count), 2))
    random.Random(options.seed).shuffle(indices)
    indices = indices[: options.indices]
    rows = {(number, i, j): inputs.pair(source, ids[i], ids[j]) for number, (source, ids) in enumerate(records) for i, j in indices}
    lengths = {key: sum(len(segment.ids) for segment in row) for key, row in rows.items()}

    job = Job("bench", lambda payloads: scorer(payloads).tolist())

    def ours() -> dict:
        results: dict = {}
        tokens = options.batch_tokens or batch_budget(device)
        run_works([Work(job, key, lengths[key], row) for key, row in rows.items()], Plan(batch_tokens=tokens), results)
        return {key[1]: value for key, value in results.items()}

    def late() -> dict:
        return late_variant(scorer, records, indices, options.batch_tokens or batch_budget(device))

    def batches(size: int) -> list[list]:
        # The first size is the reference's loop: each pair index of a batch of records. Others are sorted as CrossEncoder.predict sorts them.
        keys = [(number, i, j) for i, j in indices for number in range(len(records))]
        keys = keys if size == options.batch_size[0] else sorted(rows, key=lengths.__getitem__)
        found = [keys[start : start + size] for start in range(0, len(keys), size)]
        # What is done in time is a fair sample of all.
        random.Random(0).shuffle(found)
        return found

    def plain(some: list[list]) -> dict:
        results: dict = {}
        until = time.perf_counter() + options.seconds
        for batch in some:
            results.update(zip(batch, scorer([rows[key] for key in batch]).tolist(), strict=True))
            if time.perf_counter() > until:
                break
        return results

    on_gpu = device.type == "cuda"
    best = rate = 0.0
    for size in options.batch_size[:1] if is_packed else options.batch_size:
        if size > options.batch_size[0] and size > len(rows):
            break
        try:
            start = time.perf_counter()
            scorer(list(rows.values())[:2])  # first calls compile and allocate
            measured = late if is_late else ours if is_packed else partial(plain, batches(size))
            if on_gpu and is_packed:
                measured()
            elif on_gpu:
                scorer([rows[key] for key in max(batches(size), key=lambda batch: max(map(lengths.__getitem__, batch)))])
            synchronize(device)
            first = time.perf_counter() - start
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            logits = measured()
            synchronize(device)
            seconds = time.perf_counter() - start
        except Exception as error:
            if best and out_of_memory(error):
                break
            raise
        peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rate = rate or matmul_rate(device, dtype, options.model == "tiny")
        done = [lengths[key] for key in logits]
        yield {
            "model": options.model,
            "variant": options.variant,
            "late": is_late,
            "batch_size": None if is_packed else size,
            "pairs_per_s": len(done) / seconds,
            "records_per_s": len(done) / len(indices) / seconds,
            "tokens_per_s": sum(done) / seconds,
            "of_matmul_rate": nominal_flops(encoder_config, done) / seconds / rate,
            "matmul_gflops": rate / 1e9,
            "peak_mib": peak / 2**20,
            # Compiling, and what else happens once.
            "first_calls_s": max(0.0, first - seconds) if on_gpu and is_packed else first,
            "steady_s": seconds,
            "pairs": len(rows),
            "mean_length": sum(lengths.values()) / len(lengths),
            "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
            "logits": [logits.get(key) for key in sorted(rows)],
        }
        if len(done) / seconds < best:
            break
        best = len(done) / seconds


def largest_difference(mine: dict, theirs: dict) -> float:
    """Of the logits that both have."""
    return max(abs(a - b) for a, b in zip(mine["logits"], theirs["logits"], strict=True) if a is not None and b is not None)


def processor() -> str:
    try:
        models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{models[0]}, {os.cpu_count()} cores"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    options = arguments()
    if options.variant:
        for row in run_variant(options):
            print(json.dumps(row), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    from blendkit.models.fast.int8 import has_int8
    from blendkit.models.loading import choose_device

    on_gpu = choose_device(options.device).type == "cuda"
    plain = f"plain:{options.plain_dtype or ('float16' if on_gpu else 'float32')}"
    ours = ["bfloat16"] if on_gpu else ["float32", "bfloat16", *(["int8"] if has_int8() else [])]
    variants = [plain, *(f"ours:{dtype}" for dtype in options.dtypes or ours)]
    if options.model == "embedded":
        # Other functions of the same weights; `ships` has the head for relevance besides.
        variants += [f"{kind}:{variant.partition(':')[2]}" for kind in ("late1", "late2", "ships") for variant in variants[1:]]
    if on_gpu and find_spec("flashdeberta") and options.model != "embedded":
        variants.append("flashdeberta:float16")
    best: dict[str, dict] = {}
    for _ in range(options.repeats):
        for variant in variants:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--variant", variant], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            for result in map(json.loads, done.stdout.splitlines()):
                name = variant if len(options.batch_size) == 1 or not result["batch_size"] else f"{variant}, {result['batch_size']}"
                if name not in best or result["pairs_per_s"] > best[name]["pairs_per_s"]:
                    best[name] = result
    base = next(iter(best.values()))
    title = f"{options.model}: {base['pairs']} pairs of {base['mean_length']:.0f} tokens on {base['device']}; plain in batches of {options.batch_size[0]}"
    table = Table(title=title, title_justify="left")
    for column in ("", "records/s", "pairs/s", "ratio", "tokens/s", "of matmul rate", "peak MiB", "largest difference"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for variant, result in best.items():
        late = result["late"]
        table.add_row(
            variant,
            f"{result['records_per_s']:.2f}",
            f"{result['pairs_per_s']:.2f}",
            f"{result['pairs_per_s'] / base['pairs_per_s']:.2f}",
            "–" if late else f"{result['tokens_per_s']:,.0f}",
            "–" if late else f"{result['of_matmul_rate']:.0%} of {result['matmul_gflops']:,.0f} GFLOP/s",
            f"{result['peak_mib']:,.0f}",
            "another function" if late else f"{largest_difference(result, base):.1e}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
