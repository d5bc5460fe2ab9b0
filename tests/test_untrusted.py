"""What others wrote, of any shape, is read or told in a typed fault, and never is a fault of ours: fuzzing in this process, with a fixed budget."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import tempfile
from pathlib import Path

import orjson
import pytest
from conftest import examples, parsed
from hypothesis import strategies as st
from shapes import budget, changed, junk

from blendkit.cli import CALLED_WRONGLY, app
from blendkit.errors import BlendkitError, RecordError
from blendkit.judges.prompting import load_prompt
from blendkit.records import parse, verdicts_of

TWO = examples(2)


def whole_record(number: int = 0) -> dict:
    """A record with every field."""
    record = copy.deepcopy(TWO[number])
    record["candidates"] = record["candidates"][:3]
    for place, candidate in enumerate(record["candidates"]):
        candidate |= {"model": "abc"[place], "scores": {"q": float(place), "perplexity": 2.0}}
    record["comparisons"] = {"r": {"pairs": [[i, j, float(i - j)] for i in range(3) for j in range(3) if i != j], "order": [2, 1, 0], "model": "m"}}
    record |= {"ranks": {"r": [1, 2, 2]}, "top": [0, 1], "signatures": {"q": "s"}, "human": "A"}
    record["verdicts"] = {"j": [{"a": 0, "b": 1, "verdict": "A", "shown": [1, 0], "probability": 0.7}, {"a": 1, "b": 2, "verdict": "tie-bad"}]}
    record["cmp_results"] = {"a,b": "A is better", "b,c": "Same good"}
    return record


def command(*arguments: str, stdin: bytes = b"") -> int:
    """The command's exit code; a fault of ours comes out as it is."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        given = Path(folder) / "in.jsonl"
        given.write_bytes(stdin)
        try:
            app([*arguments, "-i", str(given), *(["-o", os.devnull] if arguments[0] != "check" else [])], prog_name="blendkit", standalone_mode=False)
        except BlendkitError as error:
            assert error.exit_code not in (1, 74), error
            return error.exit_code
        except CALLED_WRONGLY:
            return 2
    return 0


@pytest.mark.filterwarnings("error::RuntimeWarning")
@budget(80, 300, st.data())
def test_a_record_of_any_shape(data):
    """What `check` takes, rank and evaluate take, too; what it does not take, it says."""
    lines = [orjson.dumps(whole_record(1)), json.dumps(changed(data.draw, whole_record())).encode(errors="surrogatepass")]
    stdin = b"\n".join(lines) + b"\n"
    try:
        records = [parse(line, number) for number, line in enumerate(lines, 1)]
        for record in records:
            verdicts_of(record)
            orjson.dumps(record)
        good = len({record["id"] for record in records}) == 2
    except RecordError:
        good = False
    assert command("check", stdin=stdin) == (0 if good else 65)
    way = data.draw(st.sampled_from(["max-logits", "max-wins", "copeland", "bradley-terry", "elo"]))
    assert command("rank", "--aggregate", way, stdin=stdin) in (0, 65)
    # Two records and a few resamples: what is slow in it is drawn less often.
    more = data.draw(
        st.sampled_from(
            [
                [],
                [],
                [],
                ["--agreement", "human"],
                ["--baseline", "a"],
                ["--aggregations"],
                ["--oracle", "q"],
                ["--format", "markdown"],
                ["--audit", "human", "--correct-with", "human", "--control", "length"],
                ["--frontier", "r"],
            ]
        )
    )
    assert command("evaluate", *more, stdin=stdin) in (0, 2, 65)


@budget(200, 600, st.binary(max_size=60), st.integers(0, 300), st.integers(0, 60))
def test_a_line_with_damaged_bytes(put, start, size):
    line = orjson.dumps(whole_record())
    damaged = line[:start] + put + line[start + size :]
    with contextlib.suppress(RecordError):
        verdicts_of(parse(damaged, 1))


