"""A command and its Python function take the same arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping

# A list that was not given is None for a flag and may be empty in Python.
NOT_GIVEN = (None, (), [])


def assert_same_arguments(
    command: Callable, function: Callable, renamed: Mapping[str, str], *, positional: Collection[str] = (), without: Collection[str] = (),
    beside: Collection[str] = (),
) -> None:  # fmt: skip
    """`renamed` are flags that have another name in Python; `without` are those that it lacks, and `beside` arguments that have no flag."""
    flags = {renamed.get(name, name): flag for name, flag in inspect.signature(command).parameters.items() if name not in without}
    arguments = inspect.signature(function).parameters
    assert set(flags) | {"records"} == set(arguments) - set(beside), set(flags) ^ set(arguments)
    for name, argument in arguments.items():
        if name == "records" or name in beside:
            continue
        if list(renamed.values()).count(name) > 1:
            # One object holds what several flags say.
            assert argument.default is None and argument.kind is inspect.Parameter.KEYWORD_ONLY
            continue
        default = flags[name].default
        if argument.default is inspect.Parameter.empty:
            # What a command asks for by a message of its own.
            assert default in (inspect.Parameter.empty, None), name
        elif name in positional:
            assert default in (argument.default, None), name
        else:
            assert argument.default == default or (argument.default in NOT_GIVEN and default in NOT_GIVEN), name
            assert argument.kind is inspect.Parameter.KEYWORD_ONLY, name
