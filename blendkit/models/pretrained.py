"""The one place that has transformers load something. A checkpoint's own code does not run unless the user says so, and its faults become one line.

transformers asks on stdout whether to run a checkpoint's code, and reads the answer from stdin, which is the record stream;
only an explicit `trust_remote_code` keeps it from that. And it builds whatever a config.json describes before it looks
for weights, so what a network would allocate is counted while it is built, on the device `meta`, which holds nothing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blendkit.errors import BlendkitError, NoInputError, OutOfMemory, out_of_memory
from blendkit.models.gguf import GGUFHeader, gguf_header, is_gguf, quicker, scale_positions
from blendkit.models.loading import locate, read_config, without_bars
from blendkit.terminal_text import count_of

# A network may have so many numbers for each byte of weights on the disk: room for tied weights, which are stored once,
# and a new head. Packed weights hold several numbers a byte.
PER_BYTE, PACKED_PER_BYTE = 2, 16
ROOM = 1 << 24
# What a parameter costs in Python, as numbers; a million tiny layers are many, too.
OVERHEAD = 1 << 10
COUNTED = re.compile(r"layer|label|block|expert|depth|head|group|stage|tower|task")
# By these a generation_config.json asks for another algorithm of the same words, which with absurd numbers does not end.
DRAFTING = ("assistant_early_exit", "prompt_lookup_num_tokens")
MOST_COUNTED, MOST = 1_000_000, 1 << 53


def pretrained(kind: Any, name: str, what: str, *files: str, trust_remote_code: bool = False, whole: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained` of the model `name` (see `locate`, which takes `files`); `what` says in messages what it should be.

    The checkpoint's own code runs only with `trust_remote_code`; nothing is asked, and neither stdin nor stdout is touched.
    A network that is `whole` has all of its weights from the checkpoint; transformers would draw what is missing at random.

    Raises:
        NoInputError: there is no such model, it is damaged, it is of another kind, its config asks for far more than its
            weights fill, it is an adapter of another model, it is not whole, or it needs code of its own.
        OutOfMemory: it does not fit.
    """
    header = gguf_header(name) if is_gguf(name) else None
    folder = locate(name, *files) if header is None else header.path.parent
    if header is None:
        check_checkpoint(folder, name)
    _never_ask()
    try:
        with without_bars(), _bounded(_limit(folder) if header is None else _limit_of(header)), _alone(header) as file:
            more: dict[str, Any] = {"output_loading_info": True} if whole else {}
            more |= {"gguf_file": file.name} if file else {}
            found = kind.from_pretrained(file.parent if file else folder, trust_remote_code=trust_remote_code, **more, **options)
    except BaseException as error:
        raise _typed(error, name, what, trust_remote_code) from error
    if whole:
        found, told = found
        if told["mismatched_keys"]:
            raise NoInputError(
                f"no {what} in {name}: {count_of(len(told['mismatched_keys']), 'weight is', 'weights are')} of another shape than its configuration says"
            )
        # Buffers are computed.
        if missing := sorted({name for name, _ in found.named_parameters(remove_duplicate=False)} & set(told["missing_keys"])):
            raise NoInputError(f"no {what} in {name}: it lacks {count_of(len(missing), 'weight')} of {type(found).__name__}, {missing[0]} first")
    if header is not None:
        # The folder is gone.
        found.name_or_path = name
        if hasattr(found, "modules"):
            scale_positions(found, header)
    decoding = getattr(found, "generation_config", None)
    for key in DRAFTING:
        if getattr(decoding, key, None) is not None:
            setattr(decoding, key, None)
    return found


@contextmanager
def _alone(header: GGUFHeader | None) -> Iterator[Path | None]:
    """A GGUF file in a folder of its own, as transformers would rather read a tokenizer.json beside it; nothing for a folder's checkpoint."""
    if header is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, quicker(header):
        file = Path(folder) / "model.gguf"
        try:
            file.symlink_to(header.path)
        except OSError:  # Windows lets not everybody do so
            os.link(header.path, file)
        yield file


# What a checkpoint may say of decoding: ids of its vocabulary, and no number, penalty or algorithm.
DECODING = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


def decoding_of(name: str, config: Any) -> dict[str, Any]:
    """The ids by which a model's texts begin and end, of generation_config.json or else of the config; those that its vocabulary does not have are left out.

    `eos_token_id` and `pad_token_id` are lists.

    Raises:
        NoInputError: there is no such model.
    """
    size = getattr(config.get_text_config(), "vocab_size", None) or MOST
    found: dict[str, Any] = {}
    for key in DECODING:
        given = (source.get(key) if isinstance(source, dict) else getattr(source, key, None) for source in _said(name, config))
        value = next((value for value in given if value is not None), None)
        ids = [token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int) and not isinstance(token, bool)]
        known = [token for token in ids if 0 <= token < size]
        if key in ("eos_token_id", "pad_token_id"):
            found[key] = known
        elif known:
            found[key] = known[0]
    return found