@budget(150, 500, st.data())
def test_cmp_results_of_any_shape(data):
    results = data.draw(junk | st.dictionaries(st.sampled_from(["a,b", "b,c", "c,a", "a", ",", "a,b,c"]), junk | st.just("A is better"), max_size=3))
    text = data.draw(
        st.sampled_from([lambda: results, lambda: json.dumps(results), lambda: "[" * 5000 + "]" * 5000, lambda: '{"a,b":' * 2000 + "1" + "}" * 2000])
    )()
    record = whole_record() | {"cmp_results": text}
    with contextlib.suppress(RecordError):
        found = verdicts_of(parse(json.dumps(record).encode(errors="surrogatepass"), 1))
        assert all(verdict["verdict"] in ("A", "B", "tie-good", "tie-bad") for verdict in found.get("mixinstruct", ()))


def toml(value: object) -> str:
    """A value of JSON in TOML's words, as far as there are some."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "nan" if value is None else json.dumps(value).replace("\\u007f", "\x7f")


PROMPT = {
    "text": "{request} {answer_a} {answer_b} {reply}",
    "verdicts": {"A": ["one"], "B": ["two"], "tie-good": ["both"]},
    "names": {"request": "Q"},
    "stop": ["\n"],
    "lead": "",
    "fenced": True,
    "max_new_tokens": 8,
}


@budget(150, 500, st.data())
def test_a_prompt_file_of_any_shape(data):
    content = changed(data.draw, PROMPT)
    text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in content.items())
    extra = data.draw(st.sampled_from([b"", b"\xff", b"\nx = " + b"[" * 5000, b"\nx = " + b"1" * 5000, b"\n\x00", b"\nx = 2024-13-45", b"\nx.y.z = inf"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.toml"
        path.write_bytes(text.encode(errors="replace") + extra)
        try:
            prompt = load_prompt(str(path))
        except BlendkitError as error:
            assert error.exit_code == 65 and str(path) in str(error)
        else:
            # A lead may hold anything, a verdict's word too.
            for verdict, words in () if prompt.lead else prompt.verdicts.items():
                assert prompt.parse(words[0]) == verdict
            assert 1 <= prompt.max_new_tokens < math.inf


MANIFEST = {
    "command": "pair",
    "counts": {"records": 5, "tokens": 10},
    "seconds": 1.5,
    "models": {"m": {"cost": 0.1}, "n": "abc"},
    "peak_memory_bytes": {"process": 100},
}
TABLE = [{"table": 2, "method": "a", "kind": "model", "examples": 2, "q": 0.5, "intervals": {"q": [0.1, 0.9]}}, {"table": 3, "method": "r", "pearson": 1.0}]
TABLE += [{"table": "audit", "method": "j", "kind": "judge", "pairs": 3, "kappa": 0.5, "ece": None, "intervals": {"kappa": [0.1, 0.2]}}]


@budget(100, 400, st.data())
def test_a_manifest_and_an_earlier_table_of_any_shape(data):
    from blendkit.evaluation.checks import outcomes, parsed
    from blendkit.evaluation.comparing import compared_with, read_rows, worse
    from blendkit.evaluation.stages import read_stages

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        path.write_bytes(json.dumps(changed(data.draw, MANIFEST)).encode(errors="surrogatepass"))
        with contextlib.suppress(BlendkitError):
            orjson.dumps(read_stages([str(path)]))
        path.write_bytes("\n".join(json.dumps(row) for row in changed(data.draw, TABLE)).encode(errors="surrogatepass"))
        with contextlib.suppress(BlendkitError):
            orjson.dumps(compared_with(read_rows(str(path)), TABLE))
            orjson.dumps(compared_with(TABLE, read_rows(str(path))))
            checks = ["earlier.llms.a.q.low > 0", "llms.a.q >= earlier.llms.a.q within noise", "earlier.agreement.r.pearson > 0 beyond noise"]
            checks += ["earlier.judges.best.kappa.low > 0"]
            earlier = read_rows(str(path))
            orjson.dumps([outcomes(map(parsed, checks), TABLE, earlier)[0], worse(earlier, TABLE)])


# --- the same through the command line: each case with its place and its exit code

PAIR = {"instruction": "x", "candidates": [{"model": "a", "text": "t"}, {"model": "b", "text": "u"}]}
BAD_RECORDS = {
    "cmp_results as 5,000 arrays": ({"cmp_results": "[" * 5000 + "]" * 5000}, "cmp_results: expected an object, or one as a JSON string, which is not JSON"),
    "cmp_results as 5,000 objects": ({"cmp_results": '{"a,b":' * 5000 + "1" + "}" * 5000}, "cmp_results: expected an object"),
    "cmp_results with 5,000 digits": ({"cmp_results": '{"a,b": ' + "1" * 5000 + "}"}, "cmp_results: expected an object"),
    "cmp_results with NaN": ({"cmp_results": '{"a,b": NaN}'}, "a bare NaN"),
    "cmp_results with half a character": ({"cmp_results": '{"a,b": "\ud800"}'}, "not JSON"),
    "cmp_results is a number": ({"cmp_results": "0"}, "cmp_results: expected an object, got an integer"),
    "cmp_results is an array": ({"cmp_results": "[]"}, "cmp_results: expected an object, got an array"),
    "cmp_results is nothing": ({"cmp_results": ""}, "cmp_results: expected an object, or one as a JSON string"),
    "a verdict is an array": ({"cmp_results": '{"a,b": ["A is better"]}'}, "cmp_results: 'a,b': expected one of A is better"),
    "a verdict is an object": ({"cmp_results": '{"a,b": {"A is better": 1}}'}, "got an object"),
    "a verdict is a number": ({"cmp_results": '{"a,b": 1}'}, "got an integer"),
    "no comma": ({"cmp_results": {"ab": "A is better"}}, "cmp_results: 'ab' names 'ab', which is no candidate's model"),
    "nested deeper than can be written": ({"z": json.loads("[" * 300 + "]" * 300)}, "expected at most 254 levels"),
    "a rank beyond all candidates": ({"ranks": {"r": [70_000, 1]}}, "ranks[...][0]: expected an integer <= 65535"),
    "a score beyond all sums": (
        {"candidates": [{"model": "a", "text": "t", "scores": {"q": 1e308}}]},
        "candidates[0].scores[...]: expected a number <= 1e+300",
    ),
    "a logit beyond all sums": ({"comparisons": {"r": {"pairs": [[0, 1, -1e308]]}}}, "comparisons[...].pairs[0][2]: expected a number >= -1e+100"),
    "half a character": ({"z": "\ud800"}, "not JSON"),
}


@pytest.mark.parametrize(("part", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_is_told_and_can_be_skipped(blendkit, tmp_path, part, message):
    stdin = "".join(json.dumps({"id": str(number), **PAIR, **more}) + "\n" for number, more in enumerate([{}, part, {}]))
    done = blendkit("check", stdin=stdin)
    assert done.returncode == 65 and done.stderr.startswith("<stdin>:2: ") and message in done.stderr and done.stderr.count("\n") == 2
    rejects = tmp_path / "rejects.jsonl"
    done = blendkit("evaluate", "--on-error", "skip", "--rejects", rejects, stdin=stdin)
    assert done.returncode == 70 and "<stdin>:2: " in done.stderr and "internal" not in done.stderr, done.stderr
    assert len(rejects.read_text().splitlines()) == 1 and next(row["examples"] for row in parsed(done.stdout) if row["table"] == 2) == 2


def test_records_of_many_fields_and_odd_names_pass(blendkit):
    odd = {"id": "a\n\x1b[31m\u202e", **PAIR, **{f"field {number}": number for number in range(100_000)}}
    wide = {"id": "b", **PAIR, "z": json.loads("[" * 250 + "]" * 250)}
    done = blendkit("rank", "--aggregate", "max-wins", stdin=json.dumps(odd) + "\n" + json.dumps(wide) + "\n")
    assert done.returncode == 65 and "comparisons" in done.stderr
    assert blendkit("check", stdin=json.dumps(odd) + "\n" + json.dumps(wide) + "\n").returncode == 0


TEXT = 'text = "{answer_a} {answer_b}"\n'
BAD_PROMPTS = {
    "nested": (TEXT + "x = " + "[" * 5000, 65, "not TOML: nested too deep"),
    "digits": (TEXT + "max_new_tokens = " + "1" * 5000, 65, "not TOML: "),
    "large": (TEXT + "max_new_tokens = 99999999999999999999", 65, "max_new_tokens: "),
    "negative": (TEXT + "max_new_tokens = -5", 65, "max_new_tokens: expected an integer >= 1"),
    "infinite": (TEXT + "max_new_tokens = inf", 65, "max_new_tokens: expected an integer"),
    "not a number": (TEXT + "max_new_tokens = nan", 65, "max_new_tokens: expected an integer"),
    "wrong type": (TEXT + "fenced = 1", 65, "fenced: expected a boolean, got an integer"),
    "text is a list": ("text = [1]", 65, "text: expected a string, got an array"),
    "a date": (TEXT + "lead = 2024-01-01", 65, "lead: expected a string"),
    "an empty stop": (TEXT + 'stop = [""]', 65, "stop[0]: "),
    "an unknown heading": (TEXT + 'names = {question = "Q"}', 65, "names: expected request, reference, answer_a, answer_b, got question"),
    "the same word": (TEXT + '[verdicts]\nA = ["x"]\nB = ["x"]', 65, "verdicts.A: 'x' stands for another verdict, too"),
    "the same word but for case": (TEXT + '[verdicts]\nA = ["Yes it is"]\nB = ["no", "yes-it is"]', 65, "verdicts.A: 'Yes it is' stands for another"),
    "a word that begins another": (TEXT + '[verdicts]\nA = ["good"]\nB = ["good enough"]', 65, "verdicts.A: 'good' begins the word of B, 'good enough'"),
    "no word": (TEXT + '[verdicts]\nA = ["-"]\nB = ["x"]', 65, "verdicts.A: expected one of"),
    "empty": ("", 65, "text: expected a value, but the field is missing"),
    "not UTF-8": (b"\xff" + TEXT.encode(), 65, "not UTF-8: byte 0xff at byte 1"),
}


@pytest.mark.parametrize(("content", "code", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_file_is_told_by_its_key(tmp_path, content, code, message):
    path = tmp_path / "p.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert judge_with(path) == (code, f"--prompt {path}: {message}")


def judge_with(path: object) -> tuple[int, str]:
    """Exit code and message, as far as the expected one goes."""
    with pytest.raises(BlendkitError) as fault:
        load_prompt(str(path))
    return fault.value.exit_code, Expected(str(fault.value))


class Expected(str):
    """Equal to what it begins with."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self.startswith(str(other))

    __hash__ = str.__hash__


