"""Shared by all tests: the CLI as a user runs it, tiny models made with a fixed seed, and the reference values."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny_models
from forks import Forks
from hostile import HostileServer
from hypothesis import HealthCheck, settings
from tiny_models import CORPUS, bert_tokenizer, bpe_tokenizer  # noqa: F401, for tests that import them from here

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
SHARED = ROOT.parent / "shared"
os.environ["HF_HUB_OFFLINE"] = "1"
# Whatever processor tests run on.
os.environ["BLENDKIT_AUTO_DTYPE"] = "float32"
# Servers of tests are on the loopback interface, which a proxy of the environment would not find.
for _name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")]:
    del os.environ[_name]
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes that each take all cores are slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Fuzzing draws the same cases on every machine: fewer of them in a quick run than where the slow tests run, too.
COMMON = {"database": None, "derandomize": True, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=60, **COMMON)
settings.register_profile("thorough", max_examples=400, **COMMON)


def pytest_configure(config):
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "thorough")


@pytest.fixture
def serve():
    """Starts servers that misbehave as they are told (hostile.HostileServer), and stops them behind the test."""
    servers = []

    def start(*arguments, **settings):
        servers.append(HostileServer(*arguments, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def golden():
    """The values of the public reference implementations."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden beside the checkout: the reference values are not there")
    return folder


@pytest.fixture(scope="session")
def golden_ranker():
    """The tiny DeBERTa PairRM of the reference values, or None; for tests that have another ranker as well."""
    folder = SHARED / "golden" / "checkpoints" / "pairrm"
    return str(folder) if folder.is_dir() else None


@pytest.fixture(scope="session")
def dev_records():
    """Real candidates with oracle preferences."""
    path = SHARED / "data" / "dev.jsonl.gz"
    if not path.is_file():
        pytest.skip("no ../shared/data/dev.jsonl.gz beside the checkout")
    import gzip

    return [json.loads(line) for line in gzip.open(path)]


@pytest.fixture(scope="session")
def _forks():
    with Forks() as forks:
        yield forks


@pytest.fixture
def blendkit(_forks):
    """`blendkit("pair", "--model", …, stdin=…)` gives the finished process, text decoded, whatever its exit code.

    It is forked from a process that has the libraries loaded, or started from nothing where it is given more than an environment.
    """

    def run(*arguments: object, stdin: str | bytes = b"", **more: object) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        words = [str(argument) for argument in arguments]
        env = more.get("env") or dict(os.environ)
        if more.keys() - {"env"} or not _forks.can(words, env):
            done = subprocess.run([sys.executable, "-m", "blendkit", *words], input=data, capture_output=True, timeout=300, **more)
        else:
            done = _forks.run(words, data, env, timeout=300)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def called():
    """`called("pair", "--model", …, stdin=…)` gives (exit code, stdout, stderr) of the console script, run in this process, without its start."""
    from transformers.utils import logging as transformers_logging

    from blendkit import cli

    # What the console script says by variables, before these are imported.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    def leave(code):
        raise SystemExit(code)

    def run(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        thresholds = gc.get_threshold()
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+", errors="backslashreplace") as err,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["blendkit", *map(str, arguments)])
            given.write(stdin)
            given.seek(0)
            patch.setattr(sys, "stdin", given)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(cli, "_leave", leave)
            # It would put the true standard streams in the place of these.
            patch.setattr(cli, "make_safe", lambda: None)
            try:
                cli.main()
            except SystemExit as ending:
                code = ending.code
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                gc.set_threshold(*thresholds)
            texts = []
            for file in (out, err):
                file.flush()
                file.seek(0)
                texts.append(file.read())
            return code, *texts

    return run


def examples(count: int = 12) -> list[dict]:
    return [json.loads(line) for line in (EXAMPLES / "candidates.jsonl").read_text().splitlines()[:count]]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def parsed(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A random two-layer BERT."""
    return tiny_models.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_ranker(tiny_encoder, tmp_path_factory):
    """A random PairRanker in the layout that training saves."""
    return tiny_models.ranker(tmp_path_factory.mktemp("ranker"), tiny_encoder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_encoder, tiny_chat):
    """A checkpoint for each metric that takes one, by name."""
    from tiny_scorers import checkpoints

    return checkpoints(tmp_path_factory.mktemp("scorers"), tiny_encoder, tiny_chat)


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory):
    """A random chat model (Llama-shaped) with a chat template."""
    return tiny_models.chat(tmp_path_factory.mktemp("models") / "tiny-chat")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """A random seq2seq model (T5-shaped)."""
    return tiny_models.t5(tmp_path_factory.mktemp("models") / "tiny-t5")


def limited(megabytes: int):
    """At most so much more memory than a process needs to start."""
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))
