"""generate and judge with real models: a tiny chat model here, and the same one behind `transformers serve`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import examples, lines, parsed

import blendkit as library
from blendkit.generators.options import Sampling

PROMPTS = [{key: record[key] for key in ("id", "instruction", "input", "output")} for record in examples(4)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def server(tiny_chat, tmp_path_factory):
    """An OpenAI-compatible server on the loopback interface; gives its base URL."""
    program = Path(sys.executable).parent / "transformers"
    command = str(program) if program.exists() else shutil.which("transformers")
    assert command, "transformers[serving] is not installed: pip install -e '.[dev]'"
    port = free_port()
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    process = subprocess.Popen([command, "serve", str(tiny_chat), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"], stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                pytest.fail(f"transformers serve did not start: {log.read()[-2000:]}")
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(timeout=20)


def texts(records):
    return [[candidate["text"] for candidate in record["candidates"]] for record in records]


def test_generate_adds_a_candidate_a_model_in_order(tiny_chat, tiny_t5):
    records = list(library.generate([dict(p) for p in PROMPTS], [f"chat={tiny_chat}", f"t5={tiny_t5}"], max_new_tokens=8, device="cpu"))
    for record in records:
        assert [c["model"] for c in record["candidates"]] == ["chat", "t5"]
        assert record["candidates"][0]["decoding_method"] == "sampling(temperature=0.7)"
        assert record["candidates"][0]["usage"]["completion_tokens"] <= 8


def test_sampling_depends_on_seed_and_record_but_not_on_the_batch(tiny_chat):
    from blendkit.generators.generating import Generating
    from blendkit.generators.options import EndpointOptions
    from blendkit.pipeline.runner import apply

    def run(seed, **plan):
        stage = Generating([f"c={tiny_chat}"], Sampling(max_new_tokens=12, temperature=1.0), EndpointOptions(), seed=seed, device="cpu")
        return texts(apply(stage, [dict(p) for p in PROMPTS], **plan))

    assert all(text for row in run(1) for text in row)
    assert run(1) == run(1, window=1) == run(1, batch_tokens=1)
    assert run(1) != run(2)


def test_greedy_is_what_transformers_gives(tiny_chat):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (record,) = library.generate([dict(PROMPTS[0])], [f"c={tiny_chat}"], max_new_tokens=10, temperature=0, device="cpu")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_chat).eval(), AutoTokenizer.from_pretrained(tiny_chat)
    ids = tokenizer(f"user: {PROMPTS[0]['instruction']}\nassistant: ", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    assert record["candidates"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_generate_by_an_endpoint(blendkit, server, tiny_chat):
    done = blendkit(
        "generate", "-m", f"a=openai:{tiny_chat}", "--base-url", server, "--temperature", 0, "--max-new-tokens", 8, "--concurrency", 2, stdin=lines(PROMPTS)
    )
    assert done.returncode == 0
    assert done.stderr == f"blendkit generate: 4 answers of openai:{tiny_chat} ended at --max-new-tokens (finish_reason `length`)\n"
    out = parsed(done.stdout)
    local = list(library.generate([dict(p) for p in PROMPTS], [f"a={tiny_chat}"], max_new_tokens=8, temperature=0, device="cpu"))
    assert [text[0].strip() for text in texts(out)] == [text[0] for text in texts(local)]
    assert all(record["candidates"][0]["usage"]["completion_tokens"] > 0 for record in out)


def test_judge_by_an_endpoint_records_what_it_cannot_parse(blendkit, server, tiny_chat):
    records = examples(2)
    for record in records:
        record["candidates"] = record["candidates"][:3]
    done = blendkit(
        "judge", "-m", f"openai:{tiny_chat}", "--name", "tiny", "--base-url", server, "--max-new-tokens", 4, "--max-unparsed", 1, stdin=lines(records)
    )
    assert done.returncode == 0
    for record in parsed(done.stdout):
        verdicts = record["verdicts"]["tiny"]
        assert [tuple(v["shown"]) for v in verdicts] == [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
        assert all(v["a"] < v["b"] for v in verdicts)
        assert all(v["verdict"] in ("A", "B", "tie-good", "tie-bad") or (v["verdict"] == "unparsed" and "reason" in v) for v in verdicts)


def test_an_endpoint_that_refuses_is_69_and_nothing_is_torn(blendkit):
    url = f"http://127.0.0.1:{free_port()}/v1"
    done = blendkit("generate", "-m", "openai:x", "--base-url", url, "--retries", 1, stdin=lines(PROMPTS))
    assert done.returncode == 69
    assert f"{url} cannot be reached" in done.stderr and "is the server running?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_missing_key_says_what_to_set(blendkit):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    done = blendkit("judge", "-m", "openai:gpt-4o-mini", stdin=lines(examples(1)), env=environment)
    assert done.returncode == 69
    assert "OPENAI_API_KEY is not set" in done.stderr


def test_a_key_never_reaches_the_output(blendkit, server, tiny_chat, tmp_path):
    environment = {**os.environ, "OPENAI_API_KEY": "sk-planted-0123456789"}
    arguments = ["generate", "-m", f"openai:{tiny_chat}", "--base-url", server, "--max-new-tokens", 2, "--manifest", tmp_path / "m.json"]
    done = blendkit(*arguments, stdin=lines(PROMPTS[:1]), env=environment)
    assert done.returncode == 0
    assert "sk-planted" not in done.stdout + done.stderr + (tmp_path / "m.json").read_text()
