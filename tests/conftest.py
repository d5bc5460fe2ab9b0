"""Shared by all tests: the CLI as a user runs it, tiny models made with a fixed seed, and the reference values."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
SHARED = ROOT.parent / "shared"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes that each take all cores are slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CORPUS = [line for path in sorted(EXAMPLES.glob("*.jsonl")) for line in path.read_text().splitlines()]


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


@pytest.fixture
def blendkit():
    """`blendkit("pair", "--model", …, stdin=…)` gives the finished process, text decoded, whatever its exit code."""

    def run(*arguments: object, stdin: str | bytes = b"", **more: object) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run([sys.executable, "-m", "blendkit", *map(str, arguments)], input=data, capture_output=True, timeout=300, **more)
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


def bert_tokenizer():
    """A small WordPiece tokenizer, trained on our own examples."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(CORPUS, vocab_size=600, special_tokens=["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    from tokenizers.processors import TemplateProcessing

    backend = trainer._tokenizer
    specials = [("[CLS]", backend.token_to_id("[CLS]")), ("[SEP]", backend.token_to_id("[SEP]"))]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A random two-layer BERT, without dropout: at this size it would keep a model from learning anything in a few steps."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), **sizes, initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_ranker(tiny_encoder, tmp_path_factory):
    """A random PairRanker in the layout that training saves."""
    import torch

    from blendkit.models.pairrm import save_pairrm
    from blendkit.training.pairranker import new_ranker

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ranker")
    model, tokenizer = new_ranker(str(tiny_encoder), 48, 64, "segment")
    for layer in (model.head_layer[1], model.head_layer[4]):
        torch.nn.init.normal_(layer.weight, std=0.5)
    save_pairrm(folder, model, tokenizer, torch.float32)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_encoder, tiny_chat):
    """A checkpoint for each metric that takes one, by name."""
    from tiny_scorers import checkpoints

    return checkpoints(tmp_path_factory.mktemp("scorers"), tiny_encoder, tiny_chat)


def bpe_tokenizer():
    """A small byte-level BPE tokenizer with T5's and a chat model's special tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trainer = ByteLevelBPETokenizer()
    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(6))]
    trainer.train_from_iterator(CORPUS, vocab_size=500, special_tokens=specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trainer._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=2048)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    return tokenizer


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory):
    """A random chat model (Llama-shaped) with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, pad_token_id=0, bos_token_id=1, eos_token_id=1, max_position_embeddings=2048)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """A random seq2seq model (T5-shaped)."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