def _said(name: str, config: Any) -> list[Any]:
    """Where the ids of a checkpoint stand, what counts most first."""
    own: Any = {}
    if not is_gguf(name):
        try:
            own = json.loads((locate(name) / "generation_config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            own = {}
    return [own if isinstance(own, dict) else {}, config, config.get_text_config()]


def untrained(config: Any, folder: Path, name: str, what: str, kind: Any = None) -> Any:
    """The network that a config describes, by default an encoder, float32 on the CPU; `folder` holds the weights that shall go into it.

    Raises:
        NoInputError: transformers has no such network, or it would be far larger than the weights are.
        OutOfMemory: it does not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    _check_values(config, name)
    _never_ask()
    try:
        described = AutoConfig.for_model(**config)
        with _bounded(_limit(folder)), torch.device("meta"):
            (kind or AutoModel).from_config(described, trust_remote_code=False)
        return (kind or AutoModel).from_config(described, trust_remote_code=False)
    except BaseException as error:
        raise _typed(error, name, what, trusted=False) from error


def check_checkpoint(folder: Path, name: str) -> None:
    """Looks at what a folder says of itself before anything is built from it.

    Raises:
        NoInputError: config.json is no object or holds absurd numbers, or the folder is an adapter of another model.
    """
    _check_values(read_config(folder, name), name)
    if (folder / "adapter_config.json").exists():
        raise NoInputError(f"{name} is an adapter of another model, which is not loaded on its word: merge the two, and name the merged model")


def _check_values(config: Any, name: str, key: str = "", depth: int = 0) -> None:
    if depth > 50:
        raise NoInputError(f"{name}: config.json is nested too deep")
    if isinstance(config, dict):
        for inner, value in config.items():
            _check_values(value, name, str(inner), depth + 1)
    elif isinstance(config, list):
        for value in config:
            _check_values(value, name, key, depth + 1)
    elif isinstance(config, int) and abs(config) > (MOST_COUNTED if COUNTED.search(key) else MOST):
        raise NoInputError(f"{name}: config.json says {key[:60]!r}: {_short(config)}, which no model has")
    elif isinstance(config, str) and key.strip("_").endswith("_implementation") and "/" in config:
        raise NoInputError(f"{name}: config.json asks for the code of {config[:100]!r} by {key!r}; such code does not run")


def _short(number: int) -> str:
    # Python refuses to print integers of thousands of digits.
    return str(number) if number.bit_length() < 200 else f"a number of {count_of(number.bit_length(), 'bit')}"


def _never_ask() -> None:
    from transformers import dynamic_module_utils

    # Where a call deep in transformers passes no `trust_remote_code` on, a timeout of 0 makes it refuse instead of asking.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


class _TooLarge(Exception):
    """A network asks for more memory than its weights can fill."""


def _limit(folder: Path) -> tuple[int, int, str]:
    """The numbers that a network may have, by its weights, the bytes of these, and where it is described."""
    stored = sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    packed = '"quantization_config"' in (folder / "config.json").read_text(errors="replace")
    return stored * (PACKED_PER_BYTE if packed else PER_BYTE) + ROOM, stored, "config.json"


def _limit_of(header: GGUFHeader) -> tuple[int, int, str]:
    """The same by a GGUF file's header: tied weights are stored once."""
    return PER_BYTE * header.numbers + ROOM, header.path.stat().st_size, "its header"


@contextmanager
def _bounded(limits: tuple[int, int, str]) -> Iterator[None]:
    """Counts the parameters and buffers that this thread registers on `meta`, and stops it as soon as they are too many."""
    from torch.nn.modules import module

    here = threading.get_ident()
    limit, stored, where = limits
    total = 0

    def count(owner: Any, name: str, tensor: Any) -> None:
        nonlocal total
        if tensor is not None and tensor.is_meta and threading.get_ident() == here:
            total += tensor.numel() + OVERHEAD
            if total > limit:
                raise _TooLarge(f"{where} describes a network of more than {count_of(total, 'number')}, but its weights are {count_of(stored, 'byte')}")

    hooks = [module.register_module_parameter_registration_hook(count), module.register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _typed(error: BaseException, name: str, what: str, trusted: bool) -> BaseException:
    """The error that the caller sees: what transformers raises over a checkpoint's files is the fault of these files."""
    # A panic in the tokenizers' Rust code is no Exception and is handled here; a signal is none either and is passed on.
    if isinstance(error, BlendkitError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        return error
    if out_of_memory(error):
        return OutOfMemory(f"not enough memory to load {name}: {reason(error)}")
    if "trust_remote_code" in str(error) and not trusted:
        return NoInputError(f"{name} brings code of its own, which runs under --trust-remote-code only (generate has it): {reason(error)}")
    return NoInputError(f"no {what} in {name}: {reason(error)}")


def reason(error: BaseException) -> str:
    """The message of a library, shortened to half a line."""
    text = " ".join(str(error).split())
    # transformers lists all its models here.
    if "Unrecognized configuration class" in text:
        return "the model is of another kind"
    return text[:300] if " " in text else f"{type(error).__name__} {text[:300]}".strip()
