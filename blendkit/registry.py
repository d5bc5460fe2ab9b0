"""One form of table for all that a flag names: scorers, fusers, judges, aggregations, schedules, generators, trainers, forms.

A row says where a thing is and what it is, in one line; help, documents and the hints of errors are made of the rows. A new
thing is a file and a row. Another package adds one by an entry point of the table's group (docs/extending.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from blendkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """`target` is `module:attribute`, imported when it is first used; `about` is a line of help, and `form` how a flag names it."""

    target: str
    about: str = ""
    form: str = ""

    def load(self) -> Any:
        """What the row is about."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


class Registry(Mapping[str, Row]):
    """Rows by name: our own, then those that other packages bring."""

    def __init__(self, group: str, rows: Mapping[str, Row]) -> None:
        """`group` is that of the entry points, such as `blendkit.scorers`."""
        self.group, self.own = group, dict(rows)

    @cached_property
    def _all(self) -> dict[str, Row]:
        # Our own names cannot be taken: a record's signature would not say whose it was.
        brought = {point.name: Row(point.value, f"from the package {point.dist.name}" if point.dist else "") for point in entry_points(group=self.group)}
        return {**brought, **self.own} if brought else self.own

    def __getitem__(self, name: str) -> Row:
        # The packages that are installed are looked through only for a name that is not ours.
        return self.own[name] if name in self.own else self._all[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *(name for name in self._all if name not in self.own)])

    def __len__(self) -> int:
        return len(self._all)

    def load(self, name: str, flag: str) -> Any:
        """What the name stands for.

        Raises:
            UsageError: there is no such name; says `flag`, the nearest name and all that there are.
        """
        if name not in self:
            raise self.unknown(name, flag)
        return self[name].load()

    def unknown(self, name: str, flag: str) -> UsageError:
        """The error for a name that is not here."""
        return UsageError(f"{flag} {name}: expected one of {', '.join(self.forms())}{nearest(name, self)}")

    def forms(self) -> list[str]:
        """How a flag names each."""
        return [row.form or name for name, row in self.items()]

    def explained(self) -> str:
        """Each with its line, for the help of the flag."""
        return ", ".join(f"`{row.form or name}` ({row.about})" if row.about else f"`{row.form or name}`" for name, row in self.items())


def nearest(name: str, names: Collection[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
