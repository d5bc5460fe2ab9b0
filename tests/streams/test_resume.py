"""`--resume` mixes no two runs: another run's flags and models are refused, edited records are done again, and no crash makes it forget."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import zstandard
from conftest import lines, parsed
from hypothesis import given, settings
from hypothesis import strategies as st

from blendkit.pipeline.engines.pool import About, Distributed, Said
from blendkit.streams.fingerprint import SUFFIX, MadeBy

RANK = ("rank", "--by", "score:q")


def some(count: int, **more) -> list[dict]:
    scores = [{"model": name, "text": name, "scores": {"q": number}, "x": number} for number, name in enumerate("mn")]
    return [{"id": f"r{n}", "instruction": "say x", "candidates": scores, **more} for n in range(count)]


def read(path: Path) -> list[dict]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return parsed(data.decode())


def ids(path: Path) -> list[str]:
    return [record["id"] for record in read(path)]


def fingerprint(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def refused(called, out: Path, *arguments: object, stdin: str) -> str:
    """The one line that says why; nothing has changed, and --resume=force goes on."""
    before = out.read_bytes(), fingerprint(out).read_bytes()
    code, _, said = called(*arguments, "-o", out, "--resume", stdin=stdin)
    assert code == 65, said
    assert (out.read_bytes(), fingerprint(out).read_bytes()) == before
    assert sorted(path.name for path in out.parent.glob(".*")) == []
    (line,) = said.splitlines()
    start = f"blendkit {arguments[0]}: {out}: cannot resume: "
    assert line.startswith(start) and line.endswith("; --resume=force goes on all the same")
    assert called(*arguments, "-o", out, "--resume=force", stdin=stdin)[0] == 0
    assert called(*arguments, "-o", out, "--resume", stdin=stdin)[0] == 0
    return line.removeprefix(start).removesuffix("; --resume=force goes on all the same")


@pytest.mark.parametrize(
    ("first", "then", "difference"),
    [
        (["--top", 1], ["--top", 2], "--top: 1 then, 2 now"),
        (["--name", "a"], [], "--name: a then, none now"),
        (["--on-error", "skip"], ["--top", 4, "--on-error", "fail"], "--top: 3 then, 4 now"),
        (["--aggregate", "max-wins"], ["--aggregate", "copeland", "--top", 1], "--aggregate: max-wins then, copeland now; --top: 3 then, 1 now"),
    ],
)
def test_a_flag_that_decides_a_value_may_not_change(called, tmp_path, first, then, difference):
    out = tmp_path / "out.jsonl"
    assert called(*RANK, *first, "-o", out, stdin=lines(some(2)))[0] == 0
    assert refused(called, out, *RANK, *then, stdin=lines(some(4))) == difference


def test_what_is_ranked_by_may_not_change(called, tmp_path):
    out = tmp_path / "out.jsonl"
    assert called(*RANK, "-o", out, stdin=lines(some(2)))[0] == 0
    assert refused(called, out, "rank", "--by", "oracle:x", stdin=lines(some(4))) == "--by: score:q then, oracle:x now"


def test_another_command_does_not_go_on_with_an_output(called, tmp_path):
    out = tmp_path / "out.jsonl"
    assert called(*RANK, "-o", out, stdin=lines(some(2)))[0] == 0
    assert refused(called, out, "score", "--metric", "length", stdin=lines(some(4))) == "command: rank then, score now"


def test_schedule_and_checkpoint_of_a_ranker(called, tmp_path, tiny_ranker):
    """Other weights under the same name, too."""
    model, out = tmp_path / "model", tmp_path / "out.jsonl"
    shutil.copytree(tiny_ranker, model)
    pair = ("pair", "-m", model, "-q")
    assert called(*pair, "-o", out, stdin=lines(some(2)))[0] == 0
    # What decides only how fast it goes may change.
    assert called(*pair, "-o", out, "--resume", "--window", 1, "--batch-tokens", 99, "--device", "cpu", "--on-truncate", "fail", stdin=lines(some(3)))[0] == 0
    assert refused(called, out, *pair, "--schedule", "single", stdin=lines(some(4))) == "--schedule: full then, single now"
    from blendkit.models.loading import fingerprint as hashed

    then = hashed(str(model))
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    hashed.cache_clear()
    assert refused(called, out, *pair, "--schedule", "single", stdin=lines(some(5))) == f'model "{model}", hash: {then} then, {hashed(str(model))} now'
    model.rename(tmp_path / "other")
    assert refused(called, out, "pair", "-m", tmp_path / "other", stdin=lines(some(6))).startswith(f"models: {model} then, {tmp_path / 'other'} now; --sched")


def test_another_model_of_the_same_name_and_no_secret_beside_the_output(called, tmp_path, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    server, out = serve(), tmp_path / "out.jsonl"
    prompts = [{"id": f"r{n}", "instruction": "say x"} for n in range(5)]
    body = json.dumps({"top_k": 4, "api_key": "planted-in-the-body-0123456789"})
    url = server.url.replace("//", "//user:planted-in-the-url-0123456789@")
    monkeypatch.delenv("OPENAI_API_KEY")
    ask = ("generate", "--base-url", url, "--extra-body", body, "--cache", "none", "-q")
    assert called(*ask, "-m", "a=openai:x", "-o", out, stdin=lines(prompts[:2]))[0] == 0
    assert "planted" not in fingerprint(out).read_text() and "sk-" not in fingerprint(out).read_text()
    assert called(*ask, "-m", "a=openai:x", "--concurrency", 2, "--retries", 1, "-o", out, "--resume", stdin=lines(prompts[:3]))[0] == 0
    assert refused(called, out, *ask, "-m", "a=openai:y", stdin=lines(prompts[:4])) == 'model "a": openai:x then, openai:y now'
    assert refused(called, out, *ask, "-m", "b=openai:y", stdin=lines(prompts)) == "models: a then, b now"


def test_files_that_flags_name_are_compared_by_what_is_in_them(called, tmp_path, serve):
    server, out, prompt = serve(reply=lambda body: "A"), tmp_path / "out.jsonl", tmp_path / "prompt.toml"
    from blendkit.judges.prompting import load_prompt

    assert load_prompt("pairwise")
    source = Path(load_prompt.__code__.co_filename).parent / "prompts"
    shutil.copy(next(source.glob("pairwise.*")), prompt)
    judge = ("judge", "-m", "openai:x", "--base-url", server.url, "--cache", "none", "--prompt", prompt, "--max-unparsed", 1, "-q")
    assert called(*judge, "-o", out, stdin=lines(some(1)))[0] == 0
    assert called(*judge, "-o", out, "--resume", "--max-unparsed", 0.9, stdin=lines(some(1)))[0] == 0
    prompt.write_text(prompt.read_text() + "\n# Changed.\n")
    assert refused(called, out, *judge, stdin=lines(some(2))).startswith(f"--prompt: {prompt} (")


@pytest.mark.parametrize("value", ["yes", "force,", "plain x"])
def test_resume_takes_no_other_word(called, tmp_path, value):
    code, _, said = called(*RANK, "-o", tmp_path / "out", f"--resume={value}", stdin=lines(some(1)))
    assert (code, said) == (2, f"blendkit rank: --resume={value}: expected --resume alone, or --resume=force\n")


# --- edited records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_edited_records_are_done_again_in_their_places(called, tmp_path, suffix):
    out, fresh = tmp_path / f"out.jsonl{suffix}", tmp_path / "fresh.jsonl"
    stream = some(600)
    assert called(*RANK, "-o", out, "--window", 7, stdin=lines(stream[:500]))[0] == 0
    out.chmod(0o640)
    for n in (0, 3, 255, 256, 499):
        stream[n] = {**stream[n], "candidates": stream[n]["candidates"][::-1]}
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(stream))
    assert (code, said) == (0, f"blendkit rank: 5 records were edited since {out} was written and done again in place\n")
    assert called(*RANK, "-o", fresh, stdin=lines(stream))[0] == 0
    assert read(out) == read(fresh) and out.stat().st_mode & 0o777 == 0o640
    assert called(*RANK, "-o", out, "--resume", stdin=lines(stream)) == (0, "", "")
    # What was put back is an edit as well.
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(some(600)))
    assert code == 0 and "5 records were edited" in said
    assert called(*RANK, "-o", fresh, stdin=lines(some(600)))[0] == 0 and read(out) == read(fresh)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, fresh.name, out.name + SUFFIX, fresh.name + SUFFIX}


def test_edited_records_that_moved_are_there_once(called, tmp_path):
    out = tmp_path / "out.jsonl"
    stream = some(6)
    assert called(*RANK, "-o", out, stdin=lines(stream))[0] == 0
    edited = [stream[0], *({**record, "note": 1} for record in reversed(stream[1:])), {**some(1)[0], "id": "new"}]
    assert called(*RANK, "-o", out, "--resume", "--window", 2, stdin=lines(edited))[0] == 0
    assert sorted(ids(out)) == sorted(record["id"] for record in edited)
    assert all(record.get("note") for record in read(out) if record["id"] not in ("r0", "new"))
    assert called(*RANK, "-o", out, "--resume", stdin=lines(edited)) == (0, "", "")


def test_an_edited_record_that_is_bad_now_leaves_the_output(called, tmp_path):
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    stream = some(4)
    assert called(*RANK, "-o", out, stdin=lines(stream))[0] == 0
    stream[1] = {**stream[1], "candidates": []}
    stream[2] = {**stream[2], "note": 1}
    flags = (*RANK, "-o", out, "--resume", "--on-error", "skip", "--rejects", bad)
    code, _, said = called(*flags, stdin=lines(stream))
    assert code == 70 and ids(out) == ["r0", "r2", "r3"] and len(read(bad)) == 1
    assert "1 record was edited" in said and "1 is bad now and was taken out" in said
    # Under --on-error fail it stays until it can be done; what was done before it counts.
    stream[0], stream[3] = {**stream[0], "note": 2}, {**stream[3], "instruction": 7}
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines([stream[0], *stream[2:]]))
    assert code == 65 and "1 record was edited" in said
    assert [record.get("note") for record in read(out)] == [2, 1, None]


def test_records_without_ids_of_another_file_are_not_taken_for_the_old_ones(called, tmp_path):
    """Their ids are line numbers, which are those of any file."""
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    first, second = ([{key: value for key, value in record.items() if key != "id"} for record in some(3, note=note)] for note in (1, 2))
    assert called(*RANK, "-o", out, stdin=lines(first))[0] == 0
    assert called(*RANK, "-o", other, stdin=lines(second))[0] == 0
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(second))
    assert code == 0 and "3 records were edited" in said and read(out) == read(other)


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(called, tmp_path_factory):
    """A run with one resume, one edit and one skipped record: its input, its output and its fingerprint."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    stream = some(8)
    stream[4] = {**stream[4], "candidates": []}
    assert called(*RANK, "--on-error", "skip", "-o", out, "--window", 2, stdin=lines(stream))[0] == 70
    stream[1] = {**stream[1], "note": 1}
    assert called(*RANK, "--on-error", "skip", "-o", out, "--resume", "--window", 2, stdin=lines([*stream, {**some(1)[0], "id": "new"}]))[0] == 70
    return lines([*stream, {**some(1)[0], "id": "new"}]), out.read_bytes(), fingerprint(out).read_bytes()