def test_a_prompt_that_is_no_file_or_has_no_end(blendkit, tmp_path):
    assert judge_with(tmp_path) == (66, f"--prompt {tmp_path}: Is a directory")
    assert judge_with(tmp_path / "none.toml") == (66, f"--prompt {tmp_path / 'none.toml'}: No such file")
    assert judge_with("/dev/zero") == (65, "--prompt /dev/zero: more than 1 MB")
    assert judge_with("x" * 5000)[0] == 2
    path = tmp_path / "p.toml"
    path.write_text(BAD_PROMPTS["nested"][0])
    done = blendkit("judge", "-m", "openai:x", "--base-url", "http://127.0.0.1:9/v1", "--prompt", path, stdin=json.dumps({"id": "1", **PAIR}))
    assert done.returncode == 65 and f"--prompt {path}: not TOML: nested too deep" in done.stderr and done.stderr.count("\n") == 1


def test_files_that_are_none(blendkit, tmp_path):
    assert blendkit("data", "convert", "--from", "csv", "x" * 5000).returncode == 66
    assert blendkit("data", "convert", "--from", "csv", tmp_path / "none.csv").returncode == 66
    assert blendkit("data", "convert", "--from", "csv", tmp_path).returncode == 66
    for flag in ("--compare", "--manifests"):
        assert blendkit("evaluate", flag, tmp_path, stdin=json.dumps({"id": "1", **PAIR})).returncode == 66
