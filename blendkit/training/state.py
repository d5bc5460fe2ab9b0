"""What a run of training leaves on the disk: its checkpoint, its log, and the state that `--resume` goes on from.

The state names all that decides the weights: options, settings of the model, and fingerprints of the data and of the model
that the run started from. A run that differs in any of them is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor, nn

from blendkit.errors import BlendkitError, DataError, NoInputError, OutputError, UsageError
from blendkit.models.loading import without_bars
from blendkit.training.examples import Example
from blendkit.training.trainee import Trainee

STATE = "training.state.pt"
LOG = "train.log.jsonl"
PARTS = ("progress", "settings", "weights", "optimizer", "average")

Settings = Mapping[str, Any]


@dataclass
class TrainingState:
    """Where a run stands: steps done, the best evaluation and how many came since, tokens, seconds, losses since the log's last row."""

    step: int = 0
    best: float = -math.inf
    since_best: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def fingerprint_of(examples: Sequence[Example]) -> str:
    """The SHA-256 of the examples' ids, texts, labels and sets, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(
            orjson.dumps([example.id, example.source, example.candidates, example.labels, example.reference, *([example.set] if example.set else [])])
        )
    return digest.hexdigest()


def save_state(out: Path, state: TrainingState, settings: Settings, model: nn.Module, optimizer: Any, average: dict[str, Tensor] | None) -> None:
    """Writes everything that a resumed run needs, in one file that is whole or not there.

    Raises:
        OutputError: there is no room, say.
    """
    parts = (asdict(state), dict(settings), model.state_dict(), optimizer.state_dict(), average)
    new = out / f"{STATE}.new"
    try:
        torch.save(dict(zip(PARTS, parts, strict=True)), new)
        os.replace(new, out / STATE)
    except (OSError, RuntimeError) as error:
        # torch says of a full disk that a position in the file is unexpected.
        new.unlink(missing_ok=True)
        raise OutputError(f"{out / STATE}: cannot write: {' '.join(str(error).split())[:200]}") from error


def save_checkpoint(trainee: Trainee, out: Path) -> None:
    """Writes the checkpoint; where that fails, the one before it is still whole.

    Its files are readable to whom the user's umask allows; the libraries that write them set modes of their own.

    Raises:
        OutputError: there is no room, say.
    """
    from safetensors import SafetensorError

    new = out / "checkpoint.new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with without_bars():
            trainee.save(new)
        os.umask(mask := os.umask(0))
        for path in new.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~mask)
        for path in new.iterdir():
            if path.is_dir():
                shutil.rmtree(out / path.name, ignore_errors=True)
            os.replace(path, out / path.name)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: cannot write: {' '.join(str(error).split())[:200]}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_state(out: Path, settings: Settings, model: nn.Module, optimizer: Any, average: dict[str, Tensor] | None) -> TrainingState:
    """Puts model, optimizer and average where the run in `out` left them.

    Raises:
        NoInputError: there is no state, or the file is damaged or something else.
        UsageError: the run in `out` had other settings or other data.
    """
    import msgspec

    path = out / STATE
    if not path.exists():
        raise NoInputError(f"--resume: no {STATE} in {out}; a run writes it every --save-every steps")
    with _blaming(path):
        with zipfile.ZipFile(path) as file:
            # torch.load does not look at the checksums.
            if damaged := file.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(kept, dict) or set(kept) != set(PARTS) or not isinstance(kept["settings"], dict):
            raise ValueError(f"expected {', '.join(PARTS)}")
        state = msgspec.convert(kept["progress"], TrainingState)
    old = kept["settings"]
    different = [name for name in {**settings, **old} if name not in old or name not in settings or old[name] != settings[name]]
    if different:
        raise UsageError(f"--resume: the run in {out} had other values of {', '.join(different)}")
    with _blaming(path):
        model.load_state_dict(kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        for name, value in (average or {}).items():
            value.copy_(kept["average"][name])
    return state


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever the content of a file makes torch raise is the fault of that file."""
    try:
        yield
    except BlendkitError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise NoInputError(f"--resume: {path} is damaged, or no state of a training: {said}") from error


def add_row(folder: Path, row: dict[str, Any]) -> None:
    """Appends a row to the log."""
    with (folder / LOG).open("a") as log:
        log.write(json.dumps(row) + "\n")


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log. A torn last line, which a killed run may leave, is left out.

    Raises:
        DataError: another line is no row.
    """
    path = folder / LOG
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DataError(f"{path}:{number}: expected an object with the number `step`") from error
        rows.append(row)
    return rows


def cut_log(folder: Path, step: int) -> None:
    """Leaves the rows up to `step`, the step that the state is of."""
    kept = [row for row in log_rows(folder) if row["step"] <= step]
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in kept))
