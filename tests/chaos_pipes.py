"""What `bin/chaos` disturbs: commands that each write a file and go on where that ends."""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import orjson
import tiny_models
import zstandard

BLENDKIT = [sys.executable, "-m", "blendkit"]
QUALITY = {"careful-writer": 0.9, "assistant-brief": 0.7, "verbose-guesser": 0.3, "drifter": 0.1, "terse-bot": 0.02}


@dataclass(frozen=True)
class Pipe:
    """Commands with pipes between them; the last writes `output`. `exact` are files that must be equal to the byte."""

    commands: list[list[str]]
    output: Path
    exact: tuple[Path, ...] = ()


class Models:
    """The ranker of `whole`, and directories of tiny models, each made when it is asked for."""

    def __init__(self, folder: Path, ranker: str) -> None:
        self.folder, self.ranker = folder, ranker

    @cached_property
    def encoder(self) -> Path:
        return tiny_models.encoder(self.folder / "encoder")

    @cached_property
    def chat(self) -> Path:
        return tiny_models.chat(self.folder / "chat")

    @cached_property
    def t5(self) -> Path:
        return tiny_models.t5(self.folder / "t5")


def stream(copies: int) -> list[dict]:
    """The example records, so many times, with what rank, fuse and train read."""
    records = [orjson.loads(line) for line in (tiny_models.EXAMPLES / "candidates.jsonl").read_bytes().splitlines()]
    for record in records:
        record["top"] = [0, 2, 1]
        for candidate in record["candidates"]:
            candidate["scores"] = {"q": QUALITY[candidate["model"]]}
    return [record | {"id": f"{copy}/{record['id']}"} for copy in range(copies) for record in records]


def command(name: str, *flags: object, source: Path | None = None, output: Path | None = None) -> list[str]:
    """One of ours; with an output it resumes."""
    files = ["-i", source] if source else []
    files += ["-o", output, "--resume"] if output else []
    return [*BLENDKIT, name, *map(str, [*flags, *files])]


def whole(folder: Path, models: Models, workers: int) -> list[Pipe]:
    """score | pair, then rank | fuse | judge."""
    paired, out = folder / "paired.jsonl.zst", folder / "out.jsonl.gz"
    pair = command("pair", "--model", models.ranker, "--window", 4, "--workers", workers, output=paired)
    first = [command("score", "--metric", "rouge2", source=folder / "in.jsonl"), pair]
    return [Pipe(first, paired), Pipe([command("rank", source=paired), command("fuse"), command("judge", "--window", 4, output=out)], out)]


def rank(folder: Path, models: Models, workers: int) -> list[Pipe]:
    """No model, many small frames; the second reads what the first has so far."""
    once, twice = folder / "once.jsonl.gz", folder / "twice.jsonl.zst"
    return [
        Pipe([command("rank", "--by", "score:q", "--window", 2, source=folder / "in.jsonl", output=once)], once),
        Pipe([command("rank", "--by", "score:q", "--name", "again", "--window", 2, source=once, output=twice)], twice),
    ]


# One piece of work at a time: after a kill the rest would fall into other batches, whose float noise may turn a near tie.
ALONE = ("--device", "cpu", "--window", 2, "--batch-tokens", 1)


def generate(folder: Path, models: Models, workers: int) -> list[Pipe]:
    out = folder / "generated.jsonl.zst"
    return [Pipe([command("generate", "-m", f"tiny={models.chat}", "--max-new-tokens", 8, *ALONE, source=folder / "few.jsonl", output=out)], out)]


def fuse(folder: Path, models: Models, workers: int) -> list[Pipe]:
    out = folder / "fused.jsonl.gz"
    return [Pipe([command("fuse", "-m", models.t5, "--max-new-tokens", 6, *ALONE, source=folder / "few.jsonl", output=out)], out)]


def judge(folder: Path, models: Models, workers: int) -> list[Pipe]:
    out = folder / "judged.jsonl.zst"
    return [Pipe([command("judge", "-m", models.chat, "--name", "tiny", *ALONE, source=folder / "few.jsonl", output=out)], out)]


def train(folder: Path, models: Models, workers: int) -> list[Pipe]:
    """The log must be that of the undisturbed run, apart from seconds, and the checkpoint the same to the byte."""
    out = folder / "trained"
    flags = ["-i", folder / "few.jsonl", "--backbone", models.encoder, "--label", "q", "--steps", 60, "--save-every", 4, "--log-every", 2]
    flags += ["--source-maxlength", 48, "--candidate-maxlength", 64, "--device", "cpu", "--float32", "-o", out]
    if (out / "training.state.pt").exists():
        flags.append("--resume")
    return [Pipe([command("train", "ranker", *flags)], out / "train.log.jsonl", (out / "model.safetensors",))]


SCENARIOS: dict[str, Callable[[Path, Models, int], list[Pipe]]] = {
    "whole": whole, "rank": rank, "generate": generate, "fuse": fuse, "judge": judge, "train": train,
}  # fmt: skip


def read(path: Path) -> list[dict]:
    """The records of an output, or the rows of a training's log by their step."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    rows = [orjson.loads(line) for line in data.splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} | {"id": row.get("id", row.get("step"))} for row in rows]


def damage(path: Path, rng: random.Random) -> str:
    """Hurts a compressed output as a bad disk or a copy that ended early would; says how."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    how = rng.choice(("cut", "truncated", "a bit flipped"))
    if how == "a bit flipped":
        data[place] ^= 1 << rng.randrange(8)
    else:
        del data[place if how == "truncated" else -rng.randint(1, min(40, len(data))) :]
    path.write_bytes(data)
    return f"{path.name} {how}"