@settings(max_examples=min(150, settings().max_examples))
@given(st.data())
def test_whatever_a_crash_leaves_resume_makes_it_whole(called, whole, tmp_path_factory, data):
    """Both files cut at any byte, or one of them gone; what is edited meanwhile is found wherever the fingerprint still knows."""
    stream, output, beside = whole
    out = tmp_path_factory.mktemp("cut") / "out.jsonl"
    kept = data.draw(st.integers(0, len(output)), label="output")
    said = data.draw(st.one_of(st.none(), st.integers(0, len(beside)), st.just(len(beside))), label="fingerprint")
    out.write_bytes(output[:kept])
    if said is not None:
        fingerprint(out).write_bytes(beside[:said])
    edited = data.draw(st.sampled_from(["r0", "r1", "r5", "r7"]), label="edited")
    changed = lines([{**record, "note": 2} if record["id"] == edited else record for record in parsed(stream)])
    code, _, told = called(*RANK, "--on-error", "skip", "-o", out, "--resume", stdin=changed)
    assert code == 70, told
    assert ids(out) == [record["id"] for record in parsed(output.decode())]
    knows = said == len(beside) or edited not in [record["id"] for record in parsed(output[:kept].rpartition(b"\n")[0].decode())]
    assert not knows or [record.get("note") for record in read(out) if record["id"] == edited] == [2]
    assert called(*RANK, "--on-error", "skip", "-o", out, "--resume", stdin=changed)[0] == 70
    assert ids(out) == [record["id"] for record in parsed(output.decode())]


