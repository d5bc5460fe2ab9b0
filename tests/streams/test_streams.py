"""The promises of every stage: bad input, order, unknown fields, resume, signals, pipes, compression."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import zstandard
from conftest import examples, lines, parsed

GOOD = '{"id":"a","instruction":"x","candidates":[{"model":"m","text":"t","scores":{"q":1}}],"extra":{"kept":[1,null]}}'
RANK = ("rank", "--by", "score:q")

BAD_LINES = {
    "truncated line": ('{"id":"b","instruction":"x","cand', "<stdin>:2: not JSON: the line ends in the middle of a value"),
    "null text": (
        '{"id":"b","candidates":[{"model":"m","text":"t"},{"model":"m","text":"t"},{"model":"m","text":null}]}',
        "<stdin>:2: candidates[2].text: expected a string, got null",
    ),
    "bad UTF-8": (b'{"id":"b","instruction":"\xff"}', "<stdin>:2: not UTF-8: byte 0xff at byte 26 of the line"),
    "bare NaN": ('{"id":"b","instruction":"x","candidates":[],"v":NaN}', "<stdin>:2: not JSON: a bare NaN at column 49"),
    "array at the top": ('[{"id":"b"}]', "<stdin>:2: expected a JSON object, got an array"),
    "duplicate id": (GOOD, "<stdin>:2: id: expected a new one, got 'a' again"),
    "no candidates": ('{"id":"b","instruction":"x","candidates":[]}', "<stdin>:2: candidates: expected at least 1, got 0; `blendkit generate` writes them"),
    "missing text": ('{"id":"b","candidates":[{"model":"m"}]}', "<stdin>:2: candidates[0].text: expected a value, but the field is missing"),
    "index of nothing": ('{"id":"b","candidates":[{"model":"m","text":"t"}],"top":[1]}', "<stdin>:2: top[0]: expected the index of one of 1 candidate, got 1"),
    "too long a line": (b'{"id":"b","instruction":"' + b"x" * (50 << 20) + b'"}', "<stdin>:2: a line of more than 32 MB; --max-line-bytes raises the limit"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_what_came_before_is_written(blendkit, name):
    bad, message = BAD_LINES[name]
    done = blendkit(*RANK, stdin=GOOD.encode() + b"\n" + (bad if isinstance(bad, bytes) else bad.encode()) + b"\n")
    assert done.returncode == 65
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [record["id"] for record in parsed(done.stdout)] == ["a"]


def test_skip_passes_bad_lines_to_rejects_and_ends_with_70(blendkit, tmp_path):
    stream = "\n".join([GOOD, "[1]", '{"id":"c","candidates":[]}', GOOD.replace('"a"', '"d"')]) + "\n"
    done = blendkit(*RANK, "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl", stdin=stream)
    assert done.returncode == 70
    assert [record["id"] for record in parsed(done.stdout)] == ["a", "d"]
    rejects = parsed((tmp_path / "bad.jsonl").read_text())
    assert [(row["line"], row["record"]) for row in rejects] == [(2, "[1]"), (3, '{"id":"c","candidates":[]}')]
    assert "expected a JSON object" in rejects[0]["error"]


def test_unknown_fields_and_order_are_kept(blendkit):
    stream = [json.loads(GOOD) | {"id": f"r{n}", "n": n} for n in range(200)]
    done = blendkit(*RANK, "--window", 7, stdin=lines(stream))
    out = parsed(done.stdout)
    assert [record["n"] for record in out] == list(range(200))
    assert all(record["extra"] == {"kept": [1, None]} for record in out)


def test_a_missing_id_becomes_the_line_number(blendkit):
    done = blendkit(*RANK, stdin="\n" + GOOD.replace('"id":"a",', "") + "\n")
    assert parsed(done.stdout)[0]["id"] == "2"


def test_empty_input_is_no_fault(blendkit):
    done = blendkit(*RANK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_compressed_by_their_name_and_resume(blendkit, tmp_path, suffix):
    source, whole, part = (tmp_path / f"{name}.jsonl{suffix}" for name in ("in", "whole", "part"))
    plain = tmp_path / "plain.jsonl"
    plain.write_text(lines([json.loads(GOOD) | {"id": f"r{n}"} for n in range(20)]))
    assert blendkit(*RANK, "-i", plain, "-o", whole, "--window", 4).returncode == 0
    assert blendkit(*RANK, "-i", whole, "-o", source).returncode == 0
    # Cut in the middle of a line (of a member, of a frame), as a kill -9 would.
    part.write_bytes(whole.read_bytes()[: int(len(whole.read_bytes()) * 0.6)])
    assert blendkit(*RANK, "-i", source, "-o", part, "--resume", "--window", 4).returncode == 0
    assert read(part) == read(whole) == read(source)
    assert blendkit(*RANK, "-i", source, "-o", part, "--resume").returncode == 0
    assert read(part) == read(whole)


def read(path):
    import zstandard

    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read() if path.suffix == ".zst" else data


def test_resume_refuses_another_input(blendkit, tmp_path):
    out = tmp_path / "out.jsonl"
    blendkit(*RANK, "-o", out, stdin=GOOD)
    done = blendkit(*RANK, "-o", out, "--resume", stdin=GOOD.replace('"a"', '"z"'))
    assert done.returncode == 65
    assert "cannot resume" in done.stderr
    assert [record["id"] for record in parsed(out.read_text())] == ["a"]


@pytest.mark.slow
def test_an_interrupt_leaves_whole_lines_and_resume_completes_to_the_same_file(blendkit, tmp_path, tiny_ranker):
    source, whole, part = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    source.write_text(lines([record | {"id": f"{n}/{record['id']}"} for n in range(20) for record in examples()]))
    # A checkpoint's name is in every record, so all runs name it alike.
    command = ["pair", "--model", str(tiny_ranker), "--window", "1", "-i", str(source)]
    assert blendkit(*command, "-o", whole).returncode == 0
    process = subprocess.Popen([sys.executable, "-m", "blendkit", *command, "-o", str(part)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while (not part.exists() or part.stat().st_size == 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == "blendkit pair: interrupted; what was done is written"
    done = part.read_bytes()
    assert done.endswith(b"\n")
    assert whole.read_bytes().startswith(done)
    assert len(done) < whole.stat().st_size
    assert blendkit(*command, "-o", part, "--resume").returncode == 0
    assert part.read_bytes() == whole.read_bytes()


def test_sigterm_ends_with_143():
    process = subprocess.Popen(
        [sys.executable, "-m", "blendkit", *RANK, "--window", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    process.stdin.write(GOOD.encode() + b"\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_a_reader_that_leaves_ends_it_quietly(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(lines([json.loads(GOOD) | {"id": f"r{n}", "pad": "x" * 1000} for n in range(3000)]))
    command = f"set -o pipefail; {sys.executable} -m blendkit rank --by score:q -i {source} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["id"] == "r0"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk(blendkit):
    done = blendkit(*RANK, "-o", "/dev/full", stdin=GOOD)
    assert done.returncode == 74
    assert "/dev/full: cannot write: No space left on device" in done.stderr


def test_no_such_file(blendkit):
    done = blendkit(*RANK, "-i", "/nowhere/x.jsonl")
    assert (done.returncode, done.stderr) == (66, "blendkit rank: /nowhere/x.jsonl: No such file or directory\n")


def test_the_output_must_not_be_the_input(blendkit, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD)
    assert blendkit(*RANK, "-i", path, "-o", path).returncode == 2
    assert path.read_text() == GOOD


def test_check_names_every_bad_line(blendkit):
    done = blendkit("check", stdin=GOOD + "\n[1]\n" + GOOD + "\n")
    assert done.returncode == 65
    assert "<stdin>:2: expected a JSON object" in done.stderr
    assert "<stdin>:3: id: expected a new one" in done.stderr
    assert blendkit("check", stdin=GOOD).returncode == 0


def test_progress_json_and_manifest(blendkit, tmp_path, tiny_ranker):
    done = blendkit("pair", "--model", tiny_ranker, "--manifest", tmp_path / "m.json", stdin=lines(examples(3)))
    (told,) = done.stderr.splitlines()  # no progress bar where stderr is no terminal
    assert "cut to the model's length" in told
    manifest = json.loads((tmp_path / "m.json").read_text())
    assert manifest["counts"]["records"] == 3
    assert manifest["counts"]["works"] == 60
    assert manifest["ended"] == "done"
    import torch

    assert manifest["versions"]["torch"] == torch.__version__ and {"python", "transformers", "tokenizers"} < set(manifest["versions"])
    assert manifest["device"] == "cpu"
    assert manifest["signatures"][0].startswith("pairrm|model:")


@pytest.mark.parametrize("command", [RANK, ("data", "convert", "--from", "records"), ("check",)])
@pytest.mark.parametrize("packed", [gzip.compress, zstandard.compress])
def test_compressed_records_are_recognized_without_a_name(tmp_path, command, packed):
    """On stdin, and in a file whose name does not say so."""
    data = packed(f"{GOOD}\n".encode())
    plain = [sys.executable, "-m", "blendkit", *command]
    done = subprocess.run(plain, input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert command == ("check",) or json.loads(done.stdout)["id"] == "a"
    if command != ("data", "convert", "--from", "records"):
        (tmp_path / "in.jsonl").write_bytes(data)
        assert subprocess.run([*plain, "-i", str(tmp_path / "in.jsonl")], capture_output=True, timeout=60).stdout == done.stdout


def test_check_stops_after_so_many_bad_records(called):
    given = f"{GOOD}\n" + "\x00\x01\n" * 300
    code, _, err = called("check", stdin=given)
    assert code == 65 and err.count("\n") == 101 and err.endswith("blendkit check: 100 of the first 101 records are bad; --max-errors 0 reads on\n")
    assert called("check", "--max-errors", "3", stdin=given)[2].count("\n") == 4
    code, _, err = called("check", "--max-errors", "0", stdin=given)
    assert code == 65 and err.endswith("blendkit check: 300 of 301 records are bad\n")


@pytest.mark.parametrize(("words", "found"), [("blendkit ra", {"rank"}), ("blendkit rank --by", {"--by"}), ("blendkit data c", {"convert"})])
def test_a_shell_completes_commands_and_flags(words, found):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_BLENDKIT_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-m", "blendkit"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize(("closing", "code", "words"), [("<&-", 66, "standard input is closed"), (">&-", 74, "standard output is closed")])
def test_closed_standard_streams(tmp_path, closing, code, words):
    command = f"printf '%s' '{GOOD}' | {{ {sys.executable} -m blendkit rank --by score:q {closing}; }}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("after", ["raise ValueError('lost in C')", "pass"])
def test_an_interrupt_that_an_extension_swallows_still_ends_the_run(after):
    code = f"""
import os, signal, sys
from blendkit import cli
from blendkit.rankers.ranking import Ranking
real = Ranking.finish
def finish(self, record, results):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        {after}
    real(self, record, results)
Ranking.finish = finish
sys.argv = ["blendkit", "rank", "--by", "score:q", "--window", "1"]
cli.main()
"""
    stream = lines([json.loads(GOOD) | {"id": f"r{n}"} for n in range(5)])
    done = subprocess.run([sys.executable, "-c", code], input=stream, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "blendkit rank: interrupted; what was done is written\n"
    assert len(done.stdout.splitlines()) < 5
