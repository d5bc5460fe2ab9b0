"""The number type that an encoder runs with. `auto` on a CPU takes the one in which a product of the model's own shape is quicker there.

Whether bfloat16 is worth it depends on the processor: with AMX it is several times as fast as float32, without instructions of its
own several times slower, and between the two both happen. What was measured is kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blendkit.errors import OutputError, UsageError
from blendkit.models.loading import choose_dtype
from blendkit.models.packaged import user_caches
from blendkit.streams.fingerprint import replacing

if TYPE_CHECKING:
    import torch

# Where this variable has a type, `auto` takes it on a CPU and measures nothing.
VARIABLE = "BLENDKIT_AUTO_DTYPE"
# A type must be so many times as fast to be taken, or to be told of: less may be chance.
CLEARLY = 1.25
# A product of fewer weights takes no time in any type.
SMALLEST = 1 << 16
TOKENS, ROUNDS, SECONDS = 256, 9, 0.2
FILE = "number-types.json"
Times = dict[str, float]


def encoder_dtype(name: str, device: torch.device, config: Any, hints: list[str] | None = None, packed: bool = True) -> torch.dtype:
    """The type of `--dtype` for an encoder with this config of transformers; `hints` gets a line where the type is clearly the slower one.

    What does not run `packed` (or is of no family that does) has other products than are measured, and a head in its own type: `auto` is float32.

    Raises:
        UsageError: there is no such type, or none of int8 on this device.
    """
    import torch

    from blendkit.models.fast.encoder import FAMILIES
    from blendkit.models.fast.layers import has_amx

    packed = packed and getattr(config, "model_type", None) in FAMILIES
    if name == "int8":
        from blendkit.models.fast.int8 import expect_int8

        expect_int8(device)
        if hints is not None and packed and has_amx() and _shape(config):
            hints.append("--dtype int8: with AMX, as here, bfloat16 may be as quick, and is nearer to float32")
        return torch.int8
    return quicker_dtype(name, device, config, hints) if packed else choose_dtype(name, device)


def quicker_dtype(name: str, device: torch.device, config: Any, hints: list[str] | None = None) -> torch.dtype:
    """The type of `--dtype` for a model whose time goes into products of the shape that its config says, whatever its family; `hints` as above.

    Raises:
        UsageError: there is no such type, or it is int8.
    """
    import torch

    chosen = choose_dtype(name, device)
    if device.type != "cpu" or name not in ("auto", "float32", "bfloat16"):
        return chosen
    if given := os.environ.get(VARIABLE):
        if given not in ("float32", "bfloat16"):
            raise UsageError(f"{VARIABLE}: expected float32 or bfloat16, got {given[:60]!r}")
        return choose_dtype(given if name == "auto" else name, device)
    times = _times(config)
    if not times:
        return chosen
    ratio = times["float32"] / times["bfloat16"]
    if name == "auto":
        return torch.bfloat16 if ratio >= CLEARLY else torch.float32
    other, faster = ("bfloat16", ratio) if name == "float32" else ("float32", 1 / ratio)
    if hints is not None and faster >= CLEARLY:
        hints.append(f"--dtype {name}: products of this model's shape are {faster:.1f} times as fast in {other} on this processor")
    return chosen


def _shape(config: Any) -> tuple[int, int] | None:
    """Hidden and intermediate size; None where a config names none, or sizes so small that the type does not matter."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, intermediate = getattr(text, "hidden_size", None), getattr(text, "intermediate_size", None)
    if not isinstance(hidden, int) or not isinstance(intermediate, int) or hidden * intermediate < SMALLEST:
        return None
    return hidden, intermediate


def _times(config: Any) -> Times | None:
    """Seconds of a product of the model's shape in either type; None for a model without such a shape."""
    import torch

    shape = _shape(config)
    return shape and known(f"{processor()}, torch {torch.__version__}, {shape[0]}x{shape[1]}", *shape)


@cache
def known(key: str, hidden: int, intermediate: int) -> Times:
    """What was measured under this key, by this process or an earlier one, or else is now; nothing where that cannot be kept.

    One measurement decides for all processes, so that workers and stages of one run have one type: whoever is second waits for it.
    A cache that is broken or cannot be written is no fault.
    """
    from filelock import FileLock

    with suppress(OutputError, OSError):
        file = user_caches(os.environ.get("XDG_CACHE_HOME", "")) / "blendkit" / FILE
        if key in (kept := _read(file)):
            return kept[key]
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            kept = _read(file)
            if key not in kept and _whole(times := measured(hidden, intermediate)):
                kept[key] = times
                with replacing(file, 0o600) as beside:
                    Path(beside).write_text(json.dumps(kept, indent=1))
            return kept.get(key, {})
    return {}


def measured(hidden: int, intermediate: int) -> Times:
    """Processor seconds, which other processes have little to do with, of [256, hidden] x [hidden, intermediate]: the best of some, the types in turn.

    By one thread, for the answer not to depend on how many there are.
    """
    import torch

    from blendkit.models.fast.linear import Linear

    x, weight = torch.randn(TOKENS, hidden), torch.randn(intermediate, hidden)
    products = {name: Linear(weight, None, torch.device("cpu"), getattr(torch, name)) for name in ("float32", "bfloat16")}
    found: Times = {}
    until = time.process_time() + SECONDS
    with _one_thread(), torch.inference_mode():
        for number in range(ROUNDS):
            for name, product in products.items():
                start = time.process_time()
                product(x)
                took = time.process_time() - start
                # The first calls set the kernels up.
                found[name] = min(found.get(name, took), took) if number > 1 else took
            if number > 1 and time.process_time() > until:
                break
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def processor() -> str:
    """Its name, and a hash of what it can do."""
    name, flags = platform.processor() or platform.machine(), ""
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = said.get("model name", name), said.get("flags") or said.get("Features") or ""
    return f"{name} {hashlib.sha256(flags.encode()).hexdigest()[:12]}"


def _read(file: Path) -> dict[str, Times]:
    """What the file holds of use."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: times for key, times in found.items() if _whole(times)} if isinstance(found, dict) else {}


def _whole(times: Any) -> bool:
    def seconds(name: str) -> bool:
        return isinstance(times.get(name), float) and 0 < times[name] < 60

    return isinstance(times, dict) and seconds("float32") and seconds("bfloat16")
