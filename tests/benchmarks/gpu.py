"""All that a GPU has to show, in ten minutes of it: checks first, then speeds, the most important first.

Each step runs in a process of its own with a time limit. What a step finds is in the JSON file at once, and in the Markdown table
beside it, so that a run that is cut short has told what it knew. It needs no network: weights are random, or the embedded ranker's.

    bin/bench gpu                       eight minutes, on the first CUDA device
    PYTHON=python3 bin/bench gpu        with an interpreter that has torch already, and no set-up
    bin/bench gpu --tiny                every step at a tiny shape on the CPU: a test of this script

Exit code 1 where a check failed, 2 without a GPU or a package that it needs.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpu_table import markdown
from pair import largest_difference
from steps import run

HERE = Path(__file__).parent
SECTIONS = ("checks", "pair", "score", "generate", "fuse")
# What blendkit imports in these steps.
NEEDED = ("torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "msgspec", "orjson", "regex", "filelock")
LOADED = (
    *(f"transformers.models.{name}.modeling_{name}" for name in ("deberta_v2", "bert", "bart", "llama", "t5")),
    *("transformers", "transformers.generation.utils"),
    *("blendkit.models.pairrm", "blendkit.models.fast.scorer", "blendkit.pipeline.runner", "blendkit.generators.local", "blendkit.fusers.genfuser"),
)


@dataclass(frozen=True)
class Step:
    """`needs` are the seconds that it is thought to take on an H100: with fewer left it is not begun. After `limit` it is ended."""

    section: str
    name: str
    words: tuple[str, ...]
    needs: float
    limit: float


def steps(tiny: bool) -> list[Step]:
    """All of them, in order."""

    def step(section: str, name: str, needs: float, limit: float, script: str, *words: str) -> Step:
        return Step(section, name, (str(HERE / f"{script}.py"), *words), 0.5 if tiny else needs, limit)

    where = ("--device", "cpu" if tiny else "cuda")

    def check(form: str, needs: float, limit: float, *families: str) -> Step:
        words = ("--families", *families) if not tiny else ("--tiny", "--families", families[0])
        return step("checks", form, needs, limit, "checks", form, *where, *words)

    families = ("deberta-v2", "embedded")
    found = [check("flex", 80, 150, *families), check("batched", 10, 40, *families), check("varlen", 10, 40, "bert", "embedded")]
    found += [check("per-input", 10, 40, *families), check("plain", 10, 40, *families)]
    found.append(step("checks", "pytest -m gpu", 60, 180, "checks", "tests"))
    shapes = {"tiny": (1, 4, (2, 4))} if tiny else {shape: (records, 110, (8, 32, 128, 256, 512, 1024)) for shape, records in RECORDS.items()}

    def pair(shape: str, variant: str, needs: float, limit: float) -> Step:
        records, indices, sizes = shapes[shape]
        size = ("--records", str(records), "--indices", str(indices), "--batch-size", *map(str, sizes), "--seconds", "3")
        return step("pair", f"{shape} {variant}", needs, limit, "pair", "--model", shape, *size, *where, "--variant", variant)

    half = "bfloat16" if tiny else "float16"

    def pairs_of(shape: str) -> list[Step]:
        others = ["flashdeberta:float16"] if not tiny and shape != "embedded" and importlib.util.find_spec("flashdeberta") else []
        return [pair(shape, variant, 40, 75) for variant in ("ours:bfloat16", f"plain:{half}", *others, "late1:bfloat16")]

    first, *second = shapes
    found += [step for shape in (first, *second[:1]) for step in pairs_of(shape)]
    size, count = ("tiny", "1") if tiny else ("large", "16")
    score = ("--shape", size, "--records", count, *where, "--dtype", "bfloat16", "--json")

    def scorer(kind: str, package: str) -> Step:
        words = ("--only", kind, "--package-dtype", package, *score, "--repeats", "1" if tiny else "2")
        return step("score", f"{kind} against {package}", 20, 60, "score", *words)

    found += [scorer("bertscore", "bfloat16"), scorer("bartscore", "bfloat16")]
    batches = ("2",) if tiny else ("128", "32", "8", "1")
    new = "2" if tiny else "64"
    local = ("--random", "tiny" if tiny else "1b", "--dtype", "bfloat16", "--batch", *batches, "--max-new-tokens", new, "--rounds", "1" if tiny else "2")
    found.append(step("generate", "a local model", 30, 75, "local", *local, *where, "--json"))
    fuse = ("--shape", size, "--dtype", "bfloat16", "--new-tokens", new, "--records", "2" if tiny else "32", "--batch", *(("2",) if tiny else ("8", "32")))
    found.append(step("fuse", "GenFuser", 30, 75, "fuse", *fuse, *where))
    if not tiny:
        found += pairs_of("base")
        found += [pair(shape, "ours:float16", 15, 45) for shape in shapes]
        others = [check(form, needs, limit, "modernbert", "mpnet") for form, needs, limit in (("flex", 30, 90), ("batched", 10, 40), ("per-input", 10, 40))]
        others.append(check("varlen", 10, 40, "modernbert", "mpnet"))
        found += [replace(other, name=f"{other.name}, ModernBERT and MPNet") for other in others]
        found += [pair(shape, "late2:bfloat16", 15, 45) for shape in shapes]
        found += [scorer("bertscore", "float32"), scorer("bartscore", "float32")]
    return found


# Records of eleven candidates whose full matrices are compared, so many that a card is busy for a second or more.
RECORDS = {"large": 8, "embedded": 32, "base": 16}


@dataclass
class Results:
    """What is known, on disk as soon as it is known."""

    file: Path
    found: dict = field(default_factory=lambda: {"machine": {}, "rows": [], "steps": [], "left_out": []})
    logits: list[list] = field(default_factory=list)

    def taker(self, step: Step) -> Callable[[dict], None]:
        def take(row: dict) -> None:
            self.found["rows"].append({"section": step.section, "step": step.name, **row})
            self.compare()
            self.write()

        return take

    def compare(self) -> None:
        """Differences of logits to the plain form's, as soon as both are there."""
        rows = [row for row in self.found["rows"] if row["section"] == "pair"]
        for row in rows:
            base = next((other for other in rows if other["model"] == row["model"] and other["variant"].startswith("plain")), None)
            if base is not None and not row["variant"].startswith("late"):
                row["difference"] = largest_difference(row, base)

    def write(self) -> None:
        """Both files, each as a whole."""
        import orjson

        rows = [{name: value for name, value in row.items() if name != "logits"} for row in self.found["rows"]]
        found = {**self.found, "rows": rows}
        # NaN is null there.
        data = orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        for path, content in ((self.file, data), (self.file.with_suffix(".md"), markdown(found).encode())):
            beside = path.with_name(path.name + ".part")
            beside.write_bytes(content)
            beside.replace(path)

    def failed(self) -> bool:
        """Whether a check failed, or a step of checks did not end well."""
        steps = [step for step in self.found["steps"] if step["section"] == "checks"]
        return any(step["error"] for step in steps) or any(row["section"] == "checks" and row["ok"] is False for row in self.found["rows"])


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all steps together; those that no longer fit are left out and named")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these parts of it")
    parser.add_argument("--tiny", action="store_true", help="every step at a tiny shape on the CPU")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/bench-gpu.json"), help="the JSON file, seen from the checkout; the Markdown table is written beside it"
    )
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    if options.output.suffix == ".md":
        parser.error("--output: expected the name of the JSON file, got one that ends in .md")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        told(f"bin/bench gpu: {', '.join(missing)} not installed for {sys.executable}")
        return 2
    # Children would go on without us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["HF_HUB_OFFLINE"] = "1"
    results = Results(options.output)
    # Here, CUDA is never touched: a process that is forked from one that has cannot use it.
    error = run([str(HERE / "checks.py"), "machine"], 120, results.found["machine"].update, loaded=False)
    machine = results.found["machine"]
    if error or not (machine.get("card") or options.tiny):
        why = error or machine.get("error")
        told(f"bin/bench gpu needs a CUDA device ({why}); bin/bench gpu --tiny runs every step at a tiny shape on the CPU")
        return 2
    now = datetime.datetime.now(datetime.UTC)
    machine |= {"date": now.strftime("%Y-%m-%d"), "tiny": options.tiny, "minutes": options.minutes}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results.write()
    loaded = None
    for step in steps(options.tiny):
        if step.section not in options.only:
            continue
        if until - time.monotonic() < step.needs:
            results.found["left_out"].append(f"{step.section}: {step.name}")
            told(f"left out, no time: {step.section}: {step.name}")
            continue
        if loaded is None:
            loaded = load(options.tiny)
        start = time.monotonic()
        error = run(step.words, min(step.limit, until - start), results.taker(step), loaded)
        seconds = time.monotonic() - start
        results.found["steps"].append({"section": step.section, "step": step.name, "seconds": seconds, "error": error})
        results.write()
        told(f"{seconds:6.1f} s  {step.section}: {step.name}{f': {error}' if error else ''}")
    results.write()
    print(results.file.with_suffix(".md").read_text())
    return int(results.failed())


def load(tiny: bool) -> bool:
    """Whether steps may be forked from this process, which then has the libraries loaded: seconds less for each step."""
    try:
        for module in LOADED:
            importlib.import_module(module)
    except Exception as error:
        # The steps that need it will say so, each for itself.
        told(f"each step starts anew: {type(error).__name__}: {error}")
        return False
    probe: dict = {}
    if not tiny:
        # Whatever was imported may have touched CUDA after all.
        run([str(HERE / "checks.py"), "machine"], 60, probe.update)
    return tiny or bool(probe.get("card"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
