"""`evaluate --report DIR`: one HTML page with everything in it; nothing is fetched when it is opened.

Names and texts come from models and may hold anything. In the markup they are escaped; records travel as JSON that no text
in it can end, and the script puts them on the page as text, never as markup. The page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

import orjson

from blendkit.errors import OutputError
from blendkit.evaluation.layout import WORDS, Cell, Layout, laid_out
from blendkit.evaluation.report.browser import Browser
from blendkit.evaluation.report.ink import Drawn
from blendkit.evaluation.report.judges import cards
from blendkit.evaluation.report.plots import as_svg, line_above_figures
from blendkit.evaluation.report.trust_plots import ABOUT_JUDGES
from blendkit.evaluation.tables import Row, Rows, answer_of, judge_of
from blendkit.terminal_text import count_of, shown
from blendkit.version import VERSION

HERE = Path(__file__).parent
# Rows beyond which a table scrolls in a frame of its own.
TALL = 40
# Tables of the section on judges, where there is an audit.
OF_JUDGES = ("audit", "effects", "reliability", "confusion", "judges", "panel")
# What the page adds to the line under a table.
HINTS: dict[int | str, str] = {2: "Click a heading to sort. Under a figure stands its 95 % interval (bootstrap over the examples)."}


def make_folder(folder: str) -> None:
    """Makes the page's folder, before there is anything to lose. Raises OutputError when that cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--report {folder}: cannot make the folder: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Made:
    """What the page is made of: the data's name, the command, the time, and how many records."""

    data: str
    command: str
    time: datetime
    examples: int


def write_page(folder: str, made: Made, rows: Rows, signatures: list[str], notes: list[str], browser: Browser) -> Path:
    """Writes `index.html` into the folder; returns its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / "index.html"
    try:
        path.write_text(page(made, rows, signatures, notes, browser), encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"--report {folder}: cannot write: {error.strerror}") from error
    return path


def page(made: Made, rows: Rows, signatures: list[str], notes: list[str], browser: Browser) -> str:
    """The whole page."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    drawn = as_svg(rows)
    judge = judge_of(rows)
    audited = any(row["table"] == "audit" for row in rows)
    sections = {layout.table: _section(layout, judge, audited and layout.table in OF_JUDGES) for layout in laid_out(rows)}
    about, figures = (_figures({one: svg for one, svg in drawn.items() if (one.table in ABOUT_JUDGES) is judges}) for judges in (True, False))
    parts = [sections.pop(table) for table in ("checks", 2, 3) if table in sections]
    if "audit" in sections:
        inner = "".join(sections.pop(table) for table in OF_JUDGES if table in sections)
        parts.append(f'<section id="trust"><h2>Judges</h2>{cards(rows)}<div class="figures">{about}</div>{inner}</section>')
    parts += (
        [f'<section id="figures"><h2>Figures</h2>{_judged(line_above_figures(rows), judge)}<div class="figures">{figures}</div></section>'] if figures else []
    )
    parts += sections.values()
    all_records = count_of(made.examples, "record")
    how_many = f"{len(browser.records):,} of {all_records}" if len(browser.records) < made.examples else all_records
    day, time = made.time.strftime("%Y-%m-%d"), made.time.strftime("%Y-%m-%d %H:%M UTC")
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
<title>{_name(made.data)}, {day}: blendkit evaluate, {all_records}</title>
<style>{style}</style>
</head>
<body>
<header><h1><bdi>{_name(made.data)}</bdi></h1><p class="answer">{_name(answer_of(rows))}</p>
<p>{all_records}, {time}: <code>{_name(made.command)}</code></p>
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


def _figures(drawn: dict[Drawn, str]) -> str:
    return "".join(f"<figure><figcaption>{_name(one.title)}</figcaption>{svg}</figure>" for one, svg in drawn.items())


def _section(layout: Layout, judge: Row | None, inner: bool = False) -> str:
    """A table under its title; an `inner` one is a part of the section on judges."""
    words = " ".join(filter(None, (layout.note, HINTS.get(layout.table))))
    note = _judged(layout.above, judge) + (f'<p class="note">{_name(words)}</p>' if words else "")
    name = layout.table.replace(" ", "-") if isinstance(layout.table, str) else f"table-{layout.table}"
    table = _table(layout) if layout.groups else ""
    if layout.rest is not None:
        table += f"<details><summary>{escape(layout.folded)}</summary>{_table(layout.rest)}</details>"
    element, head = ("div", "h3") if inner else ("section", "h2")
    return f'<{element} id="{name}"><{head}>{escape(layout.title)}</{head}>{note}{table}</{element}>'


def _table(layout: Layout) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{_name(heading)}</button></th>' for heading in layout.headings)
    body = []
    for kind, rows in layout.groups:
        if kind:
            body.append(f'<tr class="kind"><th colspan="{len(layout.columns)}">{kind}</th></tr>')
        for first, *cells in rows:
            others = (_cell(layout.table, column, cell) for column, cell in zip(layout.columns[1:], cells, strict=True))
            body.append(f'<tr><th scope="row"><bdi>{_name(first.text)}</bdi></th>{"".join(others)}</tr>')
    frame = "scroll tall" if len(layout.rows) > TALL else "scroll"
    return f'<div class="{frame}"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(table: int | str, column: str, cell: Cell) -> str:
    if cell.value is None:
        words = ' class="words"' if column in WORDS else ""
        return f"<td{words}>{_name(cell.text)}</td>"
    style = ""
    if table == "wins":
        # Blue where the row wins, red where it loses; stronger with the distance from 50.
        strength = min(0.75, abs(cell.value - 50) / 60)
        style = f' style="background:rgba({"37,99,168" if cell.value > 50 else "190,60,50"},{strength:.2f})"'
    interval = f"<small>{cell.low} to {cell.high}</small>" if cell.low else ""
    return f'<td data-value="{cell.value}"{style}>{f"<b>{cell.text}</b>" if cell.best else cell.text}{interval}</td>'
