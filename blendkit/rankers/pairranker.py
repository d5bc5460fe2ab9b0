"""`pair`: PairRanker over all ordered pairs of a record's candidates (LLM-Blender, section 3.2)."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import torch

from blendkit.errors import RecordError
from blendkit.models.loading import EMBEDDED, choose_device, choose_dtype, fingerprint, to_device
from blendkit.models.pairrm import load_pairrm
from blendkit.rankers.pair_inputs import PairInputs
from blendkit.records import Record, candidates_of, generated_only, source_text
from blendkit.stage import Stage, Work
from blendkit.version import VERSION


class PairRanker(Stage):
    """Writes `comparisons[name]`: both orders of every pair of the candidates that LLMs wrote.

    A fused candidate is left out: it is made of the others and does not compete with them.
    """

    name = "pair"
    window = 8

    def __init__(self, model: str = EMBEDDED, name: str = "pairrm", device: str = "auto", dtype: str = "auto") -> None:
        self.model_name, self.comparisons_name = model, name
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        # A CPU is quickest when a batch's activations stay in its cache (18 % over 4096 tokens, two cores); a GPU wants more.
        self.batch_tokens = 1024 if self.device.type == "cpu" else 16384
        network, tokenizer = load_pairrm(model)
        self.network = network.to(self.device, self.dtype)
        self.inputs = PairInputs(tokenizer, network.config)
        self.signature = f"pairrm|model:{model}@{fingerprint(model)}|sched:full|dtype:{str(self.dtype).removeprefix('torch.')}|v:{VERSION}"

    def plan(self, record: Record) -> list[Work]:
        """One piece of work an ordered pair (i, j); equal texts make equal work, which is done once."""
        candidates = candidates_of(record)
        chosen = generated_only(candidates)
        source = self.inputs.source(source_text(record))
        ids = dict(zip(chosen, self.inputs.candidates([candidates[k]["text"] for k in chosen], source), strict=True))
        return [Work("pairs", (source, ids[i], ids[j]), len(source) + len(ids[i]) + len(ids[j]), (source, ids[i], ids[j])) for i, j in permutations(chosen, 2)]

    @torch.inference_mode()
    def run(self, group: str, payloads: list[Any]) -> list[float]:
        """Logits s_ij of the batch."""
        inputs, markers = self.inputs.collate([self.inputs.pair(*ids) for ids in payloads])
        logits = self.network(to_device(inputs, self.device), markers.to(self.device))
        return [float(logit) for logit in logits.float().cpu()]

    def finish(self, record: Record, results: list[float]) -> None:
        """Adds the comparisons. Raises RecordError for a logit that is no number (a broken checkpoint)."""
        pairs = list(permutations(generated_only(record["candidates"]), 2))
        for (i, j), logit in zip(pairs, results, strict=True):
            if not math.isfinite(logit):
                raise RecordError(
                    f"comparisons.{self.comparisons_name}",
                    f"the model gave {logit} for candidates {i} and {j}: the checkpoint is broken, or --dtype too narrow",
                )
        rows = [[i, j, round(logit, 6)] for (i, j), logit in zip(pairs, results, strict=True)]
        record.setdefault("comparisons", {})[self.comparisons_name] = {"pairs": rows, "model": self.model_name, "schedule": "full"}

    def describe(self) -> dict[str, Any]:
        """Signature, model, device and number type."""
        return {"signatures": [self.signature], "models": {self.model_name: fingerprint(self.model_name)}, "device": str(self.device), "dtype": str(self.dtype)}
