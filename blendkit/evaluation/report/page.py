"""`evaluate --report DIR`: one HTML page with everything in it; nothing is fetched when it is opened.

Names and texts come from models and may hold anything. In the markup they are escaped; records travel as JSON that no text
in it can end, and the script puts them on the page as text, never as markup. The page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from typing import Any

import orjson

from blendkit.errors import OutputError
from blendkit.evaluation.formats import text_of
from blendkit.evaluation.report.browser import Browser
from blendkit.evaluation.report.plots import as_svg, line_above_figures
from blendkit.evaluation.tables import FIGURES, KINDS, TABLES, Row, judge_of, line_above, note_under, title_of
from blendkit.evaluation.terminal import Best, best_figures, column_title, figure_text, is_best
from blendkit.terminal_text import count_of, shown
from blendkit.version import VERSION

Rows = list[dict[str, Any]]
HERE = Path(__file__).parent
# Rows beyond which a table scrolls in a frame of its own.
TALL = 40
# What the page adds to the line under a table.
HINTS = {2: "Click a heading to sort. Hover over a figure for its 95 % interval (bootstrap over the examples)."}


def make_folder(folder: str) -> None:
    """Makes the page's folder, before there is anything to lose. Raises OutputError when that cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--report {folder}: cannot make the folder: {error.strerror}") from error


def write_page(folder: str, rows: Rows, signatures: list[str], notes: list[str], browser: Browser, examples: int) -> Path:
    """Writes `index.html` into the folder; returns its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / "index.html"
    try:
        path.write_text(page(rows, signatures, notes, browser, examples), encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"--report {folder}: cannot write: {error.strerror}") from error
    return path


def page(rows: Rows, signatures: list[str], notes: list[str], browser: Browser, examples: int) -> str:
    """The whole page."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    drawn = as_svg(rows)
    judge = judge_of(rows)
    sections = [_section(table, [row for row in rows if row["table"] == table], judge) for table in TABLES if table not in (*FIGURES, "judge")]
    figures = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn.items())
    parts = [section for section in sections[:2] if section]
    parts += (
        [f'<section id="figures"><h2>Figures</h2>{_judged(line_above_figures(rows), judge)}<div class="figures">{figures}</div></section>'] if figures else []
    )
    parts += [section for section in sections[2:] if section]
    how_many = f"{len(browser.records):,} of {count_of(examples, 'record')}" if len(browser.records) < examples else f"{count_of(examples, 'record')}"
    legend = "Search looks into requests, references, answers, models and ids. Green: the top that was fused; framed: a fused answer."
    said = "".join(f"<li>{_name(note)}</li>" for note in notes)
    signed = "".join(f"<li><code>{_name(signature)}</code></li>" for signature in signatures)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_digest(script)}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>blendkit evaluate: {count_of(examples, "record")}</title>
<style>{style}</style>
</head>
<body>
<header><h1>blendkit evaluate</h1><p>{count_of(examples, "record")}</p>
<nav>{_navigation(parts)}<a href="#records">Records</a></nav></header>
<main>
{f'<ul class="notes">{said}</ul>' if said else ""}
{"".join(parts)}
<section id="records"><h2>Records</h2><p class="note">{how_many}. {legend}</p>
<div class="browser"><div class="finder"><input id="search" type="search" placeholder="Search records" aria-label="Search records">
<p id="found" role="status"></p><ol id="list"></ol></div><div id="record" tabindex="-1"></div></div>
<noscript><p>The records are shown by the page's script, which is switched off.</p></noscript></section>
<footer><h2>Signatures</h2><ul>{signed}</ul><p>blendkit {escape(VERSION)}</p></footer>
</main>
<script type="application/json" id="data">{_data(browser)}</script>
<script>{script}</script>
</body>
</html>
"""


def _name(text: object) -> str:
    """A name from the stream inside the markup."""
    return escape(shown(text))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(browser: Browser) -> str:
    """JSON that holds no `<`, so that nothing in it can end the element or begin a comment."""
    return orjson.dumps(browser.records, option=orjson.OPT_NON_STR_KEYS).decode().replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _navigation(parts: list[str]) -> str:
    links = []
    for part in parts:
        anchor = part.split('id="', 1)[1].split('"', 1)[0]
        title = part.split("<h2>", 1)[1].split("</h2>", 1)[0]
        links.append(f'<a href="#{anchor}">{title}</a>')
    return "".join(links)


def _judged(line: str, judge: Row | None) -> str:
    """The line on the judge above what it feeds."""
    return f'<p class="note judge{" chance" if judge and judge["at_chance"] else ""}">{_name(line)}</p>' if line else ""


def _section(table: Any, rows: Rows, judge: Row | None) -> str:
    if not rows:
        return ""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("table", "intervals", "kind", "method")]
    hidden = {"baseline", "comparisons"} | ({"examples"} if len({row.get("examples") for row in rows}) == 1 else set())
    columns = [column for column in columns if column not in hidden]
    heads = "".join(f'<th scope="col"><button type="button">{_name(_heading(table, column, judge))}</button></th>' for column in columns)
    body, kind, best_of = [], None, best_figures(rows) if table in (2, 3) else {}
    for row in rows:
        if table == 2 and row["kind"] != kind:
            kind = row["kind"]
            body.append(f'<tr class="kind"><th colspan="{len(columns) + 1}">{KINDS[kind]}</th></tr>')
        cells = "".join(_cell(table, row, column, best_of) for column in columns)
        body.append(f'<tr><th scope="row"><bdi>{_name(row["method"])}</bdi></th>{cells}</tr>')
    words = " ".join(filter(None, (note_under(table, rows), HINTS.get(table))))
    note = _judged(line_above(table, rows, judge), judge) + (f'<p class="note">{_name(words)}</p>' if words else "")
    name = table if isinstance(table, str) else f"table-{table}"
    frame = "scroll tall" if len(rows) > TALL else "scroll"
    first = '<th scope="col"><button type="button">Method</button></th>'
    whole = f"<table><thead><tr>{first}{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<section id="{name}"><h2>{escape(title_of(table, judge))}</h2>{note}<div class="{frame}">{whole}</div></section>'


def _heading(table: Any, column: str, judge: Row | None) -> str:
    if table in (2, 3):
        return column_title(column, judge)
    return column.removeprefix("over ") if table == "wins" else column.replace("_", " ")


def _cell(table: Any, row: dict[str, Any], column: str, best_of: Best) -> str:
    value = row.get(column)
    if value is None:
        return "<td>–</td>"
    if isinstance(value, str | bool):
        return f"<td>{_name(text_of(value))}</td>"
    text = figure_text(column, value) if table in (2, 3) else text_of(value)
    interval = row.get("intervals", {}).get(column)
    hint = f' title="{figure_text(column, interval[0])} to {figure_text(column, interval[1])}"' if interval else ""
    style = ""
    if table == "wins":
        # Blue where the row wins, red where it loses; stronger with the distance from 50.
        strength = min(0.75, abs(value - 50) / 60)
        style = f' style="background:rgba({"37,99,168" if value > 50 else "190,60,50"},{strength:.2f})"'
    best = table in (2, 3) and is_best(row, column, best_of)
    return f'<td data-value="{value}"{hint}{style}>{f"<b>{text}</b>" if best else text}</td>'
