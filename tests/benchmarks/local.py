"""Tokens a second of a local model: ours, plain transformers.generate with the same settings, and llama.cpp; the same prompts, rounds in turn.

    bin/bench local [--model DIR|FILE.gguf]
    bin/bench local --random 1b --device cuda --dtype bfloat16     random weights of Llama 3.2 1B's shape

No answer ends early: each row of a batch gets all its new tokens, so that all do the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
EXAMPLES = HERE.parent.parent / "docs" / "examples" / "prompts.jsonl"


SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 30592},
}


def random_model(folder: str, shape: str, device: str, dtype: str) -> str:
    """A random model of Llama's kind, and the embedded ranker's tokenizer, in a directory."""
    import torch
    from score import saved
    from transformers import AutoModelForCausalLM, LlamaConfig

    from blendkit.models.loading import choose_device

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device(choose_device(device)):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return saved(Path(folder), model, 4096)


def machine() -> str:
    named = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {named[0] if named else platform.processor()}, load {os.getloadavg()[0]:.1f}"


def prompts(count: int) -> list[str]:
    texts = [json.loads(line)["instruction"] for line in EXAMPLES.read_text().splitlines()]
    return [f"{texts[number % len(texts)]} ({number})" for number in range(count)]


class Ours:
    name = "blendkit"

    def __init__(self, model: str, sampling, device: str, dtype: str) -> None:
        from blendkit.generators.local import LocalModel

        self.model, self.sampling = LocalModel(model, device, dtype), sampling
        self.model.answers.ends = frozenset()

    def asked(self, texts: list[str]):
        from blendkit.generators.base import Prompt

        return [Prompt([{"role": "user", "content": text}], number) for number, text in enumerate(texts)]

    def __call__(self, texts: list[str]) -> int:
        return sum(one.usage["completion_tokens"] for one in self.model.complete(self.asked(texts), self.sampling))


class Plain:
    """The same ids through `generate`, as its documentation has it."""

    name = "transformers"

    def __init__(self, ours: Ours) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        path = Path(ours.model.spec)
        where, file = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (str(path), {})
        self.ours, self.torch = ours, torch
        self.network = AutoModelForCausalLM.from_pretrained(where, dtype=ours.model.dtype, **file).to(ours.model.device).eval()
        self.network.generation_config = GenerationConfig(pad_token_id=0)

    def __call__(self, texts: list[str]) -> int:
        sampling, model = self.ours.sampling, self.ours.model
        rows = [model.prompting.encoded(prompt, sampling.max_new_tokens).ids for prompt in self.ours.asked(texts)]
        ids, mask = model._padded(rows)
        drawn = {"do_sample": False}
        if sampling.temperature:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        with self.torch.inference_mode():
            out = self.network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens, **drawn).cpu()
        return (out.shape[1] - ids.shape[1]) * len(texts)


class Llama:
    """llama.cpp in a process of its own environment, which tokenizes for itself and takes the likeliest token."""

    name = "llama.cpp"

    def __init__(self, python: str, file: str, new: int) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / "llama_cpp_rate.py"), file, str(new)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __call__(self, texts: list[str]) -> int:
        self.process.stdin.write(json.dumps(texts) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"llama.cpp ended with exit code {self.process.wait()}; {HERE / 'llama_cpp_rate.py'} by hand says why")
        return int(answer)


def installed(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/bench local")
    parser.add_argument("--model", default="smollm2", help="smollm2, a directory or a GGUF file")
    parser.add_argument("--random", choices=SHAPES, help="in its place, random weights of this shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gguf", help="the file for llama.cpp, where --model is a directory")
    parser.add_argument("--llama-python", default=sys.executable, help="the interpreter of an environment with llama-cpp-python")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 96])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument(
        "--processor-time", action="store_true", help="tokens a second of processor time, one thread: for a machine that others use (no llama.cpp)"
    )
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.random:
            args.model = random_model(folder, args.random, args.device, args.dtype)
        measure(args)
    return 0


def measure(args: argparse.Namespace) -> None:
    from blendkit.generators.options import Sampling
    from blendkit.models.packaged import PACKAGED, packaged_folder

    if args.model in PACKAGED:
        files = distribution(PACKAGED[args.model].name).files or []
        args.gguf = args.gguf or next(str(file.locate()) for file in files if file.name.endswith(".gguf"))
        args.model = str(packaged_folder(args.model))
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    ours = Ours(args.model, sampling, args.device, args.dtype)
    ways = [ours, Plain(ours)]
    file = args.gguf or (args.model if args.model.endswith(".gguf") else None)
    clock = time.process_time if args.processor_time else time.perf_counter
    if args.processor_time:
        import torch

        torch.set_num_threads(1)
    elif args.json:
        pass
    elif file is None or not installed(args.llama_python):
        print("llama.cpp: no GGUF file was named" if file is None else f"llama.cpp: llama-cpp-python is not installed in {args.llama_python}")
    else:
        ways.append(Llama(args.llama_python, file, args.max_new_tokens))
    clocked = ", processor time of one thread" if args.processor_time else ""
    settings = f"{args.dtype}, {sampling.method}, {args.max_new_tokens} new tokens, median of {args.rounds} rounds"
    if not args.json:
        print(f"{args.random or args.model}, {settings}{clocked}; {machine()}", flush=True)
    for way in ways:
        # Weights are read, and packed, before the clock runs.
        way(prompts(4))
    if not args.json:
        print(f"| batch | {' | '.join(f'{way.name}, tokens/s' for way in ways)} | {' | '.join(f'against {way.name}' for way in ways[1:])} |")
    for batch in args.batch:
        texts, rates = prompts(batch), {way.name: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                start = clock()
                tokens = way(texts)
                rates[way.name].append(tokens / (clock() - start))
        if args.json:
            medians = {f"{side}_per_s": statistics.median(rates[way.name]) for side, way in zip(("ours", "plain"), ways, strict=True)}
            print(json.dumps({"batch": batch, "dtype": args.dtype, "new_tokens": args.max_new_tokens, **medians}), flush=True)
            continue
        first = rates[ways[0].name]
        # Each round's ratio: what else the machine did in it slowed both.
        ratios = [statistics.median(one / other for one, other in zip(first, rates[way.name], strict=True)) for way in ways[1:]]
        cells = [f"{statistics.median(rates[way.name]):.1f}" for way in ways] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
