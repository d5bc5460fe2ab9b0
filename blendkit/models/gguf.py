"""GGUF, the form of weights that llama.cpp made: the header, read once and held to the file's size, and a quicker way for transformers.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. transformers reads a file several times and builds an array for each
of the vocabulary's words each time; while `quicker` lasts, it is handed what was read here in place of that.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from blendkit.errors import NoInputError, require
from blendkit.terminal_text import count_of

SUFFIX = ".gguf"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# How numbers are kept, by the type's number.
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# ggml has no more dimensions than that.
DIMENSIONS = 4
MOST_WORDS, LONGEST_KEY = 1 << 22, 1 << 16


class _Strings(Sequence[bytes]):
    """The strings of an array, taken out of the file when they are asked for."""

    def __init__(self, data: mmap.mmap, starts: list[int]) -> None:
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        start = self._starts[place]
        (length,) = struct.unpack_from("<Q", self._data, start)
        return self._data[start + 8 : start + 8 + length]


@dataclass(frozen=True)
class Field:
    """One entry of the metadata as gguf's reader gives it: values are `parts[place]` for each place in `data`."""

    name: str
    types: list[int]
    parts: Sequence[Any] = field(repr=False)

    @property
    def data(self) -> range:
        """Places of values."""
        return range(len(self.parts))

    @property
    def value(self) -> Any:
        """A number, a text, or the list of an array."""
        if self.types[0] == ARRAY:
            return [_text(part) if self.types[1] == STRING else part[0] for part in self.parts]
        return _text(self.parts[0]) if self.types[0] == STRING else self.parts[0][0]


@dataclass(frozen=True)
class Stored:
    """Where a tensor stands in the file; its shape is in GGUF's order, the innermost dimension first."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says of itself, all of it inside the file."""

    path: Path
    fields: dict[str, Field] = field(repr=False)
    stored: list[Stored] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Such as `llama`."""
        return str(self.fields["general.architecture"].value)

    @property
    def numbers(self) -> int:
        """Of all tensors."""
        return sum(prod(tensor.shape) for tensor in self.stored)

    @property
    def tensors(self) -> list[Any]:
        """As gguf's reader gives them, with their data where they are in the file."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import quant_shape_to_byte_shape

        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16, GGMLQuantizationType.F64: np.float64}
        plain |= {getattr(GGMLQuantizationType, f"I{bits}"): np.dtype(f"i{bits // 8}").type for bits in (8, 16, 32, 64)}
        blob = np.memmap(self.path, mode="r", dtype=np.uint8)
        found = []
        for tensor in self.stored:
            kind = GGMLQuantizationType(tensor.type)
            data, shape = blob[tensor.start : tensor.start + tensor.size], tuple(reversed(tensor.shape))
            data = data.view(plain[kind]).reshape(shape) if kind in plain else data.reshape(quant_shape_to_byte_shape(shape, kind))
            found.append(_Tensor(tensor.name, data, kind))
        return found


@dataclass(frozen=True)
class _Tensor:
    name: str
    data: Any = field(repr=False)
    tensor_type: Any = None


class _Damaged(Exception):
    """The header does not fit the file."""


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def gguf_header(name: str) -> GGUFHeader:
    """What the file says of itself, read once a process as long as the file stays the same.

    Raises:
        NoInputError: there is no such file, it is no GGUF, it is damaged, or its header claims more than it holds.
        UsageError: the packages that read it are not installed.
    """
    for package in ("gguf", "accelerate"):
        require(package, "gguf", name)
    path = Path(name)
    try:
        known = path.stat()
        return _header(path.resolve(), name, known.st_mtime_ns, known.st_size)
    except FileNotFoundError as error:
        raise NoInputError(f"no model {name!r}: there is no such file") from error
    except OSError as error:
        raise NoInputError(f"{name} cannot be read: {error.strerror or error}") from error
    except (_Damaged, struct.error, UnicodeDecodeError) as error:
        raise NoInputError(f"{name} is damaged: {error}") from error


