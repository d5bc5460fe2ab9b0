"""CSV for spreadsheets: no cell of text is taken for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# A cell that begins so is a formula, also in the full-width forms that East Asian versions know. A plain number is none.
# What was marked as text before is marked once more, so that each mark can be taken away again.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def defused(cell: Any) -> Any:
    """The cell; a text that begins like a formula gets a `'` before it, which `undefused` takes away."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def defused_row(cells: Iterable[Any]) -> tuple[list[Any], int]:
    """The cells, each `defused`, and how many of them were marked."""
    before = list(cells)
    safe = [defused(cell) for cell in before]
    return safe, sum(one is not other for one, other in zip(before, safe, strict=True))


def undefused(cell: str) -> str:
    """The cell without the mark of `defused`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable[Any]]) -> tuple[str, int]:
    """The rows as CSV, and how many cells were marked as text."""
    lines, marked = [], 0
    # csv quotes a cell that holds a character of the line end. With \r\n it quotes a lone \r, at which other programs end the line.
    writer = csv.writer(file := io.StringIO(newline=""), lineterminator="\r\n")
    for row in rows:
        safe, count = defused_row(row)
        marked += count
        writer.writerow(safe)
        lines.append(file.getvalue().removesuffix("\r\n"))
        file.seek(0)
        file.truncate()
    return "".join(f"{line}\n" for line in lines), marked
