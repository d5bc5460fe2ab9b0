"""What a call from Python is held to before anything runs: that its arguments are there, have these names, and are of these types."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, overload

from blendkit.errors import ArgumentError, RecordError, got
from blendkit.records import Record, check_is_record, place_of
from blendkit.registry import nearest

P = ParamSpec("P")
T = TypeVar("T")

Records = Iterable[Record]
# One text is a list of one. Of what a call names in the plural, it takes a list only: a string there is most often a slip.
Texts = str | Sequence[str]
File = str | os.PathLike[str]
Files = File | Sequence[File]

WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "True or False", types.NoneType: "None", os.PathLike: "a path"}
_RECORDS = "records (a list or another iterable of dicts)"


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose calls with wrong arguments fail at once; the functions themselves may be generators, which begin later.

    Paths come to it as strings, numbers of other libraries as Python's own.

    Raises:
        ArgumentError: an argument is unknown (says the nearest name), missing, or of another type.
        RecordError: one of a list of records is none.
    """
    signature = inspect.signature(function)
    known, name = signature.parameters, function.__name__

    @cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        for given in kwargs:
            if given not in known:
                raise ArgumentError(f"{name}() has no argument {given!r}{nearest(repr(given), list(map(repr, known)))}")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{name}(): {error}") from None
        for argument, value in bound.arguments.items():
            bound.arguments[argument] = _fitted(value, hints()[argument], f"{name}() {argument}")
        return function(*bound.args, **bound.kwargs)

    return called


@overload
def several(given: Texts | Files) -> list[str]: ...
@overload
def several(given: None) -> None: ...
def several(given: Any) -> list[str] | None:
    """One or several, as a list; the paths among them are strings by now."""
    return given if given is None else [given] if isinstance(given, str) else list(given)


def one(given: File | None) -> str | None:
    """A text, or a path, which is a string by now."""
    return None if given is None else str(given)


def _fitted(value: Any, wanted: Any, place: str) -> Any:
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for kind in kinds:
        try:
            return _as(value, kind, place)
        except ArgumentError:
            raise
        except TypeError:
            pass
    hint = "; a list of one is [record]" if isinstance(value, dict) and _RECORDS in _words(kinds) else ""
    if isinstance(value, str) and any(typing.get_origin(kind) is collections.abc.Sequence for kind in kinds):
        hint = "; a list of one is [text]"
    raise ArgumentError(f"{place}: expected {_words(kinds)}, got {got(value)}{hint}")


def _as(value: Any, kind: Any, place: str) -> Any:
    """The value as its function takes it. Raises TypeError where it is of another kind, and ArgumentError where a part of it is."""
    origin = typing.get_origin(kind) or kind
    if origin is collections.abc.Iterable:
        return _records(value)
    if origin is collections.abc.Sequence and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        (inner,) = typing.get_args(kind)
        return [_fitted(one, inner, f"{place}[{number}]") for number, one in enumerate(value)]
    if origin is os.PathLike and isinstance(path := os.fspath(value), str):
        return path
    if origin is int and isinstance(value, Integral) and value is not True and value is not False:
        return int(value)
    if origin is float and isinstance(value, Real) and value is not True and value is not False:
        return float(value)
    if origin in (str, bool, types.NoneType, collections.abc.Mapping) and isinstance(value, origin):
        return value
    raise TypeError


def _records(value: Any) -> Iterable[Record]:
    """Records that are there already are looked at, each; those that come one by one are when they come."""
    if isinstance(value, str | bytes | collections.abc.Mapping) or not isinstance(value, Iterable):
        raise TypeError
    if isinstance(value, list | tuple):
        for place, record in enumerate(value):
            try:
                check_is_record(record)
            except RecordError as error:
                raise RecordError("", f"{place_of(place)}: {error}") from None
    return value


def _words(kinds: Sequence[Any]) -> str:
    """What would fit."""
    found = []
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is collections.abc.Sequence:
            (inner,) = typing.get_args(kind)
            texts = "strings" if inner is str else "strings or paths"
            found.append(f"a list of {texts if kind is kinds[0] or inner is str else 'them'}")
        elif origin is collections.abc.Iterable:
            found.append(_RECORDS)
        else:
            found.append("a dict" if origin is collections.abc.Mapping else WORDS[origin])
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]
