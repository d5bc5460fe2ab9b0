"""`bin/bench gpu` as far as a CPU can run it, and how it runs a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def bench(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "bin" / "bench", "gpu", *words]
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, env=variables)


@pytest.mark.slow
def test_every_step_runs_at_a_tiny_shape_and_all_is_written(tmp_path):
    file = tmp_path / "new" / "found.json"
    done = bench("--tiny", "-o", file)
    assert done.returncode == 0, done.stderr
    found, table = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    assert [step["error"] for step in found["steps"]] == [None] * 13 and found["left_out"] == []
    rows = {section: [row for row in found["rows"] if row["section"] == section] for section in ("checks", "pair", "score", "generate", "fuse")}
    compared = [(row["form"], row["late"], row["dtype"]) for row in rows["checks"][:-1]]
    forms = ("flex", "batched", "varlen", "per-input", "plain")
    assert compared == [(form, late, dtype) for form in forms for dtype in ("bfloat16", "float32") for late in (None, 1, 2)]
    assert all(row["ok"] and 0 <= row["difference"] <= row["bound"] and row["largest_logit"] > 0.1 for row in rows["checks"][:-1])
    assert rows["checks"][-1]["form"] == "pytest -m gpu" and rows["checks"][-1]["failed"] == 0
    variants = [(row["variant"], row["batch_size"]) for row in rows["pair"]]
    assert variants == [("ours:bfloat16", None), ("plain:bfloat16", 2), ("plain:bfloat16", 4), ("late1:bfloat16", None)]
    for row in rows["pair"]:
        figures = ("pairs_per_s", "records_per_s", "of_matmul_rate", "matmul_gflops", "peak_mib", "first_calls_s", "steady_s")
        assert all(row[name] > 0 for name in figures) and ("difference" in row) == (not row["variant"].startswith("late")) and "logits" not in row
    assert [row["scorer"] for row in rows["score"]] == ["bertscore", "bartscore-precision", "bartscore"]
    assert all(row["package_per_s"] > 0 and row["ours_per_s"] > 0 and row["difference"] < 0.2 for row in rows["score"])
    assert all(row["plain_per_s"] > 0 and row["ours_per_s"] > 0 for row in rows["generate"] + rows["fuse"]) and rows["generate"] and rows["fuse"]
    assert table == done.stdout.removesuffix("\n") and found["machine"]["torch"] in table and found["machine"]["date"] in table
    for words in ("31 of 31 hold", "plain, batches of 4", "late, 1 paired", "bartscore-precision", "`generate`", "`fuse`"):
        assert words in table


def test_what_no_longer_fits_is_left_out_and_named(tmp_path):
    done = bench("--tiny", "--minutes", "0.001", "-o", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found, table = json.loads((tmp_path / "found.json").read_text()), (tmp_path / "found.md").read_text()
    assert found["rows"] == [] and len(found["left_out"]) == 13
    assert "Left out, as the time was up: checks: flex, checks: batched, checks: varlen" in table and "fuse: GenFuser." in table

    done = bench("--tiny", "--only", "score", "fuse", "--minutes", "0.001", "-o", tmp_path / "some.json")
    assert json.loads((tmp_path / "some.json").read_text())["left_out"] == [
        "score: bertscore against bfloat16",
        "score: bartscore against bfloat16",
        "fuse: GenFuser",
    ]


def test_what_a_step_finds_is_on_disk_at_once_and_a_check_that_fails_shows(tmp_path):
    from gpu import Results, Step

    results = Results(tmp_path / "found.json")
    card = {"card": "H100", "driver": "570.1", "memory_gib": 79.6, "capability": "9.0"}
    results.found["machine"] |= {**card, "torch": "2.13.0", "cuda": "12.8", "triton": None, "date": "2026-11-26"}
    check = {"form": "flex", "family": "deberta-v2", "late": None, "dtype": "float32"}

    def take(section: str, step: str, **row: object) -> tuple[dict, str]:
        results.taker(Step(section, step, (), 1, 1))(row)
        return json.loads(results.file.read_text()), results.file.with_suffix(".md").read_text()

    take("checks", "flex", **check, largest_logit=1.0, difference=1e-6, bound=1e-3, ok=True)
    assert not results.failed()
    found, table = take("checks", "flex", **check, error="TritonMissing: no Triton | here", ok=False)
    assert results.failed() and len(found["rows"]) == 2 and found["rows"][0]["difference"] == 1e-6
    assert "| flex | deberta-v2 | float32 | 1.0e-06 | 1.0e-03 | yes |\n" in table and "| **no**: TritonMissing: no Triton \\| here |\n" in table
    assert "on H100 (80 GiB, compute capability 9.0), driver 570.1" in table and "**Triton is not installed**" in table and "1 of 2 hold" in table

    figures = {"records_per_s": 1.0, "of_matmul_rate": 0.4, "matmul_gflops": 7e5, "peak_mib": 1e3, "first_calls_s": 9.5, "pairs": 3, "mean_length": 400.0}
    pair = {"model": "large", **figures}
    found, table = take("pair", "large ours:bfloat16", **pair, variant="ours:bfloat16", batch_size=None, pairs_per_s=900.0, logits=[1.0, 2.0, float("nan")])
    assert "| large | ours | bfloat16 | 900.0 |  |  | 1.00 | 40% of 700.0 TFLOP/s | 1,000 | 9.5 |  |" in table
    plain = pair | {"variant": "plain:float16"}
    take("pair", "large plain:float16", **plain, batch_size=8, pairs_per_s=90.0, logits=[1.0, 2.5, None])
    found, table = take("pair", "large plain:float16", **plain, batch_size=32, pairs_per_s=300.0, logits=[1.0, 2.5, 3.0])
    assert "| large | ours | bfloat16 | 900.0 | 10.00 | 3.00 |" in table and "| 9.5 | 5.0e-01 |" in table
    assert "| large | plain, batches of 32 | float16 | 300.0 | 3.33 | 1.00 |" in table
    assert all("logits" not in row for row in found["rows"]) and found["rows"][2]["difference"] == 0.5
    # A step of checks that did not end well is no check that held; one of speeds is told and no more.
    results = Results(tmp_path / "found.json")
    results.found["steps"].append({"section": "pair", "step": "large ours:bfloat16", "seconds": 1.0, "error": "ended by SIGSEGV"})
    results.write()
    assert not results.failed() and "- pair: large ours:bfloat16: ended by SIGSEGV" in results.file.with_suffix(".md").read_text()
    results.found["steps"].append({"section": "checks", "step": "flex", "seconds": 1.0, "error": "not done within 120 seconds, and ended"})
    assert results.failed()


def test_without_a_gpu_it_says_what_it_needs(tmp_path):
    done = bench("-o", tmp_path / "found.json", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert line.startswith("bin/bench gpu needs a CUDA device (") and line.endswith("bin/bench gpu --tiny runs every step at a tiny shape on the CPU")


def test_a_package_that_is_missing_is_named(tmp_path):
    # An interpreter without any of this one's packages.
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = bench(PYTHON=str(bare))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("bin/bench gpu: torch, transformers, numpy,") and "not installed for" in line


@pytest.mark.parametrize("loaded", [True, False])
def test_a_step_gives_its_rows_and_why_it_ended(tmp_path, loaded):
    from steps import run

    def ran(code: str, limit: float = 20) -> tuple[list[dict], str | None]:
        script = tmp_path / "script.py"
        script.write_text(code)
        rows: list[dict] = []
        return rows, run([str(script), "word"], limit, rows.append, loaded)

    assert ran("import sys; print('noise'); print('{not a row'); print({}); print('{\"a\": \"' + sys.argv[1] + '\"}')") == ([{}, {"a": "word"}], None)
    several = "class Missing(Exception): pass\nprint('{\"a\": 1}')\ndef f(): raise Missing('no Triton here\\n\\nSet THIS for more\\nand that')\nf()\n"
    assert ran(several) == ([{"a": 1}], "Missing: no Triton here")
    assert ran("import sys; sys.exit('it has no such thing')") == ([], "it has no such thing")
    assert ran("import sys; sys.exit(3)") == ([], "exit code 3")
    assert ran("import os; os.kill(os.getpid(), 9)") == ([], "ended by SIGKILL")
    # Whatever it has started is ended with it.
    start = time.monotonic()
    long = (
        "import subprocess, sys, time; print('{\"a\": 1}', flush=True); subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    assert ran(long, 0.7) == ([{"a": 1}], "not done within 1 seconds, and ended")
    assert time.monotonic() - start < 5
