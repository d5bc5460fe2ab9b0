"""A checkpoint is a stranger: no code of its own runs unasked, no question is put to the record stream, and its faults are one line and exit 66."""

from __future__ import annotations

import ast
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
from conftest import ROOT, examples, lines
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

PACKAGE = ROOT / "blendkit"
AUTO = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"}


def test_one_place_loads_checkpoints():
    """`from_pretrained` and `from_config` are called in pretrained.py only, and always with `trust_remote_code`."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("from_pretrained", "from_config"):
                assert path == PACKAGE / "models" / "pretrained.py", f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            # What loads models by itself, without asking us.
            assert not any(name.split(".")[0] in ("trl", "sentence_transformers") for name in names), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Name) and node.id in ("get_model", "get_tokenizer", "BERTScorer", "pipeline")), f"{path}:{node.lineno}"


def edited(source, folder, file="config.json", **more):
    """A copy of a checkpoint with other values in one of its JSON files; None takes a key out."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text()) | more
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.fixture(scope="session")
def coded(tmp_path_factory, tiny_encoder):
    """A checkpoint of an unknown type with code of its own, and the file that the code makes."""
    root = tmp_path_factory.mktemp("coded")
    mark = root / "ran"
    classes = {name: f"code.{name}" for name in AUTO} | {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}
    folder = edited(tiny_encoder, root / "model", model_type="strange", auto_map=classes)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Tokenizer"}))
    (folder / "code.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import BertConfig as AutoConfig, BertModel as AutoModel, PreTrainedTokenizerFast as Tokenizer\n"
    )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef generate(model, **options): ...\n")
    return folder, mark


