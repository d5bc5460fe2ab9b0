"""The map of the house: what may import what. A file imports from its own room, from rooms of its floor, and from floors below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "blendkit"
# From the top down. What stands on one line is one floor.
FLOORS = [
    ["__main__", "cli", "documentation"],
    ["commands"],
    ["__init__", "api"],
    ["training", "evaluation"],
    ["judges", "rankers", "fusers", "sources"],
    ["scorers", "generators"],
    ["pipeline"],
    ["models"],
    ["streams"],
    [
        "records",
        "names",
        "families",
        "aggregate",
        "registry",
        "arguments",
        "specs",
        "signature",
        "seeding",
        "fences",
        "credentials",
        "untrusted",
        "terminal_text",
        "safe_csv",
        "errors",
        "version",
    ],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, `blendkit.` left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere: at its head, inside functions, or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name == "blendkit":
                found.add("__init__")
            elif name.startswith("blendkit.") and name.removeprefix("blendkit.") in known:
                found.add(name.removeprefix("blendkit."))
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_file_is_on_the_map(graph):
    assert {room(module) for module in graph} == set(FLOOR)


def test_no_file_imports_from_a_floor_above(graph):
    upward = [f"{module} imports {other}" for module, others in graph.items() for other in others if FLOOR[room(other)] < FLOOR[room(module)]]
    assert not upward, "\n".join(sorted(upward))


def test_no_files_import_each_other_in_a_circle(graph):
    # A package's __init__ is imported with any module in it, but that is no circle unless it imports the module back.
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            pytest.fail("a circle: " + " → ".join([*path[path.index(module) :], module]))
        if module in done:
            return
        for other in sorted(graph[module]):
            walk(other, [*path, module])
        done.add(module)

    for module in sorted(graph):
        walk(module, [])


# Precision and recall of two metrics, each in the metric's own file.
SAME = {"Precision", "Recall"}


def test_one_name_is_one_class():
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {name: files for name, files in found.items() if len(files) > 1 and name not in SAME} == {}
