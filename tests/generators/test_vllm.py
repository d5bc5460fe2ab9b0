"""`vllm:MODEL`: generate, judge and fuse with vLLM in process, by a stand-in of its interface (tests/stand_ins/vllm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, examples, lines, parsed

PROMPTS = [
    {"id": str(number), "instruction": f"Why is {word} so?"} for number, word in enumerate(["bread", "the sea", "a very long winter in the north", "ice"])
]


@pytest.fixture
def vllm(blendkit, tmp_path):
    """A command with the stand-in installed; `.log()` is what it was asked."""

    def run(*arguments, records=PROMPTS, **environment):
        path = os.pathsep.join([str(ROOT / "tests" / "stand_ins"), str(ROOT)])
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "STAND_IN_LOG": str(tmp_path / "log")} | environment
        return blendkit(*arguments, stdin=lines(records), env=environment)

    run.log = lambda key: [row[key] for row in parsed((tmp_path / "log").read_text()) if key in row]
    return run


def texts(done):
    return [record["candidates"][0]["text"] for record in parsed(done.stdout)]


def test_it_writes_what_transformers_writes(vllm, tiny_chat):
    command = ["--temperature", "0", "--max-new-tokens", "12", "--logprobs"]
    done = vllm("generate", "-m", f"x=vllm:{tiny_chat}", "-m", f"y={tiny_chat}", *command)
    assert done.returncode == 0, done.stderr
    for record in parsed(done.stdout):
        one, other = record["candidates"]
        assert one["scores"].pop("logprobs") == pytest.approx(other["scores"].pop("logprobs"), abs=1e-5)
        assert one | {"model": "y"} == other and one["usage"]["completion_tokens"] > 0


def test_a_window_is_asked_at_once_and_what_begins_alike_stands_together(vllm, tiny_chat):
    records = [{"id": f"{number}", "instruction": f"{'AB'[number % 2] * 20} {'long ' * number}"} for number in range(40)]
    done = vllm("generate", "-q", "-m", f"x=vllm:{tiny_chat}", "--max-new-tokens", "2", records=records)
    assert done.returncode == 0, done.stderr
    (prompts,) = vllm.log("prompts")
    assert len(prompts) == 40 and prompts == sorted(prompts)
    (started,) = vllm.log("started")
    assert started["enable_prefix_caching"] is True and started["logprobs_mode"] == "raw_logprobs" and started["trust_remote_code"] is False
    # In parts, a CPU cannot draw by a seed.
    assert started["enable_chunked_prefill"] is False


def test_stdout_has_records_alone_however_noisy_the_library_is(vllm, tiny_chat):
    done = vllm("generate", "-m", f"vllm:{tiny_chat}", "--max-new-tokens", "3")
    assert done.returncode == 0 and [record["id"] for record in parsed(done.stdout)] == ["0", "1", "2", "3"]
    assert done.stderr.count("Resolved architecture") == done.stderr.count("Initializing a V1") == done.stderr.count("INFO ready") == 1


def test_draws_depend_on_seed_and_record_and_on_no_window(vllm, tiny_chat):
    command = ["generate", "-q", "-m", f"x=vllm:{tiny_chat}", "--max-new-tokens", "8", "--temperature", "1"]
    whole, split, other = vllm(*command), vllm(*command, "--window", "1"), vllm(*command, "--seed", "5")
    assert texts(whole) == texts(split) != texts(other)


def test_settings_of_a_model_stand_behind_a_question_mark(vllm, tiny_chat, tmp_path):
    spec = f"vllm:{tiny_chat}?max_model_len=256&gpu_memory_utilization=0.5&enforce_eager=true"
    done = vllm("generate", "-q", "-m", spec, "--max-new-tokens", "2", "--manifest", tmp_path / "manifest.json")
    assert done.returncode == 0, done.stderr
    assert {record["candidates"][0]["model"] for record in parsed(done.stdout)} == {spec}
    (started,) = vllm.log("started")
    assert (started["max_model_len"], started["gpu_memory_utilization"], started["enforce_eager"]) == (256, 0.5, True)
    described = json.loads((tmp_path / "manifest.json").read_text())["models"][spec]
    assert described["vllm"] == {"max_model_len": 256, "gpu_memory_utilization": 0.5, "enforce_eager": True} and described["dtype"] == "float32"


def test_a_prompt_without_room_is_cut_and_told_or_bad(vllm, tiny_chat):
    records = [{"id": "a", "instruction": "Why?"}, {"id": "b", "instruction": "word " * 500}]
    command = ["generate", "-m", f"x=vllm:{tiny_chat}?max_model_len=128", "--max-new-tokens", "8"]
    done = vllm(*command, records=records)
    assert done.returncode == 0 and "1 of 2 prompts" in done.stderr
    assert parsed(done.stdout)[1]["candidates"][0]["usage"]["prompt_tokens"] == 120
    done = vllm(*command, "--on-truncate", "fail", "--on-error", "skip", records=records)
    assert done.returncode == 70 and [record["id"] for record in parsed(done.stdout)] == ["a"]
    assert "<stdin>:2" in done.stderr and "too long for vllm:" in done.stderr


def test_models_take_turns_in_memory_and_end_with_the_command(vllm, tiny_chat):
    done = vllm("generate", "-q", "-m", f"x=vllm:{tiny_chat}", "-m", f"y=vllm:{tiny_chat}?max_model_len=256", "--window", "2", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert len(vllm.log("started")) == len(vllm.log("ended")) == 4


def test_a_judge_weighs_verdicts_as_a_local_model_does(vllm, tiny_chat):
    command = ["judge", "-q", "-m", f"x=vllm:{tiny_chat}", "-m", f"y={tiny_chat}", "--orders", "both"]
    done = vllm(*command, records=examples(2))
    assert done.returncode == 0, done.stderr
    for record in parsed(done.stdout):
        pairs = list(zip(record["verdicts"]["x"], record["verdicts"]["y"], strict=True))
        assert len(pairs) == 20
        for one, other in pairs:
            assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-5)
            assert one == other
    # One token each, that which is asked for.
    assert all(params["max_tokens"] == len(params["allowed_token_ids"]) == 1 for params in vllm.log("parameters")[0])


def test_a_verdict_of_several_tokens_is_weighed_whole(vllm, tiny_chat, tmp_path):
    prompt = tmp_path / "prompt.toml"
    prompt.write_text(
        'text = "{request} {answer_a} {answer_b} {reply}"\n[verdicts]\nA = ["the first"]\nB = ["the second"]\n"tie-good" = ["both"]\n"tie-bad" = ["neither"]\n'
    )
    command = ["judge", "-q", "-m", f"x=vllm:{tiny_chat}", "-m", f"y={tiny_chat}", "--prompt", prompt]
    done = vllm(*command, records=examples(1))
    assert done.returncode == 0, done.stderr
    (record,) = parsed(done.stdout)
    for one, other in zip(record["verdicts"]["x"], record["verdicts"]["y"], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_a_judge_may_be_read_as_text(vllm, tiny_chat):
    done = vllm("judge", "-q", "-m", f"x=vllm:{tiny_chat}", "--verdict-by", "text", "--max-new-tokens", "4", records=examples(1))
    assert parsed(done.stdout)[0]["verdicts"]["x"][0]["verdict"] == "unparsed"


def test_it_fuses(vllm, tiny_chat):
    record = examples(1)[0] | {"top": [1, 0]}
    done = vllm("fuse", "-q", "-m", f"vllm:{tiny_chat}", "--name", "blend", "--max-new-tokens", "6", records=[record])
    assert done.returncode == 0, done.stderr
    added = parsed(done.stdout)[0]["candidates"][-1]
    assert added["model"] == "blend" and added["sources"] == [1, 0] and added["usage"]["completion_tokens"] <= 6


def test_a_preset_gives_its_format_and_its_stops(vllm, tiny_chat):
    done = vllm("generate", "-q", "-m", f"x=vicuna:vllm:{tiny_chat}", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert {tuple(params["stop"]) for params in vllm.log("parameters")[0]} == {("</s>", "USER:")}


def test_what_a_record_spells_is_no_control_token(vllm, tiny_chat):
    record = {"id": "a", "instruction": "Say </s> and <pad>"}
    done = vllm("generate", "-q", "-m", f"x=vllm:{tiny_chat}", "--max-new-tokens", "2", records=[record])
    assert done.returncode == 0, done.stderr
    assert not {0, 1} & {*vllm.log("prompts")[0][0]}


@pytest.mark.parametrize(
    ("spec", "flags", "code", "said"),
    [
        ("/no/such/model", (), 66, "no model '/no/such/model'"),
        ("/models/small.gguf", (), 2, "a GGUF file loads without `vllm:`"),
        ("CHAT?nonsense=1", (), 2, "unexpected keyword argument 'nonsense'"),
        ("CHAT?max_model_len=999999", (), 2, "User-specified max_model_len (999999) is greater than the derived max_model_len"),
        ("CHAT?gpu_memory_utilization=0.001", (), 75, "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        ("CHAT?gpu_memory_utilization=much", (), 2, "1 validation error for CacheConfig gpu_memory_utilization"),
        ("CHAT?trust_remote_code=true", (), 2, "trust_remote_code is --trust-remote-code"),
        ("CHAT?max_model_len", (), 2, "expected vllm:MODEL?NAME=VALUE&NAME=VALUE, got 'max_model_len'"),
        ("T5", (), 66, "Model architectures ['T5ForConditionalGeneration'] are not supported for now"),
        ("CHAT", ("--decoding", "beam:4"), 2, "has no such method"),
        ("CHAT", ("--decoding", "typical"), 2, "has no such method"),
        ("CHAT", ("--device", "cuda:7"), 2, "--device cuda:7"),
        ("CHAT", ("--base-url", "http://localhost:1/v1"), 2, "--base-url: vllm has no such option; openai has"),
    ],
)
def test_what_cannot_be_is_one_line_with_its_code(vllm, tiny_chat, tiny_t5, spec, flags, code, said):
    spec = spec.replace("CHAT", str(tiny_chat)).replace("T5", str(tiny_t5))
    done = vllm("generate", "-q", "-m", f"x=vllm:{spec}", "--max-new-tokens", "2", *flags)
    told = [line for line in done.stderr.splitlines() if line.startswith("blendkit generate: ")]
    assert (done.returncode, done.stdout, len(told)) == (code, "", 1) and said in told[0], done.stderr


def test_an_engine_that_does_not_start_is_not_tried_again(vllm, tiny_chat):
    done = vllm("generate", "-q", "-m", f"x=vllm:{tiny_chat}", STAND_IN_BROKEN="1")
    assert done.returncode == 66 and "vLLM does not start: Engine core initialization failed" in done.stderr
    assert len(vllm.log("started")) == 1


def test_memory_that_runs_out_is_said_in_the_librarys_words(vllm, tiny_chat):
    done = vllm("generate", "-q", "-m", f"x=vllm:{tiny_chat}", STAND_IN_DIES="1")
    assert done.returncode == 75 and "CUDA out of memory. Tried to allocate 2.00 GiB." in done.stderr
    assert len(vllm.log("prompts")) == 1 and vllm.log("ended") == [True]


def test_without_vllm_one_line_says_how_to_get_it(tiny_chat, tmp_path):
    code = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *more: None if name == 'vllm' else find(name, *more);"
    code += "from blendkit.cli import main; main()"
    for command in (["generate"], ["judge"], ["fuse"]):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-c", code, *command, "-m", f"vllm:{tiny_chat}"]
        done = subprocess.run(arguments, input="", capture_output=True, text=True, env=environment, timeout=120)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"blendkit {command[0]}: a vllm: model needs vLLM: pip install 'blendkit[vllm]'\n"
