"""Values of any shape, and tests that draw them: what a fuzzing test of this process needs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def budget(quick: int, slow: int, *drawn: st.SearchStrategy) -> Callable:
    """The test twice, on what is drawn: a few examples always, many more under the marker `slow`; the same ones in every run."""

    def decorated(test: Callable) -> Callable:
        def of(examples: int) -> Callable:
            # A test has its settings once, so that each size is a test of its own.
            sized = settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            return sized(given(*drawn)(test))

        def run(size: str) -> None:
            of({"quick": quick, "slow": slow}[size])()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("size", ["quick", pytest.param("slow", marks=pytest.mark.slow)])(run)

    return decorated


NUMBERS = [0, 1, -1, 2, 65_535, 65_536, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 0.5, -0.0, 1e-308, 1e308, -1e308]
WORDS = [
    "",
    "a",
    "a,b",
    "A is better",
    "Same bad",
    "[/]",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\x85",
    "=1+1",
    "table",
    "kind",
    "gpt_rank",
    "judge_rank",
    "null",
    "NaN",
    "[" * 5000,
    "1" * 5000,
]
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.text(max_size=5)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3), max_leaves=8
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all that is in a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


def changed(draw: Callable, value: object) -> object:
    """The value with one to three parts replaced, taken out, or put in again elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            continue
        *way, last = path
        around = value
        for key in way:
            around = around[key]
        how = draw(st.sampled_from(["replace", "number", "take out", "add"]))
        if how == "take out":
            del around[last]
        elif how == "number" and isinstance(around[last], int | float):
            around[last] = draw(st.sampled_from(NUMBERS))
        elif how == "add" and isinstance(around, dict):
            around[draw(st.sampled_from(WORDS[:-2]))] = draw(junk)
        else:
            around[last] = draw(junk)
    return value