EVERYWHERE = {
    "pair": ["pair", "--model", "{}"],
    "pair-backbone": ["pair", "--model", "{ranker}"],
    "fuse": ["fuse", "--model", "{}"],
    "fuse-chat": ["fuse", "--model", "{}", "--model", "{chat}"],
    "bertscore": ["score", "--metric", "bertscore:{}"],
    "bartscore": ["score", "--metric", "bartscore:{}"],
    "reward": ["score", "--metric", "reward:{}"],
    "mlm": ["score", "--metric", "mlm:{}"],
    "bleurt": ["score", "--metric", "bleurt:{}"],
    "perplexity": ["score", "--metric", "perplexity:{}"],
    "simcls": ["score", "--metric", "simcls:{}"],
    "stats": ["data", "stats", "--tokenizer", "{}"],
    "generate": ["generate", "-m", "{}"],
    "judge": ["judge", "--model", "{}"],
}
TRAINED = {
    "pairranker": ["train", "ranker", "--kind", "pairranker", "--backbone", "{}"],
    "summareranker": ["train", "ranker", "--kind", "summareranker", "--backbone", "{}"],
    "reward": ["train", "ranker", "--kind", "reward", "--backbone", "{}"],
    "fuser": ["train", "fuser", "--backbone", "{}"],
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_no_code_runs_and_nothing_is_asked(called, tmp_path, coded, tiny_chat, name):
    folder, mark = coded
    ranker = tmp_path / "ranker"
    ranker.mkdir()
    shutil.copy(folder / "tokenizer.json", ranker)
    (ranker / "config.json").write_text(json.dumps({"ranker_type": "pairranker", "model_name": str(folder)}))
    command = [part.replace("{ranker}", str(ranker)).replace("{chat}", str(tiny_chat)).replace("{}", str(folder)) for part in EVERYWHERE[name]]
    refused(called(*command, stdin="y\n" + lines(examples(1))), mark)


def labelled(record):
    """With ranks, and scores as a label."""
    candidates = [candidate | {"scores": {"q": place}} for place, candidate in enumerate(record["candidates"])]
    return record | {"candidates": candidates, "ranks": {"pairrm": [1] * len(candidates)}}


@pytest.mark.parametrize("name", TRAINED)
def test_training_runs_no_code_either(called, tmp_path, coded, name):
    folder, mark = coded
    data = tmp_path / "data.jsonl"
    data.write_text(lines([labelled(record) for record in examples(4)]))
    command = [part.replace("{}", str(folder)) for part in TRAINED[name]]
    more = [] if name == "fuser" else ["--label", "q"]
    refused(called(*command, *more, "-i", data, "-o", tmp_path / "out", "--steps", "1", stdin="y\n"), mark)


def refused(done, mark=None):
    code, out, err = done
    assert code == 66, err
    assert out == "" and len(err.splitlines()) == 1, out + err
    assert mark is None or not mark.exists()


@pytest.mark.slow
def test_the_question_is_not_asked_in_a_process_of_its_own(blendkit, coded):
    """The same through a real pipe, where the answer `y` would be read."""
    folder, mark = coded
    done = blendkit("pair", "--model", folder, stdin="y\n" + lines(examples(1)))
    refused((done.returncode, done.stdout, done.stderr), mark)
    assert "PairRanker" in done.stderr


def test_known_types_take_no_code_either(called, tmp_path, tiny_chat):
    mark = tmp_path / "ran"
    classes = {name: f"code.{name}" for name in AUTO}
    folder = edited(tiny_chat, tmp_path / "model", auto_map=classes)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(0)\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    generation = json.loads((folder / "generation_config.json").read_text()) | {"custom_generate": str(folder)}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    code, out, err = called("generate", "-m", folder, "--max-new-tokens", "2", stdin='{"id":"a","instruction":"x"}\n')
    assert code in (0, 66) and not mark.exists(), err
    assert code == 66 or len(out.splitlines()) == 1


def test_code_that_is_asked_for_runs(blendkit, tmp_path, tiny_chat):
    mark = tmp_path / "ran"
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    folder = edited(tiny_chat, tmp_path / "model", model_type="strange", auto_map=classes)
    (folder / "code.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'strange'\nclass Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = ["generate", "-m", folder, "--trust-remote-code", "--max-new-tokens", "2"]
    done = blendkit(*command, stdin='{"id":"a","instruction":"x"}\n', env=env)
    assert done.returncode == 0 and mark.exists(), done.stderr
    assert json.loads(done.stdout)["candidates"]


@pytest.mark.parametrize("asked", [{"assistant_early_exit": 2**31}, {"prompt_lookup_num_tokens": 3}, {"eos_token_id": [[1]]}], ids=str)
def test_a_generation_config_ends_and_decides_nothing(called, tmp_path, tiny_chat, asked):
    folder = tmp_path / "model"
    shutil.copytree(tiny_chat, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | asked))
    command = ["generate", "--max-new-tokens", "2", "-m"]
    code, out, err = called(*command, f"m={folder}", stdin=lines(examples(1)))
    assert code == 0, err
    assert out == called(*command, f"m={tiny_chat}", stdin=lines(examples(1)))[1]


def test_an_adapter_does_not_bring_another_model_in(called, tmp_path, tiny_chat):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_chat, folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}))
    done = called("generate", "-m", folder, stdin='{"id":"a","instruction":"x"}\n')
    refused(done)
    assert "is an adapter of another model" in done[2]


def test_code_of_a_kernel_does_not_run(called, tmp_path, tiny_chat):
    folder = edited(tiny_chat, tmp_path / "model", _attn_implementation="somebody/kernel")
    done = called("generate", "-m", folder, stdin='{"id":"a","instruction":"x"}\n')
    refused(done)
    assert "somebody/kernel" in done[2]


SIZES = [
    {"hidden_size": 10**9},
    {"hidden_size": -1},
    {"hidden_size": 10**30},
    {"intermediate_size": 10**8},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 10**9},
    {"vocab_size": 10**12},
    {"vocab_size": -5},
    {"vocab_size": None, "hidden_size": "wide"},
    {"num_labels": 10**9, "id2label": None, "label2id": None},
    {"max_position_embeddings": 10**15},
    {"hidden_size": float("inf")},
    {"num_attention_heads": 0},
    {"type_vocab_size": 10**10},
]


