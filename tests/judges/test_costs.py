"""What docs/judge.md says that each way to judge costs, counted at a server."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT, lines
from test_judges import of_quality

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "judge.md").read_text().partition("## What each way costs")[2].partition("\n## ")[0].splitlines()
    if line.startswith("| `")
]


def reply(body) -> str:
    content = body["messages"][0]["content"]
    if "The criterion is" in content:
        return '{"reason": "So.", "grade": "4"}'
    return " > ".join(re.findall(r"^=+ ANSWER ([A-Z])$", content, re.MULTILINE)) if "Put the answers in order" in content else '{"verdict": "A"}'


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_way_makes_as_many_calls_as_the_page_says(called, serve, row):
    server = serve(reply=reply)
    command, *flags = re.match("`(.*?)`", row[0])[1].split()
    model = ["--metric", "judge:openai:x"] if command == "score" else ["-m", "openai:x"]
    flags = [flag for flag in flags if flag not in ("--metric", "judge:MODEL")]
    code, _, err = called(command, "-q", *model, *flags, "--base-url", server.url, stdin=lines([of_quality(*range(11))]))
    assert (code, len(server.bodies)) == (0, int(row[2])), err


def test_the_formulas_of_tokens_give_the_numbers():
    """With the page's f, x, c and y; what is rounded there may be off by 1 %."""
    x, c, y, n = 57.3, 199.55, 408.8, 11
    pair, pair_shown, eleven, eleven_shown = 141, 161, 212, 230
    both = [n * (n - 1) * (f + x + shown + 2 * c) for f, shown in ((pair, 0), (pair_shown, y))]
    expected = [
        both,
        [one / 2 for one in both],
        [2 * (f + x + shown + n * c) for f, shown in ((eleven, 0), (eleven_shown, y))],
        None,
        [3 * n * (154.3 + x + c)],
    ]
    assert len(ROWS) == len(expected)
    for row, values in zip(ROWS, expected, strict=True):
        if values:
            assert [int(number.replace(",", "")) for number in re.findall(r"[\d,]{5,}", row[4])] == [pytest.approx(value, rel=0.01) for value in values]