def test_records_that_were_promised_and_never_written_are_done(called, whole, tmp_path):
    """A kill between the fingerprint's block and the output's, then an edit of just these records."""
    stream, output, beside = whole
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"".join(output.splitlines(keepends=True)[:3]))
    fingerprint(out).write_bytes(beside)
    changed = lines([{**record, "note": 3} if record["id"] == "r7" else record for record in parsed(stream)])
    for text in (changed, stream):
        assert called(*RANK, "--on-error", "skip", "-o", out, "--resume", stdin=text)[0] == 70
        assert [record["note"] for record in read(out) if record["id"] == "r7" and "note" in record] == ([3] if text == changed else [])


def test_an_output_without_its_fingerprint_is_gone_on_with(called, tmp_path):
    """Of an older version, moved, or with that of another file beside it."""
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    assert called(*RANK, "--top", 1, "-o", out, stdin=lines(some(2)))[0] == 0
    assert called(*RANK, "-o", other, stdin=lines([{**record, "id": f"other {record['id']}"} for record in some(2)]))[0] == 0
    for beside in (None, fingerprint(other).read_bytes(), b"", b"{", b"[]\n", b'{"blendkit":1}\n', b"\xff\xfe\n"):
        fingerprint(out).unlink(missing_ok=True)
        if beside is not None:
            fingerprint(out).write_bytes(beside)
        code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(some(2, note=1)))
        assert code == 0 and len(said.splitlines()) == 1 and f"{out} has no {SUFFIX} of its own beside it" in said
    assert called(*RANK, "-o", out, "--resume", stdin=lines(some(3)))[0] == 0
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(some(3)))
    assert (code, said) == (0, f"blendkit rank: 2 records of {out} cannot be compared with their input\n")
    # A fingerprint whose output was moved away binds nobody.
    out.unlink()
    assert called(*RANK, "--top", 2, "-o", out, "--resume", stdin=lines(some(3))) == (0, "", "")