@pytest.mark.parametrize("change", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["transformers", "ranker"])
def test_absurd_sizes_are_refused_before_they_are_allocated(called, tmp_path, tiny_encoder, tiny_ranker, change, layout):
    if layout == "ranker":
        if set(change) & {"num_labels"}:
            pytest.skip("an encoder has no labels")
        encoder = json.loads((tiny_ranker / "config.json").read_text())["encoder"] | change
        folder = edited(tiny_ranker, tmp_path / "model", encoder={key: value for key, value in encoder.items() if value is not None})
        done = called("pair", "--model", folder, stdin=lines(examples(1)))
    else:
        folder = edited(tiny_encoder, tmp_path / "model", **change)
        done = called("score", "--metric", f"bertscore:{folder}", stdin=lines(examples(1)))
    refused(done)
    assert peak_gigabytes() < 4


def peak_gigabytes():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)


CONFIGS = [b"", b"[]", b"3", b"null", b'"x"', b"{", b'{"model_type": "bert"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000]


@pytest.mark.parametrize("content", CONFIGS, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", ["pair", "bleurt", "simcls", "generate", "stats", "fuse", "summareranker"])
def test_a_config_that_is_no_object_is_one_line(called, tmp_path, tiny_encoder, content, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    (folder / "config.json").write_bytes(content)
    command = EVERYWHERE.get(name, ["score", "--metric", "summareranker:{}"])
    refused(called(*(part.replace("{}", str(folder)) for part in command), stdin=lines(examples(1))))


TOKENIZERS = [b"", b"{}", b"[1]", b"{", b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff"]


@pytest.mark.parametrize("content", TOKENIZERS, ids=lambda content: repr(content[:12]))
def test_a_damaged_tokenizer_is_one_line(called, tmp_path, tiny_encoder, tiny_ranker, content):
    for number, (source, command) in enumerate(
        [(tiny_encoder, EVERYWHERE["bertscore"]), (tiny_ranker, EVERYWHERE["pair"]), (tiny_encoder, EVERYWHERE["stats"])]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        (folder / "tokenizer.json").write_bytes(content)
        refused(called(*(part.replace("{}", str(folder)) for part in command), stdin=lines(examples(1))))


@pytest.mark.parametrize("damage", ["cut", "header", "length", "shape"])
def test_weights_that_do_not_fit_are_one_line(called, tmp_path, tiny_encoder, tiny_ranker, damage):
    for number, (source, command) in enumerate([(tiny_encoder, EVERYWHERE["bertscore"]), (tiny_ranker, EVERYWHERE["pair"])]):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        if damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "header":
            path.write_bytes(data[:8] + b"[" * size + data[8 + size :])
        elif damage == "length":
            path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
        else:
            name = next(key for key, value in header.items() if "word_embeddings" in key)
            header[name]["shape"] = header[name]["shape"][::-1]
            raw = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + size :])
        refused(called(*(part.replace("{}", str(folder)) for part in command), stdin=lines(examples(1))))


TEMPLATES = {
    "{% for m in messages %}{{ m.content }": (66, "is broken: line 1"),
    "{{ messages[0].nothing.more }}": (65, "does not take these messages"),
    "{{ raise_exception('Roles must alternate') }}": (65, "Roles must alternate"),
    "{{ 1 / 0 }}": (65, "ZeroDivisionError"),
    "{{ 'a' + 1 }}": (65, "TypeError"),
    "{% for i in range(10**12) %}x{% endfor %}": (66, "does not end"),
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": (66, "does not end: it was still running"),
    "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}": (66, "does not end"),
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": (66, "does not end"),
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": (65, "does not take these messages"),
}


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_broken_or_endless_chat_template_is_one_line(called, monkeypatch, tmp_path, tiny, tiny_chat, template):
    from blendkit.models import templates

    monkeypatch.setattr(templates, "SECONDS", 1.0)
    monkeypatch.setattr(templates, "MEMORY", 64 << 20)
    code, words = TEMPLATES[template]
    for number, (source, command) in enumerate(
        [(tiny_chat, ["generate", "-m"]), (tiny["perplexity"], ["score", "--metric"]), (tiny["reward"], ["score", "--metric"])]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        (folder / "chat_template.jinja").write_text(template)
        spec = [str(folder), f"perplexity:{folder}", f"reward:{folder}"][number]
        found, out, err = called(*command, spec, stdin=lines(examples(1)))
        assert found == code and words in err, (found, err)
        assert out == "" and len(err.splitlines()) == 1, err
    if code == 65:
        rejects = tmp_path / "bad.jsonl"
        found, _, err = called("generate", "-m", tmp_path / "0", "--on-error", "skip", "--rejects", rejects, stdin=lines(examples(1)))
        assert found == 70 and words in rejects.read_text(), err


def test_templates_that_end_are_as_transformers_writes_them(tiny_chat):
    from transformers import AutoTokenizer

    from blendkit.models.templates import rendered

    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ho"}]
    before = sys.gettrace()
    for flags in ({}, {"add_generation_prompt": True}):
        assert rendered(tokenizer, messages, **flags) == tokenizer.apply_chat_template(messages, tokenize=False, **flags)
    assert sys.gettrace() is before


FOREIGN = [
    ["pair", "--model", b"\xff"],
    ["generate", "-m", b"caf\xe9"],
    ["rank", "-i", b"\xff.jsonl"],
    ["rank", "-o", b"\xff.jsonl"],
    ["rank", "--manifest", b"\xff.json"],
    ["score", "--metric", b"bertscore:\xed\xa0\x80"],
    [b"\xff"],
]


@pytest.mark.parametrize("command", FOREIGN, ids=str)
def test_names_that_are_not_utf8_are_one_line(tmp_path, command):
    import subprocess

    if sys.platform == "darwin":
        pytest.skip("file names are UTF-8 there")
    arguments = [part if isinstance(part, bytes) else part.encode() for part in command]
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"blendkit", *arguments], input=b"", capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode in (2, 66), done.stderr
    assert done.stdout == b"" and len(done.stderr.splitlines()) == 1 and b"UTF-8" in done.stderr and b"\\x" in done.stderr
    assert not list(tmp_path.iterdir())


FAILURES = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error code 12"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    RuntimeError("CUDA error: out of memory"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: str(failure)[-20:])
@pytest.mark.parametrize("where", ["finish", "plan"])
def test_no_memory_is_75_after_what_was_done(called, monkeypatch, failure, where):
    """Memory that runs out while a record of the second window is worked on: the first window is written."""
    from blendkit.rankers.ranking import Ranking

    usual = getattr(Ranking, where)

    def failing(self, record, *more):
        if record["id"] == "c":
            raise failure
        return usual(self, record, *more)

    monkeypatch.setattr(Ranking, where, failing)
    records = [{"id": name, "candidates": [{"model": "m", "text": "t", "scores": {"q": 1}}]} for name in "abcd"]
    code, out, err = called("rank", "--by", "score:q", "--window", "2", stdin=lines(records))
    assert code == 75 and "memory" in err and len(err.splitlines()) == 1, err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["a", "b"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: str(failure)[-20:])
def test_no_memory_for_a_model_is_75(called, monkeypatch, tiny_encoder, failure):
    from transformers import BertModel

    def failing(*arguments, **more):
        raise failure

    monkeypatch.setattr(BertModel, "from_pretrained", failing)
    code, out, err = called("score", "--metric", f"bertscore:{tiny_encoder}", stdin=lines(examples(1)))
    assert (code, out) == (75, "") and "not enough memory to load" in err, err


NUMBERS = st.one_of(st.integers(-3, 70), st.integers(), st.sampled_from([10**6, 2**31, 10**12, -1]), st.floats())
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
KEYS = [
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size",
    "hidden_act", "pad_token_id", "layer_norm_eps", "hidden_dropout_prob", "initializer_range", "architectures", "dtype", "num_labels", "id2label",
    "is_encoder_decoder", "quantization_config", "auto_map", "tie_word_embeddings", "chunk_size_feed_forward", "tokenizer_class", "transformers_version",
    "attn_implementation", "source_maxlength", "text_config", "return_dict", "output_attentions", "problem_type", "is_decoder", "add_cross_attention",
]  # fmt: skip
CHAT_KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings",
    "hidden_act", "pad_token_id", "bos_token_id", "eos_token_id", "rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias",
    "pretraining_tp", "use_cache", "tie_word_embeddings", "is_encoder_decoder", "model_type", "decoder_start_token_id", "layer_types", "max_length",
]  # fmt: skip
RANKER_KEYS = [
    "source_maxlength",
    "candidate_maxlength",
    "n_tasks",
    "drop_out",
    "positions",
    "candidate_bias",
    "paired_layers",
    "replace_separator",
    "encoder",
    "ranker_type",
    "model_name",
]


def fuzz_config(called, folder, source, keys, values, command):
    path = folder / "config.json"
    content = json.loads((Path(source) / "config.json").read_text()) | dict(zip(keys, values, strict=False))
    path.write_text(json.dumps(content))
    code, _, err = called(*command, stdin=lines(examples(1)))
    assert code in (0, 65, 66, 75), (content, err)
    assert code == 0 or len(err.splitlines()) == 1, err


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory, tiny_encoder, tiny_ranker, tiny_chat):
    found = {}
    for name, source in (("encoder", tiny_encoder), ("ranker", tiny_ranker), ("chat", tiny_chat)):
        found[name] = tmp_path_factory.mktemp("fuzzed") / name
        shutil.copytree(source, found[name])
    return found


@settings(FUZZ, max_examples=60)
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True), st.lists(VALUES, min_size=3, max_size=3))
@example(["pad_token_id"], [10**6, 0, 0])
@example(["layer_norm_eps"], ["x", 0, 0])
def test_any_config_of_an_encoder_is_0_or_a_fault_of_its_own(called, fuzzed, tiny_encoder, keys, values):
    fuzz_config(called, fuzzed["encoder"], tiny_encoder, keys, values, ["score", "--metric", f"bertscore:{fuzzed['encoder']}"])


