"""A ranker on a causal LM: x once and its candidates in one row, against each text by itself as transformers has it, padded in batches of like length.

    bin/bench lmranker                        ../shared/data/dev.jsonl.gz, smollm2-ranker

Both give the same rewards, which is checked; they take turns, and the faster of --rounds counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from blendkit.models.layer_list import layers_of, with_layers
from blendkit.models.lm_ranker import LMInputs, LMRanker, load_lm_ranker
from blendkit.models.loading import choose_device
from blendkit.models.pretrained import pretrained
from blendkit.rankers.conversations import pair_texts
from blendkit.streams.lines import Line, Reader
from blendkit.training.micro_batches import micro_batches

DEV = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "dev.jsonl.gz"


def plain(name: str, model: LMRanker, dtype: torch.dtype, device: torch.device, tokens: int) -> Callable[[list[Any]], list[float]]:
    """Rewards of whole texts, by the LM as transformers loads it."""
    from transformers import AutoModel

    lm = pretrained(AutoModel, name, "causal LM", dtype=dtype).to(device).eval()
    read = model.config.read_layers
    states: dict[int, torch.Tensor] = {}
    for number in read:
        layers_of(lm)[number - 1].register_forward_hook(lambda _, __, found, number=number: states.update({number: found}))
    lm = with_layers(lm, list(layers_of(lm))[: read[-1]])

    def rewards(groups: list[Any]) -> list[float]:
        texts = [(source, candidate) for source, own in groups for candidate in own]
        found = [0.0] * len(texts)
        for places in micro_batches([len(source) + len(candidate) for source, candidate in texts], tokens):
            rows = [[*texts[place][0], *texts[place][1]] for place in places]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
            seen = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
            lm(input_ids=ids, attention_mask=seen, use_cache=False)
            for place, row, number in zip(places, rows, itertools.count(), strict=False):
                own = slice(len(texts[place][0]), len(row))
                means = torch.cat([states[layer][number, own].float().mean(0) for layer in read])
                features = torch.cat([means, torch.tensor([float(len(texts[place][1]))], device=device).log()])
                found[place] = float((features * model.scale * model.weight).sum())
        return found

    return rewards


def main() -> None:
    """Prints records/s, tokens/s and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="?", default=str(DEV))
    parser.add_argument("--model", default="smollm2-ranker", help="one that reads the states of some layers")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch, with its padding")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    flags = parser.parse_args()
    device, dtype = choose_device(flags.device), getattr(torch, flags.dtype)
    model, tokenizer = load_lm_ranker(flags.model, dtype)
    model.to(device)
    inputs = LMInputs(tokenizer, model.config)
    groups = []
    for line in itertools.islice((line for line in Reader(flags.input).records() if isinstance(line, Line)), flags.records):
        text, texts = pair_texts(line.record, [candidate["text"] for candidate in line.record["candidates"]])
        source = inputs.source(text)
        groups.append((source, inputs.candidates(texts, source)))
    sizes = [len(source) + sum(map(len, own)) for source, own in groups]

    def in_rows(given: list[Any]) -> list[float]:
        parts = {place: found for places in micro_batches(sizes, flags.tokens) for place, found in zip(places, split(given, places), strict=True)}
        return [reward for place in range(len(given)) for reward in parts[place]]

    def split(given: list[Any], places: list[int]) -> list[list[float]]:
        return [part.tolist() for part in model([given[place] for place in places]).split([len(given[place][1]) for place in places])]

    ways = {"each text alone, padded": plain(model.config.model_name, model, dtype, device, flags.tokens), "x once, in rows": in_rows}
    best: dict[str, float] = dict.fromkeys(ways, float("inf"))
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for _ in range(flags.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                found[name] = way(groups)
                best[name] = min(best[name], time.perf_counter() - began)
    first, second = found.values()
    far = max(abs(one - other) for one, other in zip(first, second, strict=True))
    table = Table("way", "records/s", "tokens/s of those in rows", "ratio")
    slowest = max(best.values())
    for name, seconds in best.items():
        table.add_row(name, f"{len(groups) / seconds:.2f}", f"{sum(sizes) / seconds:,.0f}", f"{slowest / seconds:.2f}")
    Console().print(table)
    print(f"{len(groups)} records, {len(first)} candidates, {sum(sizes):,} tokens in rows")
    print(f"rewards differ by at most {far:.3f}, their range is {max(first) - min(first):.2f}")


if __name__ == "__main__":
    main()
