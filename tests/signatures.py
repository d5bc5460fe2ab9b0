"""A command and its Python function take the same arguments, by the same names and with the same defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

from blendkit.registry import flag_of

# A flag that is given once for each is in the singular, its list in the plural; `assert` is a word of Python's own.
SPELLED = {"models": "--model", "metrics": "--metric", "labels": "--label", "weights": "--weight", "checks": "--assert"}
NONE = (inspect.Parameter.empty, None)


def assert_same_arguments(command: Callable, function: Callable, without: Collection[str] = ()) -> None:
    """`without` are flags that Python lacks."""
    flags = {name: flag for name, flag in inspect.signature(command).parameters.items() if name not in without}
    arguments = {name: argument for name, argument in inspect.signature(function).parameters.items() if name != "records"}
    assert set(flags) == set(arguments)
    for name, argument in arguments.items():
        (option,) = (data for data in flags[name].annotation.__metadata__ if hasattr(data, "param_decls"))
        # In an annotation, the first name of an option stands where its default would.
        names = [flag for flag in (option.default, *(option.param_decls or ())) if isinstance(flag, str) and flag.startswith("--")]
        spelled = names[0] if names else flag_of(name)
        assert spelled.partition("/")[0] == SPELLED.get(name, flag_of(name))
        default = flags[name].default
        # What a command asks for by a message of its own is None; and of a list that is not given, its help says what it then is.
        needed = argument.default is argument.empty and default in NONE
        assert needed or argument.default == (option.show_default if isinstance(argument.default, str) and default is None else default), name
