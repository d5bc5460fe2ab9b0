"""Scorers against the packages they come from: same model, same texts, same run, values compared.

Models are random, of a real shape; texts are real. Model loading is not timed on either side, tokenizing is.

    bin/bench score                                   all of them, on this machine's best device
    bin/bench score --only bartscore --shape large    BART-large's shape
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pair import processor, read_records

# Hidden size, layers (of BART each side), heads, inner size, layers of BERT: for BERTScore roberta-large is read up to its 17th.
SHAPES = {"base": (768, 6, 12, 3072, 6), "large": (1024, 12, 16, 4096, 17), "tiny": (64, 2, 2, 128, 2)}
BATCH = 4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--shape", choices=SHAPES, default="base", help="6 layers of 768 (BART: 6 + 6), or BART-large's, and 17 layers of roberta-large's")
    parser.add_argument("--records", type=int, default=4, help="records of eleven candidates and one reference")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="ours")
    parser.add_argument("--package-dtype", default="float32", help="the packages'; they run in float32 unless one changes them")
    parser.add_argument("--repeats", type=int, default=2, help="each this often, in turn; the fastest counts")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def saved(folder: Path, model, longest: int = 512) -> str:
    """The model and the embedded ranker's tokenizer in a directory."""
    from blendkit.models.pairrm import load_pairrm

    _, tokenizer = load_pairrm("embedded")
    tokenizer.model_max_length = longest
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def encoder_config(shape: str, **more):
    from transformers import BertConfig

    hidden, _, heads, inner, layers = SHAPES[shape]
    return BertConfig(vocab_size=30592, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner, **more)


def ours(metric: str, records: list[dict], options) -> Callable[[], list[float]]:
    from blendkit.pipeline.runner import apply
    from blendkit.scorers.scoring import Scoring

    stage = Scoring([metric], options.device, options.dtype)
    name = metric.partition(":")[0]

    def run() -> list[float]:
        fresh = [{**record, "candidates": [{**candidate, "scores": {}} for candidate in record["candidates"]]} for record in records]
        return [candidate["scores"][name] for record in apply(stage, fresh) for candidate in record["candidates"]]

    return run


def pairs_of(records: list[dict]) -> list[tuple[str, str]]:
    return [(candidate["text"], record["output"]) for record in records for candidate in record["candidates"]]


def bertscore(folder: Path, records: list[dict], options):
    """bert-score's own `score`, in its batches of 64; it, too, encodes equal texts once."""
    import bert_score.utils
    from transformers import BertModel

    name = saved(folder, BertModel(encoder_config(options.shape)))
    layers = SHAPES[options.shape][4]
    tokenizer, model = bert_score.utils.get_tokenizer(name), bert_score.utils.get_model(name, layers).to(*package_place(options))
    weights = {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0}
    from collections import defaultdict

    idf: dict = defaultdict(lambda: 1.0)
    idf.update(weights)

    def package() -> list[float]:
        pairs = pairs_of(records)
        found = bert_score.utils.bert_cos_score_idf(
            model, [reference for _, reference in pairs], [candidate for candidate, _ in pairs], tokenizer, idf, device=torch_device(options)
        )
        return found[:, 2].tolist()

    yield "bertscore", "bert-score's score, batches of 64", package, ours(f"bertscore:{name}", records, options)


