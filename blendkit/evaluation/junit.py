"""Checks and bad records as JUnit's XML, which CI systems show beside their tests."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from blendkit.errors import UsageError
from blendkit.evaluation.checks import OPERATORS, Rows, figure, parsed
from blendkit.terminal_text import shown
from blendkit.version import VERSION


def junit(checks: Sequence[str], rows: Rows, bad: Sequence[tuple[str, str]] = (), signatures: Sequence[str] = ()) -> bytes:
    """A suite `blendkit evaluate` with a test case a check, which fails where it does not hold, and one for each bad record, an error.

    `bad` are (place, what is wrong), such as `<stdin>:17` and `candidates[2].text: expected a string, got null`. A check of a figure that is not in the
    tables is an error, too. Characters that XML cannot hold are shown as a terminal shows them. `signatures` are the suite's properties.
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

    for check in checks:
        left, sign, right = parsed(check)
        try:
            values = figure(left, rows), figure(right, rows)
        except UsageError as error:
            case("assert", check, "error", str(error))
            continue
        holds = OPERATORS[sign](*values)
        case("assert", check, None if holds else "failure", f"{values[0]:g} {sign} {values[1]:g} does not hold")
    for place, problem in bad:
        case("record", place, "error", problem)
    suite.attrib |= {"tests": str(len(checks) + len(bad)), "failures": str(counts["failure"]), "errors": str(counts["error"])}
    suites = ElementTree.Element("testsuites", dict(suite.attrib))
    suites.append(suite)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _safe(text: str) -> str:
    return "".join(character if character not in "\ufffe\uffff" else f"\\u{ord(character):04x}" for character in shown(text))
