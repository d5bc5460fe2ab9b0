"""The page of `evaluate --report`: safe against what candidates hold, and right in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from conftest import lines, parsed
from made_up import made_up, with_comparisons

import blendkit as library
from blendkit.errors import CheckFailed

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
NAME = "m\"'<b>$x_1$&|`\n\\textbf{x}"


def hostile() -> list[dict]:
    records = with_comparisons(made_up(6))
    for record in records:
        names = {"a": NAME, "b": "نموذج عربي", "c": EVIL, "d": "d"}
        for candidate in record["candidates"]:
            candidate["model"] = names[candidate["model"]]
        record["cmp_results"] = {",".join(names[part] for part in key.split(",")): value for key, value in record["cmp_results"].items()}
        record["instruction"] = EVIL + "\u2028 \u202eright to left"
    records[0]["candidates"][0]["text"] = EVIL
    records[1]["candidates"][1]["text"] = "long " * 210_000
    records[2]["candidates"][2]["text"] = "مرحبا بالعالم, " * 20 + "<!-- <script>"
    records[3]["candidates"].append({"model": EVIL, "text": "]]>--></style>", "sources": [0, 1]})
    records[3]["output"] = None
    return records


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.data: dict[str, str] = {}

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.found[-1] if self.found else ("", {})
        if tag == "script":
            self.data.setdefault(attributes.get("id", "code"), data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The hostile page, its text and the run that made it."""
    folder = tmp_path_factory.mktemp("page")
    command = [sys.executable, "-m", "blendkit", "evaluate", "--report", str(folder / "out"), "--aggregations", "--plot", str(folder / "p.svg")]
    command += ["--baseline", "d", "--length-controlled", "d", "--format", "markdown"]
    done = subprocess.run(command, input=lines(hostile()).encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder, (folder / "out" / "index.html").read_text(), done.stdout.decode()


def test_nothing_of_a_record_becomes_markup(page):
    _, text, _ = page
    tags = Tags()
    tags.feed(text)
    names = [tag for tag, _ in tags.found]
    assert names.count("script") == 2 and "img" not in names and not any("onerror" in attributes for _, attributes in tags.found)
    records = json.loads(tags.data["data"])
    assert [record["id"] for record in records] == ["0", "1", "2", "3", "4", "5"]
    assert records[0]["candidates"][0]["text"] == EVIL
    assert "<" not in tags.data["data"]


def test_nothing_is_fetched_and_only_the_pages_script_runs(page):
    _, text, _ = page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy and "unsafe-inline'; script" not in policy
    outside = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', text))
    assert all(address.startswith("data:image/png;base64,") for address in outside)
    assert not re.search(r"url\((?!#)", text)


def test_a_long_text_is_cut_and_says_so(page):
    _, text, _ = page
    assert len(text) < 1_500_000
    tags = Tags()
    tags.feed(text)
    shown = json.loads(tags.data["data"])[1]["candidates"][1]
    assert (len(shown["text"]), shown["characters"]) == (20_000, 1_050_000)


def test_the_tables_survive_the_same_names(page):
    _, _, markdown = page
    rows = [row for row in markdown.splitlines() if row.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[: 2 + 4]}) == 1
    assert "<script" not in markdown and "<img" not in markdown


def test_figures_are_well_formed_and_hold_the_names(page):
    folder, text, _ = page
    for svg in [(folder / "p.svg").read_text(), *re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]:
        root = ElementTree.fromstring(svg[svg.index("<svg") :])
        words = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert words
    assert any("نموذج عربي" in (word or "") for word in words) or "نموذج عربي" in text


def test_the_page_says_what_it_is_made_of_and_opens_with_the_answer(page):
    _, text, _ = page
    title = re.search(r"<title>(.*?)</title>", text)[1]
    assert re.fullmatch(r"standard input, \d{4}-\d\d-\d\d: blendkit evaluate, 6 records", title)
    header = text[text.index("<header>") : text.index("</header>")]
    assert "<code>blendkit evaluate --report " in header and re.search(r"\d\d:\d\d UTC", header)
    assert header.index('class="answer"') < header.index("<code>")


