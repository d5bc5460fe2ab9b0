"""The files of a command and their roles: no file that is read or written is overwritten by another flag's output."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blendkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Role:
    """What a file is for: the flag's name, and a path, or the number of a standard stream."""

    flag: str
    file: str | int
    writes: bool = False

    def __str__(self) -> str:
        return self.flag if isinstance(self.file, int) else f"{self.flag} {self.file}"


def stdin_or(path: str | None) -> Role:
    """The role of a command's input."""
    return Role("-i", path) if path and path != "-" else Role("standard input", 0)


def stdout_or(path: str | None) -> Role:
    """The role of a command's output."""
    return Role("-o", path, writes=True) if path and path != "-" else Role("standard output", 1, writes=True)


def one_role_each(roles: Iterable[Role]) -> None:
    """Checks that no file that is written has a second role, also under another name. Pipes, terminals and /dev/null may have several.

    Raises:
        UsageError: a written file has two roles; names both flags.
    """
    known: dict[object, Role] = {}
    for role in roles:
        identity = _identity(role)
        if identity is None:
            continue
        other = known.setdefault(identity, role)
        if other is not role and (role.writes or other.writes):
            why = "each would overwrite the other" if role.writes and other.writes else "what is written would overwrite what is read"
            raise UsageError(f"{other} and {role}: they are the same file, and {why}")


def _identity(role: Role) -> object:
    """A value that is equal for two names of one file, also of one that does not exist yet; None for anything but a regular file."""
    try:
        status = os.stat(role.file)
    except (OSError, ValueError):
        return os.path.realpath(role.file) if role.writes and isinstance(role.file, str) else None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def roles_of(flags: dict[str, str], values: dict[str, Any], writes: bool = False) -> list[Role]:
    """The roles of a command's own flags: `flags` names the flag of each parameter; a value is a path, several, or None."""
    found = []
    for parameter, flag in flags.items():
        given = values[parameter]
        found += [Role(flag, file, writes) for file in ([given] if isinstance(given, str) else given or ())]
    return found


def file_hash(path: str | Path) -> str:
    """A file's SHA-256, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