@lru_cache(maxsize=16)
def _header(path: Path, name: str, changed: int, size: int) -> GGUFHeader:
    if not path.is_file():
        raise NoInputError(f"no model in {name}: it is not a file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise NoInputError(f"{name} is not a GGUF file: it does not begin with GGUF")
        if size < 24:
            raise _Damaged(f"it ends after {count_of(size, 'byte')}")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (version, tensors, entries) = struct.unpack_from("<IQQ", data, 4)
    if version not in VERSIONS:
        raise NoInputError(f"{name} is GGUF of version {version}, which is not read; versions {VERSIONS[0]} and {VERSIONS[1]} are")
    reading = _Reading(data, 24)
    # The smallest entry is a key, a type and a byte, the smallest tensor a name, a dimension, a type and a place.
    if entries * 13 + tensors * 32 > size:
        raise _Damaged(f"it claims {count_of(entries, 'entry', 'entries')} and {count_of(tensors, 'tensor')} in {count_of(size, 'byte')}")
    fields = {"GGUF.version": Field("GGUF.version", [4], [[version]])}
    fields |= {key: Field(key, [10], [[count]]) for key, count in (("GGUF.tensor_count", tensors), ("GGUF.kv_count", entries))}
    for _ in range(entries):
        entry = reading.entry()
        if entry.name in fields:
            raise _Damaged(f"{entry.name[:60]!r} stands in it twice")
        fields[entry.name] = entry
    found = GGUFHeader(path, fields, reading.tensors(tensors, fields))
    _check(found, name)
    return found


class _Reading:
    """A place in the file that moves on; all that is read must be inside."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def take(self, length: int) -> int:
        """Where the next bytes begin."""
        start = self.place
        if length > len(self.data) - start:
            raise _Damaged(f"it ends after {count_of(len(self.data), 'byte')}, in the midst of its header")
        self.place += length
        return start

    def number(self, form: str) -> Any:
        """The next number."""
        return struct.unpack_from("<" + form, self.data, self.take(struct.calcsize("<" + form)))[0]

    def string(self, most: int = MOST_WORDS << 4) -> bytes:
        """The next string."""
        length = self.number("Q")
        if length > most:
            raise _Damaged(f"a text in its header has {count_of(length, 'byte')}")
        start = self.take(length)
        return self.data[start : start + length]

    def entry(self) -> Field:
        """The next key and value."""
        key, kind = _text(self.string(LONGEST_KEY)), self.number("I")
        if kind in FORMATS:
            return Field(key, [kind], [[self.number(FORMATS[kind])]])
        if kind == STRING:
            return Field(key, [kind], [self.string()])
        if kind != ARRAY:
            raise _Damaged(f"{key[:60]!r} is of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > MOST_WORDS:
            raise _Damaged(f"{key[:60]!r} claims {count_of(count, 'value')}")
        if inner in FORMATS:
            form = f"<{count}{FORMATS[inner]}"
            return Field(key, [kind, inner], [(value,) for value in struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))])
        if inner != STRING:
            raise _Damaged(f"{key[:60]!r} is an array of the unknown type {inner}")
        starts = []
        unpack, data, place, end = struct.Struct("<Q").unpack_from, self.data, self.place, len(self.data)
        for _ in range(count):
            if place + 8 > end or (length := unpack(data, place)[0]) > end - place - 8:
                raise _Damaged(f"it ends after {count_of(end, 'byte')}, in the midst of {key[:60]!r}")
            starts.append(place)
            place += 8 + length
        self.place = place
        return Field(key, [kind, inner], _Strings(data, starts))

    def tensors(self, count: int, fields: dict[str, Field]) -> list[Stored]:
        """The table of tensors, each of which must be inside the file."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        table = []
        for _ in range(count):
            name, dimensions = _text(self.string(LONGEST_KEY)), self.number("I")
            if dimensions > DIMENSIONS:
                raise _Damaged(f"{name[:60]!r} has {count_of(dimensions, 'dimension')}")
            shape = tuple(self.number("Q") for _ in range(dimensions))
            kind, offset = self.number("I"), self.number("Q")
            try:
                block, bytes_each = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise _Damaged(f"{name[:60]!r} is of the type {kind}, which the package gguf does not know") from None
            if shape and shape[0] % block:
                raise _Damaged(f"{name[:60]!r} has rows of {count_of(shape[0], 'number')}, which are no blocks of {block}")
            table.append((name, shape, kind, offset, prod(shape) // block * bytes_each))
        alignment = fields["general.alignment"].value if "general.alignment" in fields else 32
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise _Damaged(f"its alignment is {alignment!r}")
        begin = -(-self.place // alignment) * alignment
        for name, shape, _, offset, size in table:
            if offset + size > len(self.data) - begin:
                raise _Damaged(f"{name[:60]!r} of {' x '.join(map(str, shape))} numbers goes beyond its end")
        return [Stored(name, shape, kind, begin + offset, size) for name, shape, kind, offset, size in table]


def _check(header: GGUFHeader, name: str) -> None:
    """What transformers builds lists of, before it does."""
    if "general.architecture" not in header.fields:
        raise _Damaged("it says no general.architecture")
    prefix = header.architecture
    for key, entry in header.fields.items():
        if not key.startswith(prefix) or entry.types[0] in (STRING, ARRAY):
            continue
        # Each block and each expert has weights.
        most = len(header.stored) if key.endswith("block_count") else 1_000_000 if key.endswith("_count") else 1 << 53
        if isinstance(entry.value, int) and abs(entry.value) > most:
            raise NoInputError(f"{name}: its header says {key[:60]!r}: {entry.value}, which its {count_of(len(header.stored), 'tensor is', 'tensors are')} not")
    scaling = header.fields.get(f"{prefix}.rope.scaling.type")
    if scaling is not None and scaling.value not in ("none", "linear") and prefix not in ("gpt-oss", "gpt_oss"):
        raise NoInputError(f"{name} scales its positions by {scaling.value!r}, which transformers does not read from a GGUF file")


def _text(part: bytes) -> str:
    return part.decode()


@contextmanager
def quicker(header: GGUFHeader) -> Iterator[None]:
    """Hands transformers the header that was read; what it does not ask for by these names, it does by itself, only slower."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loading

    def reader(path: Any, *more: Any) -> Any:
        return header if Path(path).resolve() == header.path else own["GGUFReader"](path, *more)

    replacing: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", reader),
        # It is asked for the same table by each module of the network.
        (gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
        # Its bar would be shown whatever --progress says.
        (loading, "tqdm", lambda tensors, **settings: tensors),
    ]
    own: dict[str, Any] = {name: getattr(module, name, None) for module, name, _ in replacing}
    for module, name, ours in replacing:
        setattr(module, name, ours)
    try:
        yield
    finally:
        for module, name, _ in replacing:
            setattr(module, name, own[name])


def scale_positions(network: Any, header: GGUFHeader) -> None:
    """What a file says of scaled rotary positions and transformers leaves out: a factor for all, or one for each frequency (Llama 3.1)."""
    import torch

    factor = header.fields.get(f"{header.architecture}.rope.scaling.factor")
    linear = header.fields.get(f"{header.architecture}.rope.scaling.type")
    factors = torch.ones(1) if factor is None or linear is None or linear.value != "linear" else torch.tensor([float(factor.value)])
    for tensor in header.tensors:
        if tensor.name == "rope_freqs.weight":
            factors = torch.from_numpy(tensor.data.copy()).float()
    if not bool((factors != 1).any()):
        return
    for module in network.modules():
        for name in ("inv_freq", "original_inv_freq"):
            frequencies = getattr(module, name, None)
            if isinstance(frequencies, torch.Tensor) and len(factors) in (1, len(frequencies)):
                frequencies.div_(factors.to(frequencies.device))