def test_intervals_are_seen_without_a_pointer_and_columns_have_one_number_of_decimals(page):
    _, text, _ = page
    table = text[text.index('id="table-2"') : text.index('id="table-3"')]
    assert ' title="' not in table
    for row in re.findall(r'<tr><th scope="row">.*?</tr>', table):
        _, *cells = re.findall(r"<td data-value.*?</td>", row)  # the first is the number of examples
        assert cells and all(re.search(r"<small>-?[\d.,]+ to -?[\d.,]+</small>", cell) for cell in cells)
    for section in re.findall(r"<tbody>.*?</tbody>", text, re.DOTALL):
        rows = [re.findall(r"<td[^>]*>(?:<b>)?([^<]*)", row) for row in re.findall(r'<tr><th scope="row">.*?</tr>', section)]
        for column in zip(*rows, strict=True):
            figures = [cell for cell in column if re.fullmatch(r"-?[\d,]+(\.\d+)?", cell)]
            assert len({len(cell.partition(".")[2]) for cell in figures}) <= 1, column


def test_figures_go_by_the_readers_colours_and_carry_intervals_and_names(page):
    _, text, _ = page
    svgs = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text, re.DOTALL))
    assert len(svgs) == 3 and not any("Win rates" in title for title in svgs) and text.count("<h2>Win rates: row over column") == 1
    for title, svg in svgs.items():
        colours = set(re.findall(r"#[0-9a-f]{6}", svg))
        # Only the ranks have colours of their own, which are seen on light and on dark.
        assert "var(--ink)" in svg and (not colours or title.startswith("Share of each rank")), (title, colours)
        assert 'role="img" aria-label="' in svg
    metrics = next(svg for title, svg in svgs.items() if title.startswith("Each metric"))
    words = "".join(ElementTree.fromstring(metrics).itertext())
    assert words.count("نموذج عربي") == 3 and metrics.count("var(--dim)") > 2 * 3 * 4
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@media screen and (prefers-color-scheme: dark)" in style and "@media print" in style and "@media (max-width: 860px)" in style


def test_names_of_columns_are_for_people_and_no_flag_is_named_that_was_not_given(called, tmp_path):
    pytest.importorskip("matplotlib")
    records = made_up(6)
    for record in records:
        del record["cmp_results"]
    code, _, err = called("evaluate", "--report", tmp_path, "--oracle", "bleu", "--assert", "llms.best.rank_by_bleu < 2", "--expect", 6, stdin=lines(records))
    text = (tmp_path / "index.html").read_text()
    notes = re.search(r'<ul class="notes">(.*?)</ul>', text)
    assert code == 3 and (notes is None or "--" not in notes[1]) and "--ratings" not in err
    body = re.sub(r"<script.*?</script>|<style.*?</style>|<svg.*?</svg>|<code>.*?</code>|<[^>]*>", " ", text, flags=re.DOTALL)
    assert not re.findall(r"\b[a-z]+_[a-z_]+\b", body)
    assert "Rank by bleu of the best LLM, " in body and "does not hold" in body
    _, _, err = called("evaluate", "--ratings", "--oracle", "bleu", stdin=lines(records))
    assert "no judge's verdicts in the stream, which --ratings would look at" in err


def test_many_dots_have_numbers_and_a_key(tmp_path):
    pytest.importorskip("matplotlib")
    from blendkit.evaluation.report.plots import as_svg

    rows = [
        {"table": 2, "kind": "model", "method": f"llm {number}", "q": 1.0 * number, "gpt_rank": 1.0 + number, "intervals": {"q": [number - 1.0, number + 1.0]}}
        for number in range(40)
    ]
    (svg,) = as_svg(rows).values()
    words = list(ElementTree.fromstring(svg).itertext())
    assert {str(number) for number in range(1, 41)} <= {word.strip() for word in words}
    key = "".join(words).replace("\u00a0", " ")
    assert all(f"{number + 1} llm {number}" in key for number in range(40))


