"""Files and standard streams: none is read as whole that is not, none is overwritten by something else, none changes an exit code."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys

import pytest
import zstandard
from conftest import lines, parsed

RANK = ("rank", "--by", "score:q")
RECORD = {"instruction": "say x", "candidates": [{"model": "m", "text": "t", "scores": {"q": 1}}, {"model": "n", "text": "u", "scores": {"q": 2}}]}


def some(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"r{n}", **RECORD} for n in range(start, start + count)]


def ids(path) -> list[str]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return [record["id"] for record in parsed(data.decode())]


@pytest.fixture(params=[".gz", ".zst"])
def compressed(request, blendkit, tmp_path):
    """A stream of 300 records as our own writer makes it, a member for 50 of them."""
    plain, path = tmp_path / "plain.jsonl", tmp_path / f"in.jsonl{request.param}"
    plain.write_text(lines(some(300)))
    assert blendkit(*RANK, "--window", 50, "-i", plain, "-o", path).returncode == 0
    return path


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


DAMAGES = {
    "cut by 30 bytes": (lambda data: data[:-30], "cut off"),
    "cut by one byte": (lambda data: data[:-1], "cut off"),
    "a byte altered": (lambda data: flipped(data, len(data) // 2), "damaged near byte"),
    "the last checksum altered": (lambda data: flipped(data, len(data) - 3 if data[0] == 0x28 else len(data) - 7), "damaged near byte"),
    "something behind it": (lambda data: data + b"and so on and so forth", "damaged near byte"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stream_is_65_and_what_came_before_is_written(blendkit, compressed, damage):
    harm, words = DAMAGES[damage]
    compressed.write_bytes(harm(compressed.read_bytes()))
    done = blendkit(*RANK, "-i", compressed)
    assert done.returncode == 65, done.stderr
    (told,) = done.stderr.splitlines()
    assert f"{compressed}:" in told and words in told
    found = [record["id"] for record in parsed(done.stdout)]
    assert found == [record["id"] for record in some(len(found))]
    assert len(found) >= (100 if damage == "a byte altered" else 250)


# What else reads streams; train is called in the process, as it needs no model to read its data.
READERS = [["check", "-i"], ["evaluate", "-i"], ["data", "stats", "-i"], ["merge"], ["data", "convert", "--from", "ultrafeedback"]]


@pytest.mark.parametrize("command", READERS, ids=lambda command: " ".join(command[:2]))
def test_whoever_reads_a_damaged_stream_says_so(blendkit, compressed, command):
    plain = compressed.parent / "plain.jsonl"
    compressed.write_bytes(compressed.read_bytes()[:-30])
    if "convert" in command:
        row = {"instruction": "x", "completions": [{"model": "m", "response": "t", "overall_score": 5}]}
        plain.write_text(lines([row] * 300))
        data = plain.read_bytes()
        compressed.write_bytes((gzip.compress(data) if compressed.suffix == ".gz" else zstandard.compress(data))[:-2])
    done = blendkit(*command, compressed, stdin=plain.read_bytes() if command == ["merge"] else b"")
    assert done.returncode == 65, done.stdout[:200] + done.stderr
    assert "cut off" in done.stderr and str(compressed) in done.stderr


def test_training_data_that_are_cut_off_are_65(compressed):
    from blendkit.errors import DataError
    from blendkit.training.files import RecordFiles

    compressed.write_bytes(compressed.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"in\.jsonl\.(gz|zst):\d+: cut off"):
        list(RecordFiles([str(compressed)]))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_plain_file_with_the_name_of_a_compressed_one(blendkit, tmp_path, suffix):
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_text(lines(some(3)))
    done = blendkit("check", "-i", path)
    assert done.returncode == 65
    assert f"{path}:1: not compressed data, as the name says" in done.stderr
    path.write_bytes(b"")
    assert blendkit("check", "-i", path).returncode == 0


def test_members_of_others_are_read(blendkit, tmp_path):
    """Without checksums and lengths, with padding, with skippable frames, with lines across members, larger than what is held back."""
    data = lines(some(30)).encode()
    half = len(data) // 2 + 7
    big = lines([{**record, "pad": "x" * 1_000_000} for record in some(12, 30)]).encode()
    bare = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False)
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    streams = {
        "in.jsonl.zst": skippable + bare.compress(data[:half]) + skippable + bare.compress(data[half:]) + zstandard.compress(big),
        "in.jsonl.gz": gzip.compress(data[:half]) + bytes(600) + gzip.compress(data[half:]) + gzip.compress(big, 1) + bytes(33),
    }
    for name, content in streams.items():
        (tmp_path / name).write_bytes(content)
        done = blendkit("check", "-i", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "blendkit check: 42 records, all good\n")


def test_our_frames_say_their_length_and_have_a_checksum(blendkit, tmp_path):
    blendkit(*RANK, "-o", tmp_path / "out.jsonl.zst", stdin=lines(some(3)))
    frame = zstandard.get_frame_parameters((tmp_path / "out.jsonl.zst").read_bytes())
    assert frame.has_checksum
    assert 0 < frame.content_size < 10_000


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_resume_goes_by_ids(blendkit, tmp_path, suffix):
    """Records that were put in front or in between, or moved, are done; what is there is not done again; what is gone is kept."""
    out = tmp_path / f"out.jsonl{suffix}"
    stream = some(10)
    assert blendkit(*RANK, "-o", out, stdin=lines(stream)).returncode == 0
    new = some(5, 100)
    moved = [new[0], *reversed(stream[2:6]), new[1], *stream[6:], new[2], stream[1], new[3], new[4]]
    done = blendkit(*RANK, "-o", out, "--resume", "--window", 2, stdin=lines(moved))
    assert done.returncode == 0
    assert ids(out) == [record["id"] for record in [*stream, *new]]
    order, gone = done.stderr.splitlines()
    assert "the output's order is not the input's: 3 records" in order
    assert f"1 record of {out} is not in <stdin>" in gone
    again = blendkit(*RANK, "-o", out, "--resume", stdin=lines([*stream, *new]))
    assert (again.returncode, again.stderr, len(ids(out))) == (0, "", 15)


def test_a_longer_input_is_a_plain_resume(blendkit, tmp_path):
    out = tmp_path / "out.jsonl"
    blendkit(*RANK, "-o", out, stdin=lines(some(10)))
    done = blendkit(*RANK, "-o", out, "--resume", "--window", 3, stdin=lines(some(30)))
    assert (done.returncode, done.stderr) == (0, "")
    assert ids(out) == [record["id"] for record in some(30)]


def test_resume_finds_the_first_known_record_far_behind(blendkit, tmp_path):
    out = tmp_path / "out.jsonl"
    blendkit(*RANK, "-o", out, stdin=lines(some(1)))
    done = blendkit(*RANK, "-o", out, "--resume", stdin=lines([*some(1000, 5), *some(1)]))
    assert done.returncode == 0
    assert "1,000 records that stand before others" in done.stderr
    assert len(set(ids(out))) == 1001


def test_ids_on_disk_are_found_again():
    from blendkit.streams.unique_ids import UniqueIds

    seen = UniqueIds(in_memory=10)
    for n in range(100):
        assert seen.add(f"r{n}")
    assert all(f"r{n}" in seen for n in range(100))
    assert not any(f"r{n}" in seen for n in range(100, 200))


def test_what_was_skipped_is_tried_again_and_counts(blendkit, tmp_path):
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    first, last = some(2)
    stream = lines([first]) + '[1]\n{"id":"none","instruction":"x","candidates":[]}\n' + lines([last])
    flags = [*RANK, "-o", out, "--on-error", "skip", "--rejects", bad]
    assert blendkit(*flags, stdin=stream).returncode == 70
    before = bad.read_text()
    done = blendkit(*flags, "--resume", stdin=stream)
    assert done.returncode == 70
    assert bad.read_text() == before and len(before.splitlines()) == 2
    assert ids(out) == ["r0", "r1"]
    mended = lines([first, {"id": "none", **RECORD}, last])
    assert blendkit(*flags, "--resume", stdin=mended).returncode == 0
    assert ids(out) == ["r0", "r1", "none"]
    assert bad.read_text() == ""


OTHERS = {
    "a list": (b"[1]\n", 1),
    "a string": (b'"x"\n', 1),
    "a number": (b"7\n", 1),
    "an object without an id": (b'{"instruction":"x"}\n', 1),
    "an id that is no string": (b'{"id":7}\n', 1),
    "notes": (b"Dear diary,\nnothing happened", 1),
    "one line of notes": (b"Dear diary", 1),
    "a binary file": (bytes(range(256)) * 20, 1),
    "a last line that is no record": (lines(some(2)).encode() + b"[1]\n", 3),
    "a line in between that is none": (lines(some(1)).encode() + b"oh no\n" + lines(some(1, 1)).encode(), 2),
    "deep nesting": (b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}\n", 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_resume_leaves_what_is_not_ours_as_it_is(blendkit, tmp_path, name):
    content, number = OTHERS[name]
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    done = blendkit(*RANK, "-o", out, "--resume", stdin=lines(some(2)))
    assert done.returncode == 65, done.stderr
    assert done.stderr == (
        f"blendkit rank: {out}:{number}: cannot resume: expected a record with an id, as an earlier run writes them; the file is left as it is\n"
    )
    assert out.read_bytes() == content


def test_resume_of_a_damaged_output(blendkit, compressed):
    content = flipped(compressed.read_bytes(), compressed.stat().st_size // 2)
    compressed.write_bytes(content)
    done = blendkit(*RANK, "-o", compressed, "--resume", stdin=lines(some(300)))
    assert done.returncode == 65
    assert "cannot resume: damaged near byte" in done.stderr and len(done.stderr.splitlines()) == 1
    assert compressed.read_bytes() == content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_resumed_output_stays_the_file_that_it_is(blendkit, tmp_path, suffix):
    """Its mode, a link to it, and files beside it."""
    real, link = tmp_path / f"real.jsonl{suffix}", tmp_path / f"link.jsonl{suffix}"
    assert blendkit(*RANK, "--window", 5, "-o", real, stdin=lines(some(20))).returncode == 0
    real.write_bytes(real.read_bytes()[:-5])
    real.chmod(0o640)
    link.symlink_to(real.name)
    beside = [tmp_path / f"{name}.jsonl{suffix}.part{suffix}" for name in ("real", "link")]
    for path in beside:
        path.write_text("mine")
    assert blendkit(*RANK, "-o", link, "--resume", stdin=lines(some(20))).returncode == 0
    assert link.is_symlink() and ids(real) == [record["id"] for record in some(20)]
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert all(path.read_text() == "mine" for path in beside)
    assert len(list(tmp_path.iterdir())) == 5 and (tmp_path / f"{real.name}.run.ndjson").is_file()


@pytest.mark.parametrize("kind", ["fifo", "device", "stdout"])
def test_resume_needs_a_regular_file(blendkit, tmp_path, kind):
    out = {"fifo": tmp_path / "fifo", "device": "/dev/null", "stdout": "-"}[kind]
    if kind == "fifo":
        os.mkfifo(out)
    done = blendkit(*RANK, "-o", out, "--resume", stdin=lines(some(1)))
    assert done.returncode == 2
    assert "--resume" in done.stderr and len(done.stderr.splitlines()) == 1


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path):
    """A file with records under several names."""
    path = tmp_path / "x.jsonl"
    path.write_text(lines(some(3)))
    (tmp_path / "soft").symlink_to("x.jsonl")
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "dangling").symlink_to("new")
    return path


ROLES = {
    "-o and standard input": (["-o", "x.jsonl"], "x.jsonl"),
    "a symlink": (["-o", "soft"], "x.jsonl"),
    "a hard link": (["-o", "hard"], "x.jsonl"),
    "another way": (["-o", "sub/../x.jsonl"], "x.jsonl"),
    "-i through /dev/stdin": (["-i", "/dev/stdin", "-o", "x.jsonl"], "x.jsonl"),
    "-i and -o": (["-i", "soft", "-o", "hard"], None),
    "-i and --manifest": (["-i", "x.jsonl", "--manifest", "hard"], None),
    "--manifest and standard input": (["--manifest", "x.jsonl"], "x.jsonl"),
    "--rejects and standard input": (["--on-error", "skip", "--rejects", "x.jsonl"], "x.jsonl"),
    "-o and --rejects, not there yet": (["-i", "x.jsonl", "-o", "new", "--on-error", "skip", "--rejects", "sub/../new"], None),
    "-o and --manifest through a link, not there yet": (["-i", "x.jsonl", "-o", "dangling", "--manifest", "new"], None),
    "--rejects and --manifest": (["-i", "x.jsonl", "--on-error", "skip", "--rejects", "new", "--manifest", "./new"], None),
}


@pytest.mark.parametrize("name", ROLES)
def test_a_file_has_one_role(blendkit, names, name):
    flags, stdin = ROLES[name]
    before = names.read_bytes()
    command = [sys.executable, "-m", "blendkit", *RANK, *flags]
    with open(names.parent / stdin if stdin else os.devnull, "rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, text=True, timeout=60, cwd=names.parent)
    assert done.returncode == 2, done.stderr
    (told,) = done.stderr.splitlines()
    assert "they are the same file" in told
    assert all(flag in told for flag in name.split(",")[0].split() if flag.startswith("-"))
    assert names.read_bytes() == before
    assert not (names.parent / "new").exists()


MORE_ROLES = [
    ["generate", "-m", "openai:m", "-i", "x.jsonl", "--cache", "hard"],
    ["generate", "-m", "openai:m", "-i", "x.jsonl", "-o", "new", "--cache", "new"],
    ["generate", "-m", "openai:m", "-i", "x.jsonl", "--emit-batch", "hard"],
    ["generate", "-m", "openai:m", "-i", "sub.jsonl", "--read-batch", "x.jsonl", "-o", "soft"],
    ["judge", "-i", "sub.jsonl", "--prompt", "x.jsonl", "-o", "soft"],
    ["merge", "x.jsonl", "-o", "hard"],
    ["evaluate", "-i", "x.jsonl", "--plot", "hard"],
    ["evaluate", "-i", "x.jsonl", "--report", "page"],
    ["evaluate", "--compare", "x.jsonl", "-o", "soft"],
    ["evaluate", "--manifests", "x.jsonl", "--manifest", "soft"],
    ["score", "--metric", "bleu", "--bertscore-idf", "x.jsonl", "-o", "soft"],
    ["data", "convert", "--from", "csv", "x.jsonl", "-o", "soft"],
    ["data", "pull", "mixinstruct", "--from", "x.jsonl", "-o", "soft"],
    ["data", "build", "commongen", "--source", "commongen=x.jsonl", "-o", "hard"],
    ["train", "ranker", "-i", "x.jsonl", "--label", "q", "-o", "out", "--plot", "link.png"],
]


@pytest.mark.parametrize("arguments", MORE_ROLES, ids=" ".join)
def test_a_file_of_another_flag_has_one_role(names, arguments):
    folder = names.parent
    (folder / "page").mkdir()
    (folder / "page" / "index.html").hardlink_to(names)
    (folder / "link.png").hardlink_to(names)
    before = names.read_bytes()
    done = subprocess.run([sys.executable, "-m", "blendkit", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "they are the same file" in done.stderr and len(done.stderr.splitlines()) == 1
    assert names.read_bytes() == before


@pytest.mark.parametrize("redirection", ["< x.jsonl > x.jsonl", "< x.jsonl >> x.jsonl", "-i x.jsonl >> hard", "-i x.jsonl -o y 2>> x.jsonl"])
@pytest.mark.parametrize("command", ["rank --by score:q", "check"])
def test_the_shells_redirections_have_roles_too(names, command, redirection):
    if command == "check" and "-o" in redirection:
        pytest.skip("check has no -o")
    before = names.read_bytes()
    done = subprocess.run(f"{sys.executable} -m blendkit {command} {redirection}", shell=True, capture_output=True, text=True, timeout=60, cwd=names.parent)
    assert done.returncode == 2
    if "2>>" not in redirection:
        assert "they are the same file" in done.stderr
    if ">>" in redirection and "2>>" not in redirection:
        assert names.read_bytes() == before


def test_dev_null_and_one_place_for_records_and_messages_are_fine(names):
    for rest in ("-o /dev/null --manifest /dev/null --on-error skip --rejects /dev/null < /dev/null 2> /dev/null", "-i x.jsonl > both 2>&1"):
        done = subprocess.run(
            f"{sys.executable} -m blendkit rank --by score:q {rest}", shell=True, capture_output=True, text=True, timeout=60, cwd=names.parent
        )
        assert done.returncode == 0, done.stderr
    assert ids(names.parent / "both") == ["r0", "r1", "r2"]


def test_an_output_that_is_there_keeps_mode_and_link(blendkit, tmp_path):
    real, link = tmp_path / "real", tmp_path / "out.jsonl"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    assert blendkit(*RANK, "-o", link, stdin=lines(some(1))).returncode == 0
    assert link.is_symlink() and ids(real) == ["r0"] and stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_converter_that_is_called_wrongly_leaves_the_output_as_it_is(blendkit, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    assert blendkit("data", "convert", "--to", "nonsense", "-o", out, stdin=lines(some(1))).returncode == 2
    assert out.read_text() == "mine"


# --- standard streams -------------------------------------------------------------------------------------------------

GOOD, BAD = lines(some(2)), lines(some(1)) + "[1]\n"
STREAMS = [
    ("rank --by score:q", GOOD, 0),
    ("rank --by score:q", BAD, 65),
    ("rank --by score:q --on-error skip", BAD, 70),
    ("rank --by score:q -i /nowhere", "", 66),
    ("rank --by nothing", GOOD, 65),
    ("rank --nonsense", "", 2),
    ("rank --by score:q --progress bar", GOOD, 0),
    ("rank --by score:q --progress json --debug", BAD, 65),
    ("check", BAD, 65),
    ("evaluate", GOOD, 0),
    ("data stats", GOOD, 0),
]


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)"])
@pytest.mark.parametrize(("command", "stdin", "code"), STREAMS)
def test_stderr_that_is_closed_or_full_changes_nothing(command, stdin, code, where):
    def run(redirection: str) -> subprocess.CompletedProcess[str]:
        whole = f"{sys.executable} -m blendkit {command} {redirection}"
        return subprocess.run(["bash", "-c", whole], input=stdin, capture_output=True, text=True, timeout=60)

    calm, done = run(""), run(where)
    assert (calm.returncode, done.returncode) == (code, code)
    assert done.stdout == calm.stdout


def test_no_file_takes_the_place_of_a_closed_stderr(tmp_path):
    """The next file that is opened would get its number, and all messages."""
    (tmp_path / "in.jsonl").write_text(BAD)
    flags = "--on-error skip --rejects bad.jsonl --manifest m.json --progress json -o out.jsonl"
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m blendkit rank --by score:q -i in.jsonl {flags} <&- >&- 2>&-"], cwd=tmp_path, timeout=60)
    assert done.returncode == 70
    assert ids(tmp_path / "out.jsonl") == ["r0"]
    assert len(parsed((tmp_path / "bad.jsonl").read_text())) == 1
    assert json.loads((tmp_path / "m.json").read_text())["ended"] == "done"
    assert (tmp_path / "in.jsonl").read_text() == BAD


@pytest.mark.parametrize("command", ["--help", "--version", "rank --help", "", "data", "check --schema", "score --list", "rank --by score:q", "data stats"])
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_stdout_that_takes_nothing_is_74(command, where):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m blendkit {command} {where}"], input=GOOD, capture_output=True, text=True, timeout=60)
    assert done.returncode == 74, done.stderr
    assert ("standard output is closed" if where == ">&-" else "<stdout>: cannot write: No space left on device") in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_help_for_a_reader_that_leaves_ends_quietly():
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {sys.executable} -m blendkit --help | true"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_integers_of_any_length_are_kept(blendkit):
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**60, -(10**60), 0.1, 1e300, -0.0, 12345678901234567890.5]
    done = blendkit(*RANK, stdin=lines([{**record, "numbers": numbers} for record in some(2)]))
    assert done.returncode == 0, done.stderr
    for record in parsed(done.stdout):
        assert [repr(number) for number in record["numbers"]] == [repr(number) for number in numbers]


@pytest.mark.parametrize("command", [("rank", "--by", "score:q"), ("evaluate",), ("check",)])
def test_a_score_of_many_digits_is_a_number(blendkit, command):
    record = json.loads(json.dumps(some(1)[0]))
    record["candidates"][0]["scores"]["q"] = 10**40
    done = blendkit(*command, stdin=lines([record, *some(1, 1)]))
    assert done.returncode == 0, done.stderr
