"""What candidates are called: `cmp_results` of any model names, several candidates of one model, and names that a terminal, a sheet or a page would obey."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from conftest import lines, parsed
from hypothesis import given
from hypothesis import strategies as st
from test_terminal_text import OBEYED

from blendkit.errors import RecordError
from blendkit.records import verdicts_of


def with_results(models: list[str], results: dict[str, str], **more: object) -> dict:
    candidates = [{"model": model, "text": f"answer {place}"} for place, model in enumerate(models)]
    return {"id": "0", "instruction": "i", "candidates": candidates, "cmp_results": results, **more}


# Models, a key, and the candidate that it names first.
READ = {
    "no comma in a name": (["a", "b"], "b,a", 1),
    "a comma in the first": (["b", "org, inc/m"], "org, inc/m,b", 1),
    "a comma in the second": (["org, inc/m", "b"], "b,org, inc/m", 1),
    "commas in both": ([",", "x,y,z", "other"], "x,y,z,,", 1),
    "a name begins another": (["org", "org, inc/m", "b"], "org, inc/m,b", 1),
    "an empty name": (["b", ""], ",b", 1),
    "a comma at a name's end": (["b", "a,"], "a,,b", 1),
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("case", READ)
def test_a_key_is_split_at_the_comma_that_gives_two_candidates(called, case, as_text):
    models, key, first = READ[case]
    results = {key: "A is better"}
    record = with_results(models, json.dumps(results) if as_text else results)
    code, out, err = called("rank", "--by", "judge:mixinstruct", stdin=lines([record]))
    assert code == 0, err
    (done,) = parsed(out)
    assert done["top"][0] == first and done["cmp_results"] == record["cmp_results"]


def candidate(model: str, text: str = "t", decoding: str | None = None, **more: object) -> dict:
    return {"model": model, "text": text, **({"decoding_method": decoding} if decoding else {}), **more}


REFUSED = {
    "two ways": (["a", "a,a"], "a,a,a", "cmp_results: 'a,a,a': expected two candidates, got 2 ways to read it: as 'a' with 'a,a' and as 'a,a' with 'a'"),
    "no way": (["org, inc/m", "b"], "org, inc/m,c", "cmp_results: 'org, inc/m,c' gives no two candidates' models, at whichever comma it is split"),
    "no second": (["a", "b"], "a,c", "cmp_results: 'a,c' names 'c', which is no candidate's model"),
    "no comma": (["a", "b"], "a", "cmp_results: 'a': expected two models with a comma between them"),
    "no comma, and an empty name": (["a", ""], "a", "cmp_results: 'a': expected two models with a comma between them"),
    "two samples": (["a", "a", "b"], "a,b", "cmp_results: 'a,b' names 'a': 2 candidates are called so; name one of a#1, a#2"),
    "a line end": (["a\nb", "c"], "a\nb,d", r"cmp_results: 'a\nb,d' names 'd', which is no candidate's model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_of_no_two_candidates_or_of_more_is_refused(called, case):
    models, key, message = REFUSED[case]
    stream = lines([with_results(models, {key: "A is better"})])
    for arguments in (["rank", "--by", "judge:mixinstruct"], ["evaluate", "-q"]):
        assert called(*arguments, stdin=stream) == (65, "", f"blendkit {arguments[0]}: <stdin>:1: {message}\n")


def test_keys_name_candidates_of_one_model_by_number_or_decoding(called):
    candidates = [candidate("m", decoding="beam(4)"), candidate("m", decoding="greedy"), candidate("s"), candidate("s")]
    record = {"id": "0", "instruction": "i", "candidates": candidates}
    for key, winner in {"m · greedy,s#1": 1, "m#1,s#2": 0, "s#2,m · beam(4)": 3}.items():
        code, out, err = called("rank", "--by", "judge:mixinstruct", stdin=lines([record | {"cmp_results": {key: "A is better"}}]))
        assert code == 0 and parsed(out)[0]["top"][0] == winner, err
    code, _, err = called("evaluate", "-q", stdin=lines([record | {"cmp_results": {"m,s#1": "A is better"}}]))
    assert code == 65 and "'m,s#1' names 'm': 2 candidates are called so; name one of m · beam(4), m · greedy" in err


@given(st.lists(st.text("a,", max_size=4), min_size=2, max_size=5, unique=True), st.data())
def test_a_key_that_is_read_is_read_right(models, data):
    a, b = data.draw(st.permutations(range(len(models))))[:2]
    record = with_results(models, {f"{models[a]},{models[b]}": "A is better"})
    try:
        (verdict,) = verdicts_of(record)["mixinstruct"]
    except RecordError as error:
        assert "ways to read it" in str(error)
    else:
        assert (verdict["a"], verdict["b"]) == (a, b)


def test_a_long_key_is_read_at_once(called):
    models = ["," * 200_000, "b", *("," * length for length in range(1, 400))]
    code, _, err = called("evaluate", "-q", stdin=lines([with_results(models, {"," * 400_000: "A is better"})]))
    assert code == 65 and "gives no two candidates' models" in err


def decoded(number: int, decodings: tuple[str | None, ...] = ("beam(2)", "greedy"), **more: object) -> dict:
    """`smol` by each decoding, better from one to the next, and `other`; the judge agrees with the score."""
    candidates = [candidate("smol", "t" * (place + 1), found, scores={"q": float(place)}) for place, found in enumerate(decodings)]
    candidates.append(candidate("other", "ttt", scores={"q": 0.5}))
    values = [one["scores"]["q"] for one in candidates]
    pairs = [(a, b) for a in range(len(values)) for b in range(a + 1, len(values))]
    verdicts = {"j": [{"a": a, "b": b, "verdict": "A" if values[a] > values[b] else "B", "shown": [a, b]} for a, b in pairs]}
    return {"id": str(number), "instruction": "i", "candidates": candidates, "verdicts": verdicts, **more}


def methods_of(rows: list[dict], table: object) -> list[str]:
    return [row["method"] for row in rows if row["table"] == table]


def test_decodings_of_one_model_are_methods_in_all_tables_and_on_the_page(called, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--ratings", "--versus", "smol · greedy", "--baseline", "smol · beam(2)", "--length-controlled", "smol · beam(2)", "--report", tmp_path]
    code, out, err = called("evaluate", *arguments, stdin=lines([decoded(number) for number in range(4)]))
    assert code == 0, err
    rows = parsed(out)
    llms = {row["method"]: row for row in rows if row["table"] == 2 and row["kind"] == "model"}
    assert {name: (row["q"], row["judge_rank"], row["not_worse_than_smol · greedy"]) for name, row in llms.items()} == {
        "smol · greedy": (1.0, 1.0, 100.0),
        "other": (0.5, 2.0, 0.0),
        "smol · beam(2)": (0.0, 3.0, 0.0),
    }
    for table in ("firsts", "distribution", "ratings", "wins"):
        assert set(methods_of(rows, table)) == {*llms}, table
    assert {row["method"]: row["share"] for row in rows if row["table"] == "firsts"}["smol · greedy"] == 100.0
    tests = {(row["method"], row["column"]): row["difference"] for row in rows if row["table"] == "tests"}
    assert tests["smol · greedy", "q"] == 1.0 and "smol · beam(2)" not in {method for method, _ in tests}
    assert set(methods_of(rows, "length")) == {"smol · greedy", "other"}
    page = (tmp_path / "index.html").read_text()
    assert '"model":"smol · beam(2)"' in page and "<bdi>smol · beam(2)</bdi>" in page and "<bdi>smol</bdi>" not in page
    assert "smol · beam(2)" in err


@pytest.mark.parametrize("flag", ["--versus", "--length-controlled"])
def test_a_flag_that_names_several_candidates_is_refused(called, flag):
    stream = lines([decoded(0)])
    refused = f"blendkit evaluate: <stdin>:1: candidates: {flag} smol: 2 candidates are called so; name one of smol · beam(2), smol · greedy\n"
    assert called("evaluate", "-q", flag, "smol", stdin=stream) == (65, "", refused)
    refused = f"blendkit evaluate: <stdin>:1: candidates: {flag} smol: 2 candidates are called so; name one of smol#1, smol#2\n"
    assert called("evaluate", "-q", flag, "smol", stdin=lines([decoded(0, ("greedy", "greedy"))])) == (65, "", refused)


def test_a_baseline_that_is_no_method_names_those_that_are(called):
    code, out, err = called("evaluate", "-q", "--baseline", "smol", stdin=lines([decoded(0)]))
    assert (code, out) == (2, "")
    assert "--baseline smol: no such method; there are smol · greedy, other, smol · beam(2), " in err


def test_samples_by_one_decoding_are_one_method_and_are_told_apart_by_number(called):
    records = [decoded(number, ("greedy", "greedy", "beam(2)")) for number in range(3)]
    code, out, err = called("evaluate", "--versus", "smol · greedy#2", "--versus", "smol#3", stdin=lines(records))
    assert code == 0, err
    rows = {row["method"]: row for row in parsed(out) if row["table"] == 2}
    assert rows["smol · greedy"]["q"] == 0.5 and rows["smol · beam(2)"]["q"] == 2.0
    # Of the samples, one is the second itself, and the other is worse.
    assert rows["smol · greedy"]["not_worse_than_smol · greedy#2"] == 50.0 and rows["other"]["not_worse_than_smol · greedy#2"] == 0.0
    assert rows["smol · greedy"]["not_worse_than_smol#3"] == 0.0


def test_a_candidate_of_unknown_decoding_beside_known_ones_has_a_method(called):
    code, out, err = called("evaluate", "-q", stdin=lines([decoded(0, (None, "greedy"))]))
    assert code == 0, err
    assert {row["method"] for row in parsed(out) if row["table"] == 2 and row["kind"] == "model"} == {"smol · unnamed", "smol · greedy", "other"}


def test_a_stream_in_which_a_model_is_alone_here_and_by_several_decodings_there_is_told_so(called):
    alone, several = decoded(0, ("greedy",)), [decoded(number) for number in (1, 2)]
    for records in ([alone, *several], [*several, alone]):
        code, out, err = called("evaluate", "-q", "--versus", "smol · greedy", stdin=lines(records))
        assert code == 0, err
        found = {row["method"]: row["examples"] for row in parsed(out) if row["table"] == 2 and row["kind"] == "model"}
        assert found == {"smol": 1, "smol · beam(2)": 2, "smol · greedy": 2, "other": 3}
        note = "smol: a method of one name in some records, and of several (by decoding, or fused) in others; these rows are of different records"
        assert err.count(note) == 1
    for records in ([alone], several):
        assert "different records" not in called("evaluate", "-q", stdin=lines(records))[2]


def test_a_fused_answer_of_a_fuser_with_a_models_name(called):
    records = []
    for number in range(3):
        record = decoded(number, ("greedy",))
        fused = len(record["candidates"])
        record["candidates"].append(candidate("smol", "ttttt", scores={"q": 2.0}, sources=[0, 1]))
        record["verdicts"]["j"] += [{"a": index, "b": fused, "verdict": "B", "shown": [index, fused]} for index in range(fused)]
        records.append(record)
    code, out, err = called("evaluate", "-q", "--ratings", "--versus", "smol", stdin=lines(records))
    assert code == 0, err
    rows = parsed(out)
    kinds = {(row["kind"], row["method"]): row["not_worse_than_smol"] for row in rows if row["table"] == 2}
    assert kinds["model", "smol"] == 100.0 and kinds["fused", "smol · fused"] == 100.0 and kinds["model", "other"] == 100.0
    assert methods_of(rows, "ratings")[0] == "smol · fused" and set(methods_of(rows, "ratings")) == {"smol", "smol · fused", "other"}


def test_a_model_whose_name_is_that_of_another_models_method_is_refused(called):
    record = decoded(0)
    record["candidates"][2]["model"] = "smol · greedy"
    code, _, err = called("evaluate", stdin=lines([record]))
    assert code == 65 and err.endswith("<stdin>:1: candidates[2].model: expected another name: the tables have 'smol · greedy' for a candidate of 'smol'\n")


def test_a_baseline_whose_name_an_llm_and_a_ranker_share(called):
    records = [decoded(number, ("greedy",), ranks={"other": [1, 2]}) for number in range(3)]
    code, out, err = called("evaluate", "-q", "--baseline", "other", stdin=lines(records))
    assert code == 0 and "--baseline other is llms.other; name rankers.other for the other of this name" in err
    assert {row["kind"] for row in parsed(out) if row["table"] == "tests" and row["method"] == "other"} == {"ranker"}
    code, out, err = called("evaluate", "-q", "--baseline", "rankers.other", stdin=lines(records))
    assert code == 0 and err == "" and {row["kind"] for row in parsed(out) if row["table"] == "tests" and row["method"] == "other"} == {"model"}


def test_rank_by_the_margin_over_one_of_several_candidates_of_a_model(called):
    record = decoded(0)
    record["comparisons"] = {"p": {"pairs": [[i, j, float(j - i)] for i in range(3) for j in range(3) if i != j]}}
    for name in ("smol · greedy", "smol#2"):
        code, out, err = called("rank", "--by", "p", "--reference", name, stdin=lines([record]))
        assert code == 0 and parsed(out)[0]["ranks"] == {f"p:reference-{name}": [1, 2, 3]}, err
    code, _, err = called("rank", "--by", "p", "--reference", "smol", stdin=lines([record]))
    assert code == 65 and "--reference smol: 2 candidates are called so; name one of smol · beam(2), smol · greedy" in err


# One name with all that is obeyed: a formula's sign, a line's end, a tab, a terminal's command, a turned direction of writing.
EVIL, ESCAPED = "=a\nb\tc\x1b\u202ed", r"=a\nb\tc\x1b\u202ed"


def evil_records() -> list[dict]:
    """Records whose models, scores, judges, rankers, comparisons, sources, signatures and ids all have such names."""
    records = []
    for number in range(4):
        candidates = [candidate(f"{EVIL}{k}", "t" * (k + 1), scores={f"{EVIL}s": float(k), f"{EVIL}p": float(k * number)}) for k in range(3)]
        if number == 2:
            del candidates[1]["scores"][f"{EVIL}p"]
        pairs = [(a, b) for a in range(3) for b in range(a + 1, 3)]
        given = [{"a": a, "b": b, "verdict": "AB"[(a * number + b) % 2] if number else "unparsed", "shown": [a, b]} for a, b in pairs]
        full = [[i, j, 1.0] for i in range(3) for j in range(3) if i != j]
        record = {"id": f"{EVIL}{number}", "source": f"{EVIL}from", "instruction": "x", "output": "t", "candidates": candidates}
        record |= {"verdicts": {f"{EVIL}j": given, f"{EVIL}k": given}, "ranks": {f"{EVIL}r": [1, 2, 3]}, "comparisons": {f"{EVIL}c": {"pairs": full}}}
        records.append({**record, "signatures": {f"{EVIL}s": EVIL}})
    records.append({**records[0], "id": "more", "candidates": [*records[0]["candidates"], candidate(f"{EVIL}0", decoding=EVIL)]})
    return records


def is_escaped(text: str, mark: str = ESCAPED) -> bool:
    """Whether the names are there, none of them as it is, and none with its line end made a space."""
    return mark in text and not OBEYED.search(text) and "=a b" not in text and "=a\nb" not in text


def test_names_are_escaped_in_the_terminals_tables_and_notes(called):
    flags = ["--ratings", "--aggregations", "--versus", f"{EVIL}1", "--baseline", f"{EVIL}1", "--length-controlled", f"{EVIL}1"]
    code, _, err = called("evaluate", *flags, stdin=lines(evil_records()))
    assert code == 0 and is_escaped(err), err
    notes = ("is missing for", "no verdict on", "a candidate is in no verdict", "Against", "of one name in some records", "Judges:")
    for told in (*notes, f"{ESCAPED}s: {ESCAPED}"):
        assert told in err, told
    code, _, err = called("data", "stats", stdin=lines(evil_records()))
    assert code == 0 and is_escaped(err)


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv"])
def test_names_are_escaped_in_every_form_of_the_tables(called, form):
    code, out, err = called("evaluate", "-q", "--ratings", "--format", form, "--baseline", f"{EVIL}1", stdin=lines(evil_records()))
    assert code == 0, err
    mark = {"markdown": ESCAPED.replace("\\", "\\\\"), "latex": ESCAPED.replace("\\", r"\textbackslash{}")}.get(form, ESCAPED)
    assert is_escaped(out, mark)
    if form == "csv":
        cells = [cell for table in out.split("\n\n") for row in csv.reader(io.StringIO(table)) for cell in row]
        assert f"'{ESCAPED}1" in cells and not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_names_are_escaped_on_the_page_and_in_figures(called, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = called("evaluate", "-q", "--report", tmp_path, "--plot", tmp_path / "f.svg", stdin=lines(evil_records()))
    assert code == 0, err
    page = (tmp_path / "index.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert "\u202e" not in page and "\x1b" not in page and "=a\nb" not in page
    for record in json.loads(data[1]):
        names = [record["id"], *record["verdicts"]]
        names += [name for one in record["candidates"] for name in (one["model"], *one["scores"], *one["ranks"])]
        assert not any(OBEYED.search(name) or "\n" in name for name in names)
    assert f"{ESCAPED}1" in (tmp_path / "f.svg").read_text() and "\u202e" not in (tmp_path / "f.svg").read_text()


ERRORS = [
    ["rank", "--by", "judge:nope"],
    ["rank", "--by", f"judge:{EVIL}"],
    ["rank", "--by", "score:nope"],
    ["rank", "--by", "nope"],
    ["rank", "--by", f"{EVIL}c", "--reference", "nope"],
    ["evaluate", "--oracle", "judge:nope"],
    ["evaluate", "--oracle", f"{EVIL}p"],
    ["evaluate", "--versus", "nope"],
    ["evaluate", "--versus", f"{EVIL}0"],
    ["evaluate", "--baseline", "nope"],
    ["evaluate", "--length-controlled", "nope"],
    ["evaluate", "--length-controlled", f"{EVIL}0"],
    ["evaluate", "--assert", "llms.best.x > 1"],
    ["evaluate", "--assert", "llms.zz.characters > 1"],
    ["evaluate", "--assert", f"llms.{EVIL}1.characters > 5"],
    ["evaluate", "--agreement", f"{EVIL}g"],
    ["pair", "--prefilter", "length:2", "--model", f"{EVIL}/none"],
]


@pytest.mark.parametrize("arguments", ERRORS, ids=lambda arguments: repr(" ".join(arguments)))
def test_names_are_escaped_in_errors(called, arguments):
    code, _, err = called(*arguments, *(["-q"] if arguments[0] == "evaluate" else []), stdin=lines(evil_records()))
    assert code in (2, 3, 65, 66) and is_escaped(err), err


def test_names_given_to_judges_and_models_are_escaped(called, serve):
    server = serve(reply=lambda body: "")
    name, escaped = EVIL[1:], ESCAPED[1:]
    endpoint = ["--base-url", server.url]
    for arguments, code in (
        (["judge", "-m", f"{name}=embedded"], 2),
        (["judge", "-m", f"openai:{name}1", "-m", f"openai:{name}2", "--verdict-by", "text", "--max-unparsed", 1, *endpoint], 0),
        (["judge", "-m", f"openai:{name}", "--verdict-by", "text", *endpoint], 70),
        (["generate", "-m", f"openai:{name}", *endpoint], 0),
    ):
        found, _, err = called(*arguments, stdin=lines([decoded(0, output="t")]))
        assert found == code and is_escaped(err, escaped) and "a b" not in err, err
