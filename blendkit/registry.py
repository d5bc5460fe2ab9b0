"""One form of table for all that a flag names: scorers, fusers, judges, aggregations, schedules, generators, trainers, forms.

A row says where a thing is and what it is, in one line; help, documents and the hints of errors are made of the rows. A new
thing is a file and a row. Another package adds one by an entry point of the table's group (docs/extending.md).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from blendkit.errors import NoInputError, UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """`target` is `module:attribute`, imported when it is first used; `about` is a line of help, and `form` how a flag names it."""

    target: str
    about: str = ""
    form: str = ""
    # The package that brings it; empty for our own.
    package: str = ""

    def load(self) -> Any:
        """What the row is about.

        Raises:
            UsageError: it is another package's, and cannot be imported; says why.
        """
        module, _, attribute = self.target.partition(":")
        if not self.package:
            return getattr(import_module(module), attribute)
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # It is foreign code: anything may go wrong.
            raise UsageError(f"{self.target} of the package {self.package} cannot be imported: {type(error).__name__}: {error}") from error


class Registry(Mapping[str, Row]):
    """Rows by name: our own, then those that other packages bring."""

    def __init__(self, group: str, rows: Mapping[str, Row]) -> None:
        """`group` is that of the entry points, such as `blendkit.scorers`."""
        self.group, self.own = group, dict(rows)

    @cached_property
    def _all(self) -> dict[str, Row]:
        # Our own names cannot be taken: a record's signature would not say whose it was.
        brought = {}
        for point in entry_points(group=self.group):
            package = point.dist.name if point.dist else point.value
            brought[point.name] = Row(point.value, f"from the package {package}", package=package)
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

    def load_kind(self, name: str, flag: str, base: type[Any]) -> Any:
        """The class that the name stands for.

        Raises:
            UsageError: as `load`, and where another package brings something that is no `base`.
        """
        kind = self.load(name, flag)
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise UsageError(f"{flag} {name}: {self[name].target} is no {base.__name__}, as {self.group} asks of it")
        return kind

    def check_options(self, options: Mapping[str, Any], chosen: Mapping[str, Collection[str]], flags: Mapping[str, str | None] | None = None) -> None:
        """All that was given must be an option of some chosen kind; None says that an option was not given.

        `chosen` has each kind's options by its name, and `flags` the flags that are not spelled as their options.

        Raises:
            UsageError: such as `--num-beams: consensus has no such option; GenFuser has`.
        """
        for option, value in options.items():
            if value is None or any(option in has for has in chosen.values()):
                continue
            having = [name for name, row in self.own.items() if name not in chosen and option in options_of(row.load())]
            elsewhere = f"; {_listed(having)}" if having else ""
            raise UsageError(f"{(flags or {}).get(option) or flag_of(option)}: {_listed(list(chosen))} no such option{elsewhere}")

    def forms(self) -> list[str]:
        """How a flag names each."""
        return [row.form or name for name, row in self.items()]

    def explained(self) -> str:
        """Each with its line, for the help of the flag."""
        return ", ".join(f"`{row.form or name}` ({row.about})" if row.about else f"`{row.form or name}`" for name, row in self.items())


def flag_of(option: str) -> str:
    """The flag of a Python argument."""
    return f"--{option.replace('_', '-')}"


def options_of(kind: Any, model: str = "") -> Collection[str]:
    """The options that a class takes, by its signature, or as its `takes(model)` says where they depend on the model."""
    if hasattr(kind, "takes"):
        found: Collection[str] = kind.takes(model)
        return found
    return parameters_of(kind)


def parameters_of(kind: Any) -> list[str]:
    """The named parameters of a class's `__init__`."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]


def _listed(names: list[str]) -> str:
    """`A has` or `A, B and C have`."""
    return f"{', '.join(names[:-1])} and {names[-1]} have" if len(names) > 1 else f"{names[0]} has"


def nearest(name: str, names: Collection[str], cutoff: float = 0.5) -> str:
    """`; did you mean NAME?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def suggesting(name: str, names: Collection[str]) -> Iterator[None]:
    """Where a model is missing whose name is nearly one of `names`, the error says so."""
    try:
        yield
    except NoInputError as error:
        # Where it was looked for, models that are here may have been named already.
        if "did you mean" not in str(error) and (hint := nearest(name, names, cutoff=0.75)):
            raise NoInputError(f"{error}{hint}") from error
        raise
