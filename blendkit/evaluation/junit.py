"""Checks and bad records as JUnit's XML, which CI systems show beside their tests."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from blendkit.evaluation.tables import Rows
from blendkit.terminal_text import shown
from blendkit.version import VERSION


def junit(checks: Rows, bad: Sequence[tuple[str, str]] = (), signatures: Sequence[str] = ()) -> bytes:
    """A suite `blendkit evaluate` with a test case a check, which fails where it does not hold, and one for each bad record, an error.

    `checks` are rows of the table of checks; one that could not be answered is an error, too. `bad` are (place, what is wrong), such as
    `<stdin>:17` and `candidates[2].text: expected a string, got null`. Characters that XML cannot hold are shown as a terminal shows them.
    `signatures` are the suite's properties.
    """
    suite = ElementTree.Element("testsuite", name="blendkit evaluate")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("version", VERSION), *(("signature", signature) for signature in signatures)):
        ElementTree.SubElement(properties, "property", name=name, value=_safe(value))
    counts = {"failure": 0, "error": 0}

    def case(kind: str, name: str, outcome: str | None, message: str) -> None:
        found = ElementTree.SubElement(suite, "testcase", classname=f"blendkit.{kind}", name=_safe(name))
        if outcome is not None:
            counts[outcome] += 1
            ElementTree.SubElement(found, outcome, message=_safe(message), type=kind)

    for row in checks:
        outcome = {True: None, False: "failure", None: "error"}[row["holds"]]
        case("check", row["method"], outcome, f"{row['means']}: {row['left']} against {row['right']}" if row["holds"] is False else row["means"])
    for place, problem in bad:
        case("record", place, "error", problem)
    suite.attrib |= {"tests": str(len(checks) + len(bad)), "failures": str(counts["failure"]), "errors": str(counts["error"])}
    suites = ElementTree.Element("testsuites", dict(suite.attrib))
    suites.append(suite)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _safe(text: str) -> str:
    return "".join(character if character not in "\ufffe\uffff" else f"\\u{ord(character):04x}" for character in shown(text))