@settings(FUZZ, max_examples=40)
@given(st.lists(st.sampled_from(RANKER_KEYS), min_size=1, max_size=2, unique=True), st.lists(VALUES, min_size=2, max_size=2))
def test_any_config_of_a_ranker_is_0_or_a_fault_of_its_own(called, fuzzed, tiny_ranker, keys, values):
    fuzz_config(called, fuzzed["ranker"], tiny_ranker, keys, values, ["pair", "--model", str(fuzzed["ranker"])])


@settings(FUZZ, max_examples=30)
@given(st.lists(st.sampled_from(CHAT_KEYS), min_size=1, max_size=2, unique=True), st.lists(VALUES, min_size=2, max_size=2))
def test_any_config_of_a_chat_model_is_0_or_a_fault_of_its_own(called, fuzzed, tiny_chat, keys, values):
    command = ["score", "--metric", f"perplexity:{fuzzed['chat']}"]
    fuzz_config(called, fuzzed["chat"], tiny_chat, keys, values, command)


@pytest.mark.slow
@settings(FUZZ, max_examples=120)
@given(st.lists(st.sampled_from(CHAT_KEYS), min_size=1, max_size=2, unique=True), st.lists(VALUES, min_size=2, max_size=2))
def test_many_configs_of_a_chat_model(called, fuzzed, tiny_chat, keys, values):
    command = ["generate", "-m", str(fuzzed["chat"]), "--max-new-tokens", "2"]
    fuzz_config(called, fuzzed["chat"], tiny_chat, keys, values, command)


@pytest.mark.slow
@settings(FUZZ, max_examples=200)
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True), st.lists(VALUES, min_size=3, max_size=3))
def test_many_configs_of_an_encoder(called, fuzzed, tiny_encoder, keys, values):
    fuzz_config(called, fuzzed["encoder"], tiny_encoder, keys, values, ["score", "--metric", f"bertscore:{fuzzed['encoder']}"])
