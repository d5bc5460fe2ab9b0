"""BARTScore (Yuan et al. 2021): the mean log-probability of one text's tokens, given another, under BART.

A source that several targets share (the reference, for precision) is encoded once, and its targets are decoded
together; equal texts are computed once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blendkit.errors import NoInputError
from blendkit.models.cuts import cut_to
from blendkit.models.loading import choose_device, choose_dtype, fingerprint, shared
from blendkit.models.text_tokenizer import TextTokenizer
from blendkit.pipeline.work import Job, Work
from blendkit.scorers.base import Item, ModelScorer, Scores
from blendkit.signature import Signature
from blendkit.streams.files import file_hash
from blendkit.terminal_text import count_of

# Targets of one source go into one work up to this many tokens.
TARGET_TOKENS = 2048


class LoadedBART:
    """What the directions of one model share: the model, and the jobs of encoding sources and of decoding targets."""

    def __init__(self, model: str, device: str, dtype: str) -> None:
        bart, self.tokenizer, self.longest = load_bart(model, device, dtype)
        self.encode = Job(f"bartscore:{model}", bart.encode)
        self.decode = Job(f"bartscore:{model}", bart.log_probabilities)
        self.texts = TextTokenizer(self.tokenizer)


class BartScore(ModelScorer):
    """F: the mean of both directions between candidate and reference."""

    about = "BARTScore F: the mean of precision and recall; bartscore:MODEL+FILE.pth lays other weights over MODEL (ParaBank)"
    paper, bounds = "Yuan et al. 2021", "below 0 (nats)"
    default_model = "facebook/bart-large-cnn"
    plans_ahead = True
    empty = "that of no words"

    def __init__(self, name: str, model: str = default_model, device: str = "auto", dtype: str = "auto") -> None:
        super().__init__(name, model)
        self.loaded = shared(("bart", model, device, dtype), lambda: LoadedBART(model, device, dtype))
        self.tokenizer, self.longest = self.loaded.tokenizer, self.loaded.longest

    def directions(self, item: Item) -> list[tuple[str, str]]:
        """(source, target) of each log-probability that the score is the mean of."""
        return [(item.reference, item.candidate), (item.candidate, item.reference)]

    def rounds(self, items: list[Item]) -> Scores:
        """Encodes each source once, then decodes its targets together."""
        pairs = list(dict.fromkeys(pair for item in items for pair in self.directions(item)))
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = cut_to(self.longest, self.loaded.texts, texts, self.cuts)["input_ids"] if texts else []
        ids = {text: tuple(row) for text, row in zip(texts, rows, strict=True)}
        targets: dict[str, list[str]] = {}
        for source, target in pairs:
            targets.setdefault(source, []).append(target)
        works = [Work(self.loaded.encode, source, len(ids[source]), ids[source]) for source in targets]
        states = dict(zip(targets, (yield works), strict=True))
        asked = [(source, part) for source, many in targets.items() for part in _parts(many, ids)]
        decode = []
        for source, part in asked:
            tokens = [ids[target] for target in part]
            decode.append(Work(self.loaded.decode, (source, tuple(part)), sum(map(len, tokens)), (states[source], tokens)))
        found: dict[tuple[str, str], float] = {}
        for (source, part), values in zip(asked, (yield decode), strict=True):
            found |= {(source, target): value for target, value in zip(part, values, strict=True)}
        return [sum(found[pair] for pair in self.directions(item)) / len(self.directions(item)) for item in items]

    @property
    def signature(self) -> str:
        return str(Signature("bartscore", type(self).__name__.lower(), model=self.model_at, max=self.longest))

    @property
    def revision(self) -> str:
        base, _, file = self.model_name.partition("+")
        return fingerprint(base) + (f"+{file_hash(file)[:12]}" if file else "")


class Precision(BartScore):
    """log p(candidate | reference)."""

    about = "log p(candidate | reference) under BART"

    def directions(self, item: Item) -> list[tuple[str, str]]:
        return [(item.reference, item.candidate)]


class Recall(BartScore):
    """log p(reference | candidate)."""

    about = "log p(reference | candidate) under BART"

    def directions(self, item: Item) -> list[tuple[str, str]]:
        return [(item.candidate, item.reference)]


class FromSource(BartScore):
    """log p(candidate | x): faithfulness, without a reference."""

    about = "log p(candidate | x) under BART"
    needs_reference, needs_source = False, True

    def directions(self, item: Item) -> list[tuple[str, str]]:
        return [(item.source, item.candidate)]


def load_bart(name: str, device: str, dtype: str) -> tuple[Any, Any, int]:
    """The packed BART of MODEL or MODEL+FILE.pth, its tokenizer, and the tokens that fit.

    Raises:
        NoInputError: there is no such model or file, it is no BART, or the file is more than plain weights.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from blendkit.models.encoder import load_pretrained
    from blendkit.models.encoder_reader import longest_input
    from blendkit.models.fast.bart import Bart

    base, _, file = name.partition("+")
    model, tokenizer = load_pretrained(AutoModelForSeq2SeqLM, base, "seq2seq model")
    if model.config.model_type != "bart":
        raise NoInputError(f"{base} is a {model.config.model_type} model; BARTScore needs a BART, such as facebook/bart-large-cnn")
    if file:
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            # Tied weights need not be there twice.
            missing = [key for key in model.load_state_dict(weights, strict=False).missing_keys if "embed_tokens" not in key and not key.startswith("lm_head")]
        except FileNotFoundError:
            raise NoInputError(f"{name}: there is no file {file}") from None
        except Exception as error:
            raise NoInputError(f"{name}: {Path(file).name} holds no plain weights of this model: {' '.join(str(error).split())[:200]}") from error
        if missing:
            raise NoInputError(f"{name}: {Path(file).name} lacks {count_of(len(missing), 'weight')}, {missing[0]} first")
    chosen = choose_device(device)
    longest = min(longest_input(model, tokenizer), 1024)
    return Bart(model, chosen, choose_dtype(dtype, chosen, "BARTScore")), tokenizer, longest


def _parts(targets: list[str], ids: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """The targets in groups of at most TARGET_TOKENS."""
    parts: list[list[str]] = []
    room = 0
    for target in targets:
        if not parts or len(ids[target]) > room:
            parts.append([])
            room = TARGET_TOKENS
        parts[-1].append(target)
        room -= len(ids[target])
    return parts
