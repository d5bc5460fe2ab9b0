"""Headers that a user adds to every request: `NAME:VALUE`, where a value `env:VARIABLE` is read from the environment and is a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blendkit.credentials import named_like_a_secret
from blendkit.errors import UsageError

VARIABLE = "env:"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What belongs to the connection, or is how a request is told from another.
OURS = ("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding")


@dataclass(frozen=True)
class ExtraHeader:
    """One header; `value` is as it was given, a variable's name in place of what it holds."""

    name: str
    value: str

    @property
    def secret(self) -> bool:
        """Whether its value must never be shown or kept."""
        return self.value.startswith(VARIABLE) or named_like_a_secret(self.name)

    def sent(self) -> str:
        """The value that goes out.

        Raises:
            UsageError: its variable is not set, or holds what no header can carry.
        """
        if not self.value.startswith(VARIABLE):
            return self.value
        return variable(self.value.removeprefix(VARIABLE), f"the header {self.name}")

    @classmethod
    def parsed(cls, text: str, place: str = "--extra-header") -> ExtraHeader:
        """`NAME:VALUE`.

        Raises:
            UsageError: it is of another form, or no request can carry it. The value is not quoted: it may be a secret.
        """
        name, colon, value = text.partition(":")
        return cls.checked(name.strip(), value, place) if colon else cls.checked("", "", place)

    @classmethod
    def checked(cls, name: str, value: str, place: str) -> ExtraHeader:
        """A header of this name and value; raises as `parsed`."""
        if not _TOKEN.fullmatch(name):
            raise UsageError(f"{place}: expected NAME:VALUE, with a name of letters, digits and hyphens")
        if name.lower() in OURS:
            raise UsageError(f"{place} {name}: this header is blendkit's own")
        if not _carried(value := value.strip(" \t")):
            raise UsageError(f"{place} {name}: the value has line breaks, control characters or characters beyond ASCII; no header can carry it")
        return cls(name, value)


def variable(name: str, what: str, needed: bool = True) -> str:
    """A secret of the environment, without white space around it; empty where it need not be set and is not.

    Raises:
        UsageError: it is not set, or no header can carry it; names the variable, and not what it holds.
    """
    value = os.environ.get(name, "").strip()
    if not value and needed:
        raise UsageError(f"the variable {name}, which holds {what}, is not set, or is empty")
    if not _carried(value):
        raise UsageError(f"{name} holds control characters, line breaks or characters beyond ASCII; no header can carry it")
    return value


def merged(headers: Iterable[ExtraHeader], more: Iterable[ExtraHeader]) -> tuple[ExtraHeader, ...]:
    """Both, where `more` stands above a header of the same name."""
    return tuple({header.name.lower(): header for header in (*headers, *more)}.values())


def values_of(headers: Iterable[ExtraHeader]) -> Mapping[str, str]:
    """What each sends, by its name; raises as `ExtraHeader.sent`."""
    return {header.name: header.sent() for header in headers}


def _carried(value: str) -> bool:
    return value.isascii() and all(sign.isprintable() for sign in value)
