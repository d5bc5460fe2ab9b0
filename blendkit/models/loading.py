"""Finding a model by its name, and choosing the device and the number type it runs with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from blendkit.errors import NoInputError, UsageError
from blendkit.models.attention_forms import current
from blendkit.models.gguf import is_gguf
from blendkit.models.packaged import PACKAGED, packaged_folder, packaged_hash
from blendkit.registry import nearest
from blendkit.terminal_text import count_of

if TYPE_CHECKING:
    import torch

EMBEDDED = "embedded"
# Checkpoints inside this package, by their names, and their folders; a ranker on `smollm2` needs that, which is a package of its own.
SHIPPED = {EMBEDDED: "embedded", "smollm2-ranker": "smollm2_ranker"}
# What config.json calls a ranker on a causal LM.
LM_RANKER = "lmranker"
# Who takes --dtype int8, pair aside.
INT8 = "bertscore, cosine, mbr, simcls, summareranker, bleurt, regression and reward"
T = TypeVar("T")


def locate(name: str, *files: str) -> Path:
    """The local folder of a model: one inside blendkit (`embedded`), one that is a package (`smollm2`), a directory, or a hub id (downloaded if need be).

    Raises:
        NoInputError: no such directory, no such model in the cache or on the hub, or its package is not installed.
        OutputError: a package's model cannot be written to the user's cache.
    """
    if name in SHIPPED:
        return Path(str(resources.files("blendkit.models") / SHIPPED[name]))
    if name in PACKAGED:
        return packaged_folder(name)
    if name.startswith(f"{EMBEDDED}:"):
        raise NoInputError(f"no model {name!r}: no generator is inside blendkit; one that needs no network is {', '.join(PACKAGED)}")
    if os.path.isdir(name):
        if not (Path(name) / "config.json").is_file():
            raise NoInputError(f"no model in {name}: the directory has no config.json")
        return Path(name)
    return _from_hub(name, files)


@cache
def _from_hub(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with without_bars():
            return Path(snapshot_download(name, allow_patterns=[*files] or None))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NoInputError(f"no model {name!r}: {no_such_model(error)}{nearest(name, [*SHIPPED, *PACKAGED], cutoff=0.75)}") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps transformers and the hub from drawing bars on stderr, which is the caller's, as they load; the caller's own setting comes back."""
    from transformers.utils import logging

    was, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was:
            logging.enable_progress_bar()