def test_another_version_is_told_and_not_refused(called, tmp_path):
    out = tmp_path / "out.jsonl"
    assert called(*RANK, "-o", out, stdin=lines(some(2)))[0] == 0
    first, *rest = fingerprint(out).read_text().splitlines(keepends=True)
    run = json.loads(first)
    run["blendkit"] = "0.0.1"
    del run["flags"]["--reference"]
    fingerprint(out).write_text("".join([json.dumps(run) + "\n", *rest]))
    code, _, said = called(*RANK, "-o", out, "--resume", stdin=lines(some(3)))
    assert code == 0 and said.startswith(f"blendkit rank: version 0.0.1 began {out}, this is ") and len(said.splitlines()) == 1


# --- skipped records, shards, other places ----------------------------------------------------------------------------


def test_what_an_earlier_run_skipped_counts_while_it_is_missing(called, tmp_path):
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    stream = some(6)
    broken = {**stream[1], "candidates": []}
    flags = (*RANK, "-o", out, "--on-error", "skip", "--rejects", bad)
    assert called(*flags, stdin=lines([stream[0], broken, *stream[2:4]]))[0] == 70
    # The input goes on where the earlier one ended: nothing is skipped now.
    for rest in (stream[3:], stream[4:]):
        code, _, said = called(*flags, "--resume", stdin=lines([stream[0], *rest]))
        assert code == 70 and f"neither in <stdin> nor in {out} is 1 record that an earlier run skipped as bad (r1)" in said
    assert called(*flags, "--resume", stdin=lines([stream[0], stream[1]]))[0] == 0
    assert called(*flags, "--resume", stdin=lines(stream)) == (0, "", "")
    assert called(*flags, stdin=lines([stream[0], broken]))[0] == 70
    assert called(*flags, "--resume=force", stdin=lines([stream[0], stream[2]]))[0] == 0
    assert called(*flags, "--resume", stdin=lines([stream[0], stream[2]]))[0] == 0


