"""`[NAME=]SPEC`, by which every command is told of a model, a metric, a judge or a fuser: what records call it, and what it is."""

from __future__ import annotations

import os
import re

from blendkit.errors import UsageError
from blendkit.terminal_text import shown

# A `=` behind one of these is a part of the SPEC: of a path, an address, or a setting in one.
_NAME = re.compile(r"([^=:/\\?]*)=")


def split_name(given: str, flag: str) -> tuple[str, str]:
    """Name (or nothing) and SPEC of `[NAME=]SPEC`; the name has no `:`, `/`, `\\`, `?` or `=` in it.

    Raises:
        UsageError: there is a `=`, but no name before it that can be one, or nothing behind it.
    """
    found = _NAME.match(given)
    if found is None:
        return "", given
    name, spec = found[1], given[found.end() :]
    check_name(name, f"{flag} {shown(given)}")
    if not spec:
        raise UsageError(f"{flag} {shown(given)}: expected NAME=SPEC, got nothing behind the =")
    return name, spec


def check_name(name: str, place: str) -> None:
    """Raises UsageError where a name is empty, cannot be printed, or begins or ends with a space."""
    if not name or not name.isprintable() or name != name.strip():
        raise UsageError(f"{place}: expected a name that is printable and not empty, without a space at its ends, got {shown(repr(name))}")


def one_name(own: str, name: str | None, flag: str) -> str | None:
    """The name of `NAME=SPEC` (`own`, or nothing) or of `--name`.

    Raises:
        UsageError: there are two, or that of `--name` is none.
    """
    if name is not None:
        check_name(name, "--name")
    if own and name and own != name:
        raise UsageError(f"--name {shown(name)}: {flag} {shown(own)}=… names it, too; leave one of them out")
    return own or name


def named_twice(name: str, given: str, flag: str) -> UsageError:
    """The error where a second one, `given` by a flag, has a name that there is."""
    spec = split_name(given, flag)[1]
    return UsageError(f"{flag} {shown(given)}: the name {shown(name)} is given twice; give one another, NAME={shown(spec)}")


def default_name(spec: str) -> str:
    """What is called by no name: its SPEC, of which a path that is there is its last part, such as `foo` of ./models/foo/ and `vllm:foo` of vllm:models/foo."""
    if os.path.exists(spec):
        return _last(spec)
    head, colon, path = spec.partition(":")
    return f"{head}:{_last(path)}" if colon and head != "openai" and os.path.exists(path) else spec


def _last(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) or path