def bartscore(folder: Path, records: list[dict], options):
    """The reference's loop: batches of 4, padded, a full forward pass a pair."""
    import torch
    from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

    hidden, layers, heads, inner, _ = SHAPES[options.shape]
    sizes = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", inner))}
    config = BartConfig(
        vocab_size=30592 if options.shape == "tiny" else 50265,
        d_model=hidden,
        **sizes,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=101,
        eos_token_id=102,
        decoder_start_token_id=102,
    )
    config.forced_eos_token_id = None
    name = saved(folder, BartForConditionalGeneration(config), 1024)
    device, dtype = package_place(options)
    model = BartForConditionalGeneration.from_pretrained(name).eval().to(device, dtype)
    tokenizer = AutoTokenizer.from_pretrained(name)

    def loop(pairs: list[tuple[str, str]]) -> list[float]:
        found: list[float] = []
        with torch.no_grad():
            for start in range(0, len(pairs), BATCH):
                batch = pairs[start : start + BATCH]
                source = tokenizer([a for a, _ in batch], max_length=1024, truncation=True, padding=True, return_tensors="pt").to(device)
                target = tokenizer([b for _, b in batch], max_length=1024, truncation=True, padding=True, return_tensors="pt").to(device)
                logits = model(input_ids=source["input_ids"], attention_mask=source["attention_mask"], labels=target["input_ids"]).logits
                losses = torch.nn.functional.nll_loss(logits.log_softmax(-1).transpose(1, 2), target["input_ids"], reduction="none")
                mask = target["attention_mask"]
                found += (-(losses * mask).sum(1) / mask.sum(1)).tolist()
        return found

    forward = [(reference, candidate) for candidate, reference in pairs_of(records)]

    def both() -> list[float]:
        return [(a + b) / 2 for a, b in zip(loop(forward), loop([(b, a) for a, b in forward]), strict=True)]

    peer = "loop as neulab's BARTScorer, batches of 4"
    yield "bartscore-precision", peer, lambda: loop(forward), ours(f"bartscore-precision:{name}", records, options)
    yield "bartscore", peer, both, ours(f"bartscore:{name}", records, options)


def bleurt(folder: Path, records: list[dict], options):
    """transformers' text-classification pipeline on the same head."""
    from transformers import BertForSequenceClassification, pipeline

    name = saved(folder, BertForSequenceClassification(encoder_config(options.shape, num_labels=1)))
    inputs = [{"text": reference, "text_pair": candidate} for candidate, reference in pairs_of(records)]
    scorer = ours(f"bleurt:{name}", records, options)
    classify = pipeline("text-classification", model=name, device=torch_device(options), dtype=package_place(options)[1])
    for size in (1, 8):

        def package(size: int = size) -> list[float]:
            found = classify(inputs, function_to_apply="none", truncation="longest_first", max_length=512, batch_size=size)
            return [row["score"] for row in found]

        yield "bleurt", f"transformers' pipeline, batch_size {size}", package, scorer


BENCHMARKS = {"bertscore": bertscore, "bartscore": bartscore, "bleurt": bleurt}


def torch_device(options):
    from blendkit.models.loading import choose_device

    return choose_device(options.device)


def package_place(options) -> tuple:
    """The device and number type of the packages."""
    import torch

    return torch_device(options), getattr(torch, options.package_dtype)


def measured(records: list[dict], options) -> Iterator[dict]:
    """A row for each scorer and what it is compared with."""
    import torch

    count = len(pairs_of(records))
    for kind in options.only:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            for scorer, against, package, mine in BENCHMARKS[kind](Path(folder), records, options):
                seconds = {"package": float("inf"), "mine": float("inf")}
                values = {}
                for _ in range(options.repeats):
                    for side, run in (("package", package), ("mine", mine)):
                        start = time.perf_counter()
                        values[side] = run()
                        seconds[side] = min(seconds[side], time.perf_counter() - start)
                difference = max(abs(a - b) for a, b in zip(values["package"], values["mine"], strict=True))
                rates = {f"{side}_per_s": count / seconds[clocked] for side, clocked in (("package", "package"), ("ours", "mine"))}
                yield {"scorer": scorer, "against": f"{against}, {options.package_dtype}", "dtype": options.dtype, "difference": difference, **rates}


def main() -> None:
    options = arguments()
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    records = read_records(options.records)
    if options.shape == "tiny":
        records = [{**record, "candidates": record["candidates"][:3]} for record in records]
    rows = measured(records, options)
    if options.json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    where = torch.cuda.get_device_name(torch_device(options)) if torch_device(options).type == "cuda" else processor()
    title = f"{len(records)} records, {len(pairs_of(records))} candidates, {options.shape} shape, on {where}"
    table = Table(title=title, title_justify="left")
    for column in ("scorer", "against", "its candidates/s", f"ours ({options.dtype})", "ratio", "largest difference"):
        table.add_column(column, justify="left" if column in ("scorer", "against") else "right", no_wrap=True)
    for row in rows:
        rates = row["package_per_s"], row["ours_per_s"]
        table.add_row(row["scorer"], row["against"], f"{rates[0]:.2f}", f"{rates[1]:.2f}", f"{rates[1] / rates[0]:.2f}", f"{row['difference']:.1e}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
