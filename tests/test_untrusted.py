"""What others wrote, of any shape, is read or told in a typed fault, and never is a fault of ours: fuzzing in this process, with a fixed budget."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blendkit.cli import CALLED_WRONGLY, app
from blendkit.errors import BlendkitError, RecordError
from blendkit.judges.prompting import load_prompt
from blendkit.records import parse, verdicts_of
from blendkit.sources import FORMS, TASKS
from blendkit.sources.forms import read_form
from blendkit.sources.mixinstruct import SOURCES, read_source
from blendkit.sources.reading import rows
from blendkit.sources.tasks import read_task


def budget(quick: int, slow: int, *drawn: st.SearchStrategy) -> Callable:
    """The test twice, on what is drawn: a few examples always, many more under the marker `slow`; the same ones in every run."""

    def decorated(test: Callable) -> Callable:
        def of(examples: int) -> Callable:
            # A test has its settings once, so that each size is a test of its own.
            sized = settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            return sized(given(*drawn)(test))

        def run(size: str) -> None:
            of({"quick": quick, "slow": slow}[size])()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("size", ["quick", pytest.param("slow", marks=pytest.mark.slow)])(run)

    return decorated


NUMBERS = [0, 1, -1, 2, 65_535, 65_536, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 0.5, -0.0, 1e-308, 1e308, -1e308]
WORDS = [
    "",
    "a",
    "a,b",
    "A is better",
    "Same bad",
    "[/]",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\x85",
    "=1+1",
    "table",
    "kind",
    "gpt_rank",
    "judge_rank",
    "null",
    "NaN",
    "[" * 5000,
    "1" * 5000,
]
scalars = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.text(max_size=5)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3), max_leaves=8
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all that is in a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


def changed(draw: Callable, value: object) -> object:
    """The value with one to three parts replaced, taken out, or put in again elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            continue
        *way, last = path
        around = value
        for key in way:
            around = around[key]
        how = draw(st.sampled_from(["replace", "number", "take out", "add"]))
        if how == "take out":
            del around[last]
        elif how == "number" and isinstance(around[last], int | float):
            around[last] = draw(st.sampled_from(NUMBERS))
        elif how == "add" and isinstance(around, dict):
            around[draw(st.sampled_from(WORDS[:-2]))] = draw(junk)
        else:
            around[last] = draw(junk)
    return value


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
@budget(80, 700, st.data())
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
        st.sampled_from([[], [], [], ["--agreement", "human"], ["--baseline", "a"], ["--aggregations"], ["--oracle", "q"], ["--format", "markdown"]])
    )
    assert command("evaluate", *more, stdin=stdin) in (0, 2, 65)


@budget(200, 1500, st.binary(max_size=60), st.integers(0, 300), st.integers(0, 60))
def test_a_line_with_damaged_bytes(put, start, size):
    line = orjson.dumps(whole_record())
    damaged = line[:start] + put + line[start + size :]
    with contextlib.suppress(RecordError):
        verdicts_of(parse(damaged, 1))


@budget(150, 1200, st.data())
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


@budget(150, 1200, st.data())
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


@budget(100, 1000, st.data())
def test_a_manifest_and_an_earlier_table_of_any_shape(data):
    from blendkit.evaluation.checks import compare, read_rows
    from blendkit.evaluation.stages import read_stages

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        path.write_bytes(json.dumps(changed(data.draw, MANIFEST)).encode(errors="surrogatepass"))
        with contextlib.suppress(BlendkitError):
            orjson.dumps(read_stages([str(path)]))
        path.write_bytes("\n".join(json.dumps(row) for row in changed(data.draw, TABLE)).encode(errors="surrogatepass"))
        with contextlib.suppress(BlendkitError):
            orjson.dumps(compare(read_rows(str(path)), TABLE))
            orjson.dumps(compare(TABLE, read_rows(str(path))))


def talk(last: str) -> list[dict]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": last}]


