"""Checks and bad records as JUnit's XML: what a parser reads back."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from blendkit.evaluation.checks import outcomes, parsed
from blendkit.evaluation.junit import junit

ROWS = [{"table": 2, "kind": "model", "method": name, "q": value} for name, value in (("a", 1.0), ("b&\"'", 2.0))]


def read(checks, rows, *arguments) -> ElementTree.Element:
    (suite,) = ElementTree.fromstring(junit(outcomes(map(parsed, checks), rows)[0], *arguments))
    return suite


def test_checks_that_hold_fail_and_cannot_be_computed():
    suite = read(
        ["llms.a.q < 2", "llms.b&\"'.q < 1.5", "llms.zz.q > 1"], ROWS, [("<stdin>:17", "candidates[2].text: expected a string, got null")], ["evaluate|v:1"]
    )
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "errors")} == {
        "name": "blendkit evaluate",
        "tests": "4",
        "failures": "1",
        "errors": "2",
    }
    cases = suite.findall("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("blendkit.check", "llms.a.q < 2"),
        ("blendkit.check", "llms.b&\"'.q < 1.5"),
        ("blendkit.check", "llms.zz.q > 1"),
        ("blendkit.record", "<stdin>:17"),
    ]
    assert len(cases[0]) == 0
    assert cases[1].find("failure").get("message").endswith(": 2.0 against 1.5")
    assert "no llms of the name 'zz'" in cases[2].find("error").get("message")
    assert cases[3].find("error").get("message") == "candidates[2].text: expected a string, got null"
    assert [found.get("value") for found in suite.iter("property")][1:] == ["evaluate|v:1"]


@pytest.mark.parametrize("hostile", ["\x00\x1b[31m", "\ud800", "\ufffe\uffff", "]]>", "a\nb\r\tc", "ü 𝄞", "</testsuite>", "\x85\u2028\u202e"])
def test_no_name_breaks_the_file(hostile):
    rows = [{"table": 2, "kind": "model", "method": hostile, "q": 1.0}]
    # A check cannot name a method with a sign of comparison.
    checks = [] if {"<", ">"} & set(hostile) else [f"llms.{hostile}.q > 2"]
    *cases, bad = read(checks, rows, [(hostile, hostile)], [hostile]).findall("testcase")
    assert [case.find("failure").get("message").endswith(": 1.0 against 2.0") for case in cases] == [True] * len(checks)
    # Nothing is lost by a parser's rules for line ends in attributes.
    assert bad.get("name") == bad.find("error").get("message") and ("\\" in bad.get("name") or bad.get("name") == hostile)


def test_nothing_to_check():
    assert read([], ROWS).get("tests") == "0"
