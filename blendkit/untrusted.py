"""Reads JSON and TOML that others wrote: whatever its depth, numbers, types or bytes, it becomes a value or a RecordError.

This is the one place for such texts; each caller adds where the text came from.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson

from blendkit.errors import DataError, NoInputError, RecordError, UsageError
from blendkit.registry import nearest

T = TypeVar("T")
# A larger file is not read whole.
MAX_FILE_BYTES = 64 << 20


def read_file(path: str | Path, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file of text, a byte order mark at its start left out. No more than `max_bytes` are read, as a device or a pipe may have no end.

    Errors begin with `name`.

    Raises:
        NoInputError: the file does not exist or cannot be read.
        DataError: the file is longer than `max_bytes`.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise NoInputError(f"{name}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise DataError(f"{name}: more than {max_bytes >> 20} MB")
    return data.removeprefix(codecs.BOM_UTF8)


def shipped_or_file(name: str, folder: Path, flag: str, max_bytes: int, made: Callable[[Path, str], T], also: Sequence[str] = ()) -> T:
    """What is `made` of path and text: of `folder`'s NAME.toml, which comes with the package, or of the user's own file. `also` are names of something else.

    Raises:
        UsageError: there is neither.
        NoInputError: there is no such file, and the name is that of a file.
        DataError: the file is no UTF-8 or too long, or `made` raised a RecordError.
    """
    built_in = stems(folder)
    path = folder / f"{name}.toml" if name in built_in else Path(name)
    try:
        data = read_file(path, f"{flag} {name}", max_bytes)
    except NoInputError as error:
        if path.suffix or path.parent != Path():
            raise
        names = [*also, *built_in]
        raise UsageError(f"{flag} {name}: expected one of {', '.join(names)}, or a file{nearest(name, names)}") from error
    try:
        return made(path, utf8(data))
    except RecordError as error:
        raise DataError(f"{flag} {name}: {error}") from error


def stems(folder: Path) -> list[str]:
    """Names of the TOML files in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def utf8(data: bytes) -> str:
    """Bytes as text.

    Raises:
        RecordError: the bytes are not UTF-8; with the place of the first bad byte.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as bad:
        raise RecordError("", f"not UTF-8: byte 0x{data[bad.start]:02x} at byte {bad.start + 1}") from bad


def json_value(text: bytes | str) -> Any:
    """The value of a JSON text, integers of any size included.

    Raises:
        RecordError: not UTF-8, not JSON, NaN or a number beyond all floats, or nested more than 1,024 deep.
    """
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    try:
        # Unlike orjson, it keeps integers of more than 64 bits.
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # orjson's errors say more exactly what is wrong.
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RecordError("", _not_json(data, error)) from error


def toml_value(text: str) -> dict[str, Any]:
    """The value of a TOML text.

    Raises:
        RecordError: not TOML, a number of too many digits, or nested too deep.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise RecordError("", "not TOML: nested too deep") from error
    except ValueError as error:
        raise RecordError("", f"not TOML: {error}") from error


def json_lines(path: str | Path, name: str, read: Callable[[Any], T], expected: str = "") -> list[T]:
    """What `read` makes of the value of each line of a file; blank lines are passed over.

    Errors begin with `name` and the line's number, then what was `expected`.

    Raises:
        NoInputError: the file does not exist or cannot be read.
        DataError: a line is no JSON, or `read` raises a RecordError.
    """
    found = []
    # Bytes end lines where files do; text would at U+2028, too, which JSON's strings may hold.
    for number, line in enumerate(read_file(path, name).splitlines(), 1):
        if line.strip():
            try:
                found.append(read(json_value(line)))
            except RecordError as error:
                raise DataError(f"{name}:{number}: {expected}{error}") from error
    return found


def table_of_file(path: str, name: str, key: Any, value: type[T], max_bytes: int = MAX_FILE_BYTES) -> dict[str, T]:
    """A TOML file, or a JSON object where the name ends so; keys and values are checked against their types. Errors begin with `name`.

    Raises:
        NoInputError: the file does not exist or cannot be read.
        DataError: it holds something else, or is longer than `max_bytes`.
    """
    data = read_file(path, name, max_bytes)
    try:
        table = typed(json_value(data) if path.lower().endswith(".json") else toml_value(utf8(data)), dict[key, Any])
        return {place: typed(found, value, place) for place, found in table.items()}
    except RecordError as error:
        raise DataError(f"{name}: {error}") from error


def typed(value: object, kind: type[T], at: str = "") -> T:
    """The value, checked against the type and its bounds; `at` is the path of the value itself.

    Raises:
        RecordError: a field is wrong; with the path of the first field that is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _field_error(str(error), at) from None


def _not_json(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return f"not UTF-8: byte 0x{data[bad.start]:02x} at byte {bad.start + 1} of the line"
    rest = data[error.pos :]
    if not rest.strip():
        return "not JSON: the line ends in the middle of a value"
    if match := re.match(rb"-?(NaN|Infinity)", rest):
        return f"not JSON: a bare {match[0].decode()} at column {error.pos + 1}; JSON has null instead"
    problem = f"not JSON: {error.msg.split(':')[0]} at column {error.pos + 1}"
    return problem if data.endswith((b"}", b"]")) else f"{problem}; the line may be truncated"


_KINDS = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "null": "null", "array": "an array", "object": "an object"}


def kind_of(value: object) -> str:
    """A JSON value's type in words."""
    names = {list: "array", dict: "object", str: "str", int: "int", float: "float", bool: "bool", type(None): "null"}
    # Other formats than JSON have other kinds of values, such as times and bytes.
    return _KINDS[names[type(value)]] if type(value) in names else f"a {type(value).__name__}"


def _field_error(message: str, at: str) -> RecordError:
    """msgspec's "Expected `str`, got `null` - at `$.candidates[2].text`" in our words."""
    problem, _, path = message.partition(" - at `$")
    field = (at + path.rstrip("`")).lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        return RecordError(f"{field}.{missing[1]}".lstrip("."), "expected a value, but the field is missing")

    def words(match: re.Match[str]) -> str:
        kinds = [_KINDS.get(kind.strip(), kind.strip()) for kind in match[1].split("|")]
        return " or ".join(kinds)

    return RecordError(field, re.sub(r"`([^`]*)`", words, problem[0].lower() + problem[1:]))