def test_shards_have_a_fingerprint_each_and_merge_reads_records_alone(called, tmp_path):
    stream = some(9)
    (tmp_path / "in.jsonl").write_text(lines(stream))
    for part in range(2):
        flags = (*RANK, "-i", tmp_path / "in.jsonl", "-o", tmp_path / f"part-{part}.jsonl", "--shard", f"{part}/2")
        assert called(*flags)[0] == 0 and called(*flags, "--resume") == (0, "", "")
    # As a shell expands part-*.jsonl.
    code, out, said = called("merge", *sorted(tmp_path.glob("part-*.jsonl")), "-i", tmp_path / "in.jsonl")
    assert code == 0 and [record["id"] for record in parsed(out)] == [record["id"] for record in stream], said


def test_links_stay_links(called, tmp_path):
    """-o, --rejects, --manifest and --plot write what they lead to, also what is not there yet, and so does a resume that puts records anew."""
    real = tmp_path / "elsewhere"
    real.mkdir()
    names = ["out.jsonl", "out.jsonl.gz", "bad.jsonl", "manifest.json", "plot.png"]
    for name in names:
        (tmp_path / name).symlink_to(real / name)
    stream = some(5)
    for output in names[:2]:
        flags = (*RANK, "-o", tmp_path / output, "--on-error", "skip", "--rejects", tmp_path / names[2], "--manifest", tmp_path / names[3])
        for text in (lines(stream) + "[1]\n", lines([{**stream[0], "note": 1}, *stream[1:]]) + "[1]\n"):
            assert called(*flags, "--resume", stdin=text)[0] == 70
        assert read(real / output)[0]["note"] == 1
        torn = (real / output).read_bytes()[:-9]
        (real / output).write_bytes(torn)
        assert called(*RANK, "-o", real / output, "--resume", stdin=lines([{**stream[0], "note": 1}, *stream[1:]]))[0] == 0
        assert len(read(real / output)) == 5
    assert called("evaluate", "-i", tmp_path / names[0], "--oracle", "q", "--plot", tmp_path / "plot.png")[0] == 0
    assert all((tmp_path / name).is_symlink() and (real / name).is_file() for name in names)
    assert {path.name for path in real.iterdir()} == {*names, *(name + SUFFIX for name in names[:2])}


@pytest.mark.parametrize("out", ["/dev/null", "-"])
def test_what_is_no_file_has_no_fingerprint(called, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    assert called(*RANK, "-o", out, stdin=lines(some(2)))[0] == 0
    assert not list(tmp_path.iterdir()) and not Path(f"/dev/null{SUFFIX}").exists()


def test_workers_are_asked_which_models_they_have():
    """What a run of several processes writes beside its output is what one process would."""

    class Worker:
        def describe(self):
            return Said({"models": {"embedded": "1a2b"}}, [], None)

    class Workers:
        about, workers = About("pair", 1, 1, True), dict(enumerate([Worker()]))
        options = type("Options", (), {"workers": 2, "engine": "local"})

    assert Distributed(Workers()).describe()["models"] == {"embedded": "1a2b"}


def test_only_the_tables_of_a_models_file_that_the_command_uses_are_compared(called, tmp_path, serve):
    out, models = tmp_path / "out.jsonl", tmp_path / "models.toml"
    table = '[{}]\nmodel = "openai:{}"\nbase_url = "{}"\n'
    ask = ("generate", "-m", "a", "--models-file", models, "--cache", "none", "-q", "-o", out)
    prompts, url = [{"id": f"r{n}", "instruction": "say x"} for n in range(3)], serve().url
    models.write_text(table.format("a", "x", url) + table.format("other", "y", url))
    assert called(*ask, stdin=lines(prompts[:1]))[0] == 0
    models.write_text(table.format("a", "x", url) + table.format("other", "y", url) + "system = 'Be brief.'\n")
    assert called(*ask, "--resume", stdin=lines(prompts[:2]))[0] == 0
    models.write_text(table.format("a", "x", url) + "system = 'Be brief.'\n")
    assert refused(called, out, *ask[:-2], stdin=lines(prompts)).startswith("--models-file a: ")


def test_weights_are_read_for_their_hash_only_beside_a_file(called, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("blendkit.pipeline.run.MadeBy.of", lambda *given: read.append(given) or MadeBy("1", "rank", {}, {}))
    assert called(*RANK, stdin=lines(some(2)))[0] == 0 and not read
    assert called(*RANK, "-o", tmp_path / "out.jsonl", stdin=lines(some(2)))[0] == 0 and len(read) == 1