def no_such_model(error: Exception) -> str:
    """Why a model could not be had, in half a line."""
    kind = type(error).__name__
    if kind == "RepositoryNotFoundError":
        return "there is no such directory, and no such public model on the hub"
    if kind == "HFValidationError":
        return "there is no such directory, and it is not a hub id (owner/name)"
    return "there is no such directory, it is not in the local cache, and the hub cannot be reached"


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """What config.json says.

    Raises:
        NoInputError: it is absent, cannot be read, or is no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise NoInputError(f"no model in {name}: the directory has no config.json") from error
    except OSError as error:
        raise NoInputError(f"{name}: config.json cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NoInputError(f"{name}: config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise NoInputError(f"{name}: config.json is not an object but a {type(config).__name__}")
    return config


def is_lm_ranker(name: str) -> bool:
    """Whether a model's config says that it is a ranker on a causal LM.

    Raises:
        NoInputError: there is no such model.
    """
    return bool(read_config(locate(name), name).get("ranker_type") == LM_RANKER)


def architecture(name: str) -> str:
    """The class that a checkpoint says it is of; empty where it says none."""
    named = read_config(locate(name), name).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def number_in(config: dict[str, Any], name: str, keys: tuple[str, ...], default: float, least: float, most: float) -> float:
    """The number under the first of the keys that a config has; an integer where the default is one.

    Raises:
        NoInputError: it is no such number.
    """
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is None:
        return default
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float) or not least <= value <= most:
        raise NoInputError(f"{name}: config.json: {key}: expected a number from {least:,} to {most:,}, got {str(value)[:60]!r}")
    return value


def length_in(config: dict[str, Any], name: str, default: int, *keys: str) -> int:
    """The tokens under the first of the keys that a config has.

    Raises:
        NoInputError: it is no such number.
    """
    return int(number_in(config, name, keys, default, 1, 1 << 24))


def read_weights(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """All tensors of a file of weights.

    Raises:
        NoInputError: the file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / file
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
        return weights
    except FileNotFoundError as error:
        raise NoInputError(f"no model in {folder}: {file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise NoInputError(f"{path} is damaged: {error}") from error


def take_weights(network: Any, weights: dict[str, torch.Tensor], name: str, what: str, spare: str = "", assign: bool = False) -> None:
    """Loads weights into a network that its config.json described; names with `spare` in them may be missing.

    `assign` makes the weights the network's own, as one on `meta` needs.

    Raises:
        NoInputError: weights are missing or of another shape.
    """
    try:
        missing = network.load_state_dict(weights, strict=False, assign=assign).missing_keys
    except RuntimeError as error:
        raise NoInputError(f"{name}: model.safetensors does not fit config.json: {' '.join(str(error).split())[:300]}") from error
    lost = [key for key in missing if not spare or spare not in key]
    if lost:
        raise NoInputError(f"{name}: model.safetensors lacks {count_of(len(lost), 'weight')} of {what}, {lost[0]} first")


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: the device that was asked for is not on this machine, or there is no such kind.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # torch knows more kinds, such as `meta`, that compute nothing here.
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no MPS device; try --device cpu")
    return device


def batch_budget(device: torch.device) -> int:
    """Tokens a batch of an encoder: a CPU is quickest while a batch's activations stay in its cache, a GPU wants more."""
    return 2048 if device.type == "cpu" else 32768


# Tokens of prompts and answers that a batch of a decoder has at least, and at most by the kind of device: from about 100 rows on,
# a CPU is bound by its arithmetic.
DECODED, DECODED_AT_MOST = 8192, {"cpu": 65536, "mps": 65536, "cuda": 1 << 19}


def decoding_budget(device: torch.device, config: Any, bytes_each: int, weights: int) -> int:
    """Tokens a batch of a decoder whose keys and values may fill half of a GPU's free memory, or a quarter of this machine's.

    `bytes_each` is a number's size, `weights` the bytes that the model itself will take.
    """
    free = memory_left(device) - weights
    each = key_value_numbers(config) * bytes_each
    fitting = free // (2 if device.type == "cuda" else 4) // each if each else 0
    return max(DECODED, min(fitting, DECODED_AT_MOST[device.type]))


def key_value_numbers(config: Any) -> int:
    """Numbers that a decoder keeps for each token that it writes, or reads in an encoder's stead, by its config; 0 where that does not say."""
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(layers, int) or not isinstance(heads, int) or not heads:
        return 0
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or (getattr(config, "hidden_size", None) or 0) // heads
    return 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * width


def memory_left(device: torch.device) -> int:
    """Bytes that a program may still have there, page cache included; 0 where nobody says."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def choose_dtype(name: str, device: torch.device, what: str = "this model") -> torch.dtype:
    """`auto` takes bfloat16 on a GPU that has it, float16 on one that has not, and float32 on the CPU; of encoders see `number_type.encoder_dtype`.

    Raises:
        UsageError: there is no such type, or it is int8, which `what` cannot run in.
    """
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in names:
        return names[name]
    if name == "int8":
        raise UsageError(f"--dtype int8: {what} does not run in it, but pair and the scorers {INT8} do; expected auto, float32, bfloat16 or float16")
    if name != "auto":
        raise UsageError(f"--dtype {name}: expected auto, float32, bfloat16, float16 or int8")
    if device.type == "cuda":
        # torch calls bfloat16 supported where it is emulated, too.
        has = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has else torch.float16
    return torch.float32


@cache
def fingerprint(name: str) -> str:
    """A model's revision (hub) or the first 12 hex digits of its weights' SHA-256 (directory, GGUF file, a package's file)."""
    if name in PACKAGED:
        return packaged_hash(name)[:12]
    if is_gguf(name):
        weights = [Path(name)]
    else:
        folder = locate(name)
        if folder.parent.name == "snapshots":
            return folder.name[:12]
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


_alive: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
# How those attend that are packed encoders, or have some.
_chosen: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` made for this key, and to attend in this form, before, if that is still in use; otherwise `make` is called."""
    how = current()
    key = (key, how.asked, how.self_check)
    found: T | None = _alive.get(key)
    if found is None:
        before = len(how.chosen)
        found = _alive[key] = make()
        _chosen[found] = how.chosen[before:]
    else:
        how.chosen.extend(_chosen[found])
    return found


def to_device(tensors: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same mapping with every tensor on `device`."""
    return {key: value.to(device, non_blocking=device.type == "cuda") for key, value in tensors.items()}