def test_the_page_keeps_as_many_records_as_asked(blendkit, tmp_path):
    done = blendkit("evaluate", "-q", "--report", tmp_path / "a" / "b", "--report-records", 2, stdin=lines(made_up(5)))
    assert done.returncode == 0 and done.stderr == f"blendkit evaluate: the page is {tmp_path / 'a' / 'b' / 'index.html'}\n"
    text = (tmp_path / "a" / "b" / "index.html").read_text()
    assert "2 of 5 records" in text
    # The page shows ratings without being asked; what goes to stdout is what it is without the page.
    assert 'id="ratings"' in text and not {row["table"] for row in parsed(done.stdout)} & {"ratings", "wins", "judges"}


def test_the_page_of_a_stream_without_a_judge(blendkit, tmp_path):
    records = made_up(3)
    for record in records:
        del record["cmp_results"]
    done = blendkit("evaluate", "--report", tmp_path, stdin=lines(records))
    assert done.returncode == 0, done.stderr
    assert "no judge&#x27;s verdicts in the stream" in (tmp_path / "index.html").read_text()
    plot = blendkit("evaluate", "--plot", tmp_path / "x.png", stdin=lines(records))
    assert plot.returncode == 74 and "nothing to draw" in plot.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--plot", "x.jpg"], 2, "expected a name that ends with .png, .svg, .pdf"),
        (["--plot", "/none/x.png"], 74, "there is no such folder"),
        (["--report", "/dev/null/x"], 74, "cannot make the folder"),
    ],
)
def test_a_page_or_plot_that_cannot_be_is_refused_before_the_work(blendkit, arguments, code, message):
    done = blendkit("evaluate", *arguments, stdin="not read")
    assert done.returncode == code
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_evaluate_from_python_does_all_that_the_command_does(tmp_path):
    records = made_up(6)
    with pytest.raises(CheckFailed, match="1 of 2 checks does not hold"):
        library.evaluate(records, ratings=True, report=str(tmp_path), plot=str(tmp_path / "p.svg"), checks=["llms.a.top3 > 0", "llms.a.top3 > 100"])
    assert (tmp_path / "index.html").is_file() and (tmp_path / "p.svg").is_file()
    rows = library.evaluate(records, versus=["b"], baseline="a", ratings=True, seed=3)
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    again = library.evaluate(records, versus=["b"], baseline="a", ratings=True, seed=3, compare=str(tmp_path / "rows.jsonl"))
    assert again[: len(rows)] == rows and {row["change"] for row in again if row["table"] == "compare"} == {0}
    with pytest.raises(TypeError, match="controled"):
        library.evaluate(records, controled="a")


@pytest.mark.parametrize("form", ["png", "svg"])
def test_plot_is_one_file(blendkit, tmp_path, form):
    path = tmp_path / f"plot.{form}"
    assert blendkit("evaluate", "-q", "--ratings", "--plot", path, stdin=lines(made_up(8))).returncode == 0
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium by selenium."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on the PATH (Debian: apt install chromium chromium-driver)")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = selenium.webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_in_a_browser(browser, page, width):
    folder, _, _ = page
    browser.set_window_size(width, 900)
    browser.get(f"file://{folder / 'out' / 'index.html'}")
    assert browser.title.endswith(": blendkit evaluate, 6 records")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    # The page itself never scrolls sideways.
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.execute_script("return document.querySelectorAll('#records img, #records script').length") == 0

    def figures(column: int) -> list[float]:
        script = "return [...document.querySelectorAll('#table-2 tbody tr')].slice(1, 5).map(row => row.cells[arguments[0]].dataset.value)"
        return [float(value) for value in browser.execute_script(script, column)]

    before = figures(1)
    head = browser.find_elements("css selector", "#table-2 thead th button")[1]
    browser.execute_script("arguments[0].click()", head)
    assert figures(1) == sorted(before, reverse=True)
    browser.execute_script("arguments[0].click()", head)
    assert figures(1) == sorted(before)

    search = browser.find_element("id", "search")
    search.send_keys("مرحبا")
    assert browser.find_element("id", "found").text == "1 of 6 records"
    assert "Record 2" in browser.find_element("id", "record").text
    search.clear()
    search.send_keys("nothing has this")
    assert browser.find_element("id", "found").text == "0 of 6 records"
    search.clear()
    search.send_keys("long")
    assert "more characters are not shown" in browser.execute_script("return document.getElementById('record').textContent")
    assert browser.title.endswith(": blendkit evaluate, 6 records")