# A row of each form as it is published.
ROWS = {
    "ultrafeedback": {
        "instruction": "i",
        "source": "s",
        "completions": [{"model": "m", "response": "r", "overall_score": 7.5, "annotations": {"honesty": {"Rating": "5"}}}],
    },
    "binarized": {"prompt": "p", "prompt_id": "1", "chosen": talk("a"), "rejected": talk("b"), "score_chosen": 2, "score_rejected": 1.0},
    "unifiedfeedback": {"id": 1, "conv_A": talk("a"), "conv_B": talk("b"), "conv_A_rating": 1, "conv_B_rating": "0", "source": "s"},
    "rewardbench": {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n", "subset": "s", "id": 7},
    "alpacaeval": {"instruction": "i", "output": "o", "generator": "m", "dataset": "d"},
    "alpacaeval-annotations": {
        "instruction": "i",
        "output_1": "a",
        "output_2": "b",
        "generator_1": "m",
        "generator_2": "n",
        "preference": 1.2,
        "annotator": "j",
    },
    "mtbench": {
        "question_id": 1,
        "model_a": "m",
        "model_b": "n",
        "winner": "model_a",
        "judge": ["j", 1],
        "turn": 1,
        "conversation_a": talk("a"),
        "conversation_b": talk("b"),
    },
    "hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "csv": {"id": "1", "instruction": "i", "input": "", "output": "o", "m": "a"},
    "alpaca-gpt4": {"instruction": "i", "input": "x", "output": "o"},
    "dolly-15k": {"instruction": "i", "context": "c", "response": "r"},
    "gpt4all-laion": {"prompt": "p", "response": "r", "source": "laion"},
    "records": {"instruction": "i", "candidates": [{"model": "m", "text": "a"}, {"model": "n", "text": "b"}], "ranks": {"r": [1, 2]}},
    "messages": {"messages": talk("a")},
    "sft": {"prompt": talk("q")[:1], "completion": "a"},
    "dpo": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "kto": {"prompt": "p", "completion": "a", "label": True},
    "reward-bench-2": {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "models": ["m", "n", "o"]},
    "arena": {
        "id": 1,
        "model_a": "m",
        "model_b": "n",
        "prompt": '["p"]',
        "response_a": '["a"]',
        "response_b": '["b"]',
        "winner_model_a": 0,
        "winner_model_b": 0,
        "winner_tie": 1,
    },
    "lm-eval": {"doc_id": 1, "arguments": {"gen_args_0": {"arg_0": "p"}}, "resps": [["a"]], "target": "t", "metrics": ["m"], "m": 0.5, "filter": "f"},
    "openai-batch": {"custom_id": "1", "body": {"messages": talk("q")[:1], "model": "m"}},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "cnn-dailymail": {"article": "a", "highlights": "h", "id": "1"},
    "wmt18-zh-en": {"translation": {"zh": "z", "en": "e"}},
    "commongen": {"concepts": ["a", "b"], "target": "t", "concept_set_idx": 3},
}
READERS = {"form": (FORMS, read_form), "source": (SOURCES, read_source), "task": (TASKS, read_task)}


def test_there_is_a_row_of_every_form():
    assert set(ROWS) == {*FORMS, *SOURCES, *TASKS}


@budget(250, 2500, st.data())
def test_a_row_of_any_shape_of_every_form(data):
    """A converter gives records that `check` takes, or names the row."""
    name = data.draw(st.sampled_from(sorted(ROWS)))
    read = next(read for known, read in READERS.values() if name in known)
    row = changed(data.draw, ROWS[name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(orjson.dumps(ROWS[name]) + b"\n" + json.dumps(row).encode(errors="surrogatepass") + b"\n")
        try:
            for number, found in enumerate(read(name, rows(str(path))), 1):
                record = found if isinstance(found, dict) else found[1]
                verdicts_of(parse(orjson.dumps(record), number))
        except BlendkitError as error:
            assert error.exit_code == 65 and str(error).startswith(f"{path}:2: ")


@budget(150, 1500, st.binary(max_size=80), st.sampled_from([",", "\t", '"', "\n", "\r", "\x00"]), st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_a_table_of_any_bytes(tail, delimiter, cells):
    file = io.StringIO()
    with contextlib.suppress(csv.Error):
        csv.writer(file).writerow(cells)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(b"instruction,m,n\n" + file.getvalue().encode(errors="surrogatepass") + delimiter.encode() + tail)
        try:
            for number, (_, record) in enumerate(read_form("csv", rows(str(path))), 1):
                parse(orjson.dumps(record), number)
        except BlendkitError as error:
            assert error.exit_code == 65 and str(error).startswith(str(path))


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
    assert len(rejects.read_text().splitlines()) == 1 and json.loads(done.stdout.splitlines()[0])["examples"] == 2


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


BAD_FILES = {
    "cells.csv": ("instruction,m\nx,a\ny,b,c\n", "cells.csv:3: expected 2 cells, as the heading has, got 3"),
    "twice.csv": ("instruction,m,m\nx,a,b\n", "twice.csv:1: the column 'm' is there twice"),
    "quote.csv": ('instruction,m\nx,a\ny,"b\n', "quote.csv:3: unexpected end of data"),
    "none.csv": ("m,n\nx,y\n", "none.csv:2: instruction: expected a value, but the field is missing; csv is a table"),
    "bytes.csv": (b"instruction,m\nx,\xff\n", "codec can't decode byte 0xff"),
    "deep.json": ("[" * 5000, "deep.json: not JSON"),
    "deep.jsonl": ('{"a":' * 5000, "deep.jsonl:1: not JSON"),
    "digits.jsonl": ("1" * 5000, "digits.jsonl:1: not JSON"),
    "number.jsonl": ("1\n", "number.jsonl:1: expected an object, got an integer"),
    "cut.csv.gz": (b"\x1f\x8b\x08\x00\x00\x00", "cut.csv.gz: cut off"),
    "flipped.csv.gz": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff\xff", "flipped.csv.gz: not compressed data"),
    "no.parquet": ("PAR1 nothing", "no.parquet: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_of_a_form_is_told_by_its_line(blendkit, tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BlendkitError) as fault:
        list(read_form("csv", rows(str(path))))
    assert fault.value.exit_code == 65 and message in str(fault.value)
    if name in ("cells.csv", "deep.jsonl"):
        done = blendkit("data", "convert", "--from", "csv", path)
        assert done.returncode == 65 and message in done.stderr and done.stderr.count("\n") == 1


def test_files_that_are_none(blendkit, tmp_path):
    assert blendkit("data", "convert", "--from", "csv", "x" * 5000).returncode == 66
    assert blendkit("data", "convert", "--from", "csv", tmp_path / "none.csv").returncode == 66
    assert blendkit("data", "convert", "--from", "csv", tmp_path).returncode == 66
    for flag in ("--compare", "--manifests"):
        assert blendkit("evaluate", flag, tmp_path, stdin=json.dumps({"id": "1", **PAIR})).returncode == 66


def test_long_cells_and_nothing_lost_in_a_table(blendkit, tmp_path):
    path = tmp_path / "t.csv"
    records = [{"id": "1", "instruction": "x\r\ny", "candidates": [{"model": "m", "text": "\x00a\rb" * 100_000}, {"model": "n", "text": '"'}]}]
    done = blendkit("data", "convert", "--to", "csv", "-o", path, stdin=json.dumps(records[0]))
    assert done.returncode == 0, done.stderr
    back = json.loads(blendkit("data", "convert", "--from", "csv", path).stdout)
    assert back["candidates"] == records[0]["candidates"] and back["instruction"] == "x\r\ny"
    record = {"id": "1", "instruction": "x", "candidates": [{"model": model, "text": "t"} for model in ("m", "instruction")]}
    done = blendkit("data", "convert", "--to", "csv", stdin=json.dumps(record))
    assert done.returncode == 65 and "candidates[1].model: expected a name that is a column of its own" in done.stderr


def test_values_that_json_has_none_of(tmp_path):
    """Parquet has bytes and decimals."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["x", "y"], "output": ["t", "u"], "generator": ["m", "m"], "dataset": [b"\xff", b"a"]}), path)
    with pytest.raises(BlendkitError, match="cannot be written as JSON") as fault:
        list(read_form("alpacaeval", rows(str(path))))
    assert fault.value.exit_code == 65
