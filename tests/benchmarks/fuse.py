"""Answers a second of GenFuser, and of plain transformers.generate with the same prompts and the same beam search.

Weights are random, of flan-t5-large's shape; texts are real. All answers get all their new tokens, so that all do the same work.

    bin/bench fuse                                      on this machine's best device
    bin/bench fuse --shape tiny --new-tokens 8          in a few seconds
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pair import read_records

SHAPES = {
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "feed_forward_proj": "gated-gelu", "vocab_size": 32128},
    "tiny": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu", "vocab_size": 30592},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bin/bench fuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32], help="prompts a batch of the plain loop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()

    import torch
    from score import saved
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    from blendkit.fusers.genfuser import GenFuser
    from blendkit.models.loading import choose_device, choose_dtype
    from blendkit.pipeline.runner import apply

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    records = [{**record, "top": [0, 1, 2]} for record in read_records(options.records)]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with torch.device(device):
            config = T5Config(**SHAPES[options.shape], pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
            model = T5ForConditionalGeneration(config).to(dtype)
        stage = GenFuser(saved(Path(folder), model, 1024), max_new_tokens=options.new_tokens, device=str(device), dtype=options.dtype)
    del model
    stage.generation["min_new_tokens"] = options.new_tokens

    def ours() -> list[str]:
        fresh = [{**record, "candidates": list(record["candidates"])} for record in records]
        return [record["candidates"][-1]["text"] for record in apply(stage, fresh)]

    @torch.inference_mode()
    def plain(size: int) -> list[str]:
        texts = []
        for start in range(0, len(records), size):
            prompts = [stage.plan(record)[0].payload for record in records[start : start + size]]
            width = max(map(len, prompts))
            ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
            mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts], device=device)
            output = stage.model.generate(input_ids=ids, attention_mask=mask, **stage.generation)
            texts += [stage.tokenizer.decode(row, skip_special_tokens=True).strip() for row in output]
        return texts

    def timed(run, *arguments) -> tuple[list[str], float]:
        start = time.perf_counter()
        return run(*arguments), len(records) / (time.perf_counter() - start)

    list(apply(stage, [{**records[0], "candidates": list(records[0]["candidates"])}]))  # first calls allocate
    mine, rate = timed(ours)
    for size in options.batch:
        theirs, other = timed(plain, size)
        same = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(records)
        row = {"ours_per_s": rate, "plain_per_s": other, "batch": size, "same_texts": same}
        print(
            json.dumps(row | {"dtype": str(dtype).removeprefix("torch."), "beams": stage.generation["num_beams"], "new_tokens": options.new_tokens}), flush=True
        )


if __name__ == "__main__":
    main()
