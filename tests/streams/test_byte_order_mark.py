"""A UTF-8 byte order mark at the start of a stream or of another file of text, as tools of Windows write it, is passed over, and nowhere else."""

from __future__ import annotations

import gzip
import json

import pytest
import zstandard
from conftest import lines, parsed

BOM = "\ufeff"
RANK = ("rank", "--by", "score:q")
CANDIDATES = [{"model": "m", "text": "é", "scores": {"q": 1}}, {"model": "n", "text": "u", "scores": {"q": 2}}]
COMPRESSED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def some(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"r{n}", "instruction": "say x", "candidates": CANDIDATES} for n in range(start, start + count)]


def marked(records: list[dict]) -> str:
    return BOM + lines(records)


def contents(path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return data.decode()


@pytest.mark.parametrize("name", ["<stdin>", "in.jsonl", "in.jsonl.gz", "in.jsonl.zst"])
def test_a_mark_before_the_first_line_is_no_part_of_it(called, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(COMPRESSED[path.suffix if path.suffix in COMPRESSED else ""](marked(some(3)).encode()))
    where = [] if name == "<stdin>" else ["-i", path]
    given = marked(some(3)) if name == "<stdin>" else ""
    code, out, err = called(*RANK, "-q", *where, stdin=given)
    assert (code, err) == (0, "") and out == called(*RANK, "-q", stdin=lines(some(3)))[1]
    assert not out.startswith(BOM)
    code, _, err = called("check", *where, stdin=given)
    assert code == 0 and "3 records, all good" in err


@pytest.mark.parametrize("text", [BOM, BOM + "\n", BOM + "\n\n"])
def test_a_stream_of_a_mark_alone_is_an_empty_one(called, text):
    assert called(*RANK, "-q", stdin=text) == called(*RANK, "-q", stdin="")
    assert called("evaluate", "-q", stdin=text) == called("evaluate", "-q", stdin="")


WRONG = {
    "before the second line": (lines(some(1)) + marked(some(1, 1)), "<stdin>:2: not JSON"),
    "twice": (BOM + marked(some(1)), "<stdin>:1: not JSON"),
    "behind a blank line": ("\n" + marked(some(1)), "<stdin>:2: not JSON"),
    "behind a space": (" " + marked(some(1)), "<stdin>:1: not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mark_anywhere_else_is_an_error(called, case):
    stream, message = WRONG[case]
    code, _, err = called(*RANK, "-q", stdin=stream)
    assert code == 65 and message in err and err.count("\n") == 1


def test_numbers_of_lines_columns_and_bytes_are_those_without_the_mark(called, tmp_path):
    bad = '{"id": "a", "instruction": NaN}\n' + lines(some(1)) + '{"id": 1}\n'
    told = []
    for number, stream in enumerate((bad, BOM + bad)):
        rejects = tmp_path / f"{number}.jsonl"
        code, out, err = called(*RANK, "-q", "--on-error", "skip", "--rejects", rejects, stdin=stream)
        assert code == 70
        told.append((out, err.replace(str(rejects), "REJECTS"), rejects.read_text()))
    assert told[0] == told[1] and "<stdin>:1: not JSON: a bare NaN at column 28" in told[0][1]
    # A record without an id has its line's number.
    nameless = lines([{key: value for key, value in record.items() if key != "id"} for record in some(2)])
    assert [record["id"] for record in parsed(called(*RANK, "-q", stdin=BOM + nameless)[1])] == ["1", "2"]


def test_the_longest_line_is_measured_without_the_mark(called):
    (line,) = lines(some(1)).splitlines()
    size = len(line.encode())
    for end in ("", "\n", "\r\n"):
        code, out, err = called(*RANK, "-q", "--max-line-bytes", size + 2, stdin=BOM + line + end)
        assert code == 0 and len(parsed(out)) == 1, err
    for mark in ("", BOM):
        for extra in range(1, 8):
            code, _, err = called(*RANK, "-q", "--max-line-bytes", size - extra, "--on-error", "skip", stdin=mark + line + "\n" + lines(some(1, 1))[: size - 9])
            assert code == 70 and "<stdin>:1: a line of more than" in err and "<stdin>:2" in err and "<stdin>:3" not in err


def test_shards_take_the_same_records(called, tmp_path):
    for part in range(3):
        flags = ["--shard", f"{part}/3", "-q"]
        assert called(*RANK, *flags, stdin=marked(some(20))) == called(*RANK, *flags, stdin=lines(some(20)))
    parts = []
    for part in range(2):
        out = called(*RANK, "-q", "--shard", f"{part}/2", stdin=lines(some(9)))[1]
        (tmp_path / f"{part}.jsonl").write_text(BOM + out)
        parts.append(tmp_path / f"{part}.jsonl")
    code, out, err = called("merge", "-q", *parts, stdin=marked(some(9)))
    assert code == 0 and [record["id"] for record in parsed(out)] == [f"r{n}" for n in range(9)], err


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("torn", ["", '{"id": "r4", "instr'])
def test_resume_goes_on_behind_an_output_with_a_mark(called, tmp_path, suffix, torn):
    # As an editor of Windows leaves a file that it saved.
    path = tmp_path / f"out.jsonl{suffix}"
    path.write_bytes(COMPRESSED[suffix]((marked(some(4)) + torn).encode()))
    code, _, err = called(*RANK, "-q", "-o", path, "--resume", stdin=marked(some(9)))
    assert code == 0, err
    found = contents(path)
    assert found.startswith(BOM) and found.count(BOM) == 1
    assert [record["id"] for record in parsed(found.removeprefix(BOM))] == [f"r{n}" for n in range(9)]
    assert parsed(called(*RANK, "-q", "-i", path)[1])[0]["id"] == "r0"


@pytest.mark.parametrize("start", [BOM, BOM + '{"id": "r0", "ins'])
def test_resume_of_an_output_with_no_whole_line(called, tmp_path, start):
    path = tmp_path / "out.jsonl"
    path.write_text(start)
    assert called(*RANK, "-q", "-o", path, "--resume", stdin=lines(some(3)))[0] == 0
    assert [record["id"] for record in parsed(path.read_text().removeprefix(BOM))] == ["r0", "r1", "r2"]


def test_resume_still_refuses_what_is_no_output(called, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(BOM + "a text of mine")
    code, _, err = called(*RANK, "-q", "-o", path, "--resume", stdin=lines(some(3)))
    assert code == 65 and "expected a record with an id" in err and path.read_text() == BOM + "a text of mine"


def test_tables_and_manifests_of_earlier_runs(called, tmp_path):
    records = some(3)
    manifest = tmp_path / "m.json"
    assert called(*RANK, "-q", "--manifest", manifest, stdin=lines(records))[0] == 0
    tables = called("evaluate", "-q", stdin=lines(records))[1]
    (tmp_path / "tables.jsonl").write_text(BOM + tables)
    manifest.write_text(BOM + manifest.read_text())
    code, out, err = called("evaluate", "-q", "--compare", tmp_path / "tables.jsonl", "--manifests", manifest, stdin=lines(records))
    assert code == 0, err
    assert {row["table"] for row in parsed(out)} >= {"compare", "stages"}


def test_files_of_models_prompts_and_answers(called, serve, tmp_path):
    server = serve(reply=lambda body: "A" if "say x" in str(body) else "?")
    models, prompt = tmp_path / "models.toml", tmp_path / "prompt.md"
    models.write_text(f'{BOM}[small]\nmodel = "openai:m"\nbase_url = "{server.url}"\n')
    code, out, err = called("generate", "-q", "--models", models, stdin=marked([{"id": "a", "instruction": "say x"}]))
    assert code == 0 and parsed(out)[0]["candidates"][0]["text"] == "A", err
    prompt.write_text(BOM + "{request} | {answer_a} | {answer_b} | {reply}")
    toml = tmp_path / "prompt.toml"
    toml.write_text(BOM + 'text = "{request} {answer_a} {answer_b}"\n[verdicts]\nA = ["A"]\nB = ["B"]\n')
    for file in (prompt, toml):
        judge = ["judge", "-q", "-m", "j=openai:m", "--base-url", server.url, "--verdict-by", "text", "--prompt", file, "--orders", "random"]
        code, out, err = called(*judge, stdin=lines(some(1)))
        assert code == 0 and len(parsed(out)[0]["verdicts"]["j"]) == 1, err
    assert not any(BOM in json.dumps(body, ensure_ascii=False) for body in server.bodies)


def test_the_answers_of_a_batch(called, tmp_path):
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    stream = lines([{"id": "a", "instruction": "say x"}])
    assert called("generate", "-q", "-m", "openai:m", "--emit-batch", asked, stdin=stream)[0] == 0
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    answers.write_text(marked([{"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}} for row in parsed(asked.read_text())]))
    code, out, err = called("generate", "-q", "-m", "openai:m", "--read-batch", answers, stdin=stream)
    assert code == 0 and parsed(out)[0]["candidates"][0]["text"] == "x", err
