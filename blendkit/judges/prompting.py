"""Judge prompts: TOML files beside this one, or a user's own file.

A prompt's `text` has the placeholders `{answer_a}` and `{answer_b}`, and may have `{request}`, `{reference}` (then the
record needs one) and `{reply}` (how to answer). `verdicts` lists the words of each verdict, the one to be written first.
A file that is no TOML is the text alone.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec

from blendkit.errors import RecordError
from blendkit.fences import as_it_looks, fence_for
from blendkit.generators.base import Material
from blendkit.judges.parsing import VerdictReader, plain
from blendkit.untrusted import shipped_or_file, stems, toml_value, typed

FOLDER = Path(__file__).parent / "prompts"
# The prompt that a record with a reference gets, and the one that another gets: which of them is asked for each record.
AUTO, WITH_REFERENCE, WITHOUT = "auto", "pairwise-with-reference", "pairwise"
VERDICTS = ("A", "B", "tie-good", "tie-bad")
LETTERS = {"A": ["A"], "B": ["B"], "tie-good": ["C", "tie-good"], "tie-bad": ["D", "tie-bad"]}
MEANINGS = {"A": "A is better", "B": "B is better", "tie-good": "both are equally good", "tie-bad": "both are equally bad"}
NAMES = {"request": "REQUEST", "reference": "REFERENCE", "answer_a": "ANSWER A", "answer_b": "ANSWER B"}
_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_PLACEHOLDER = re.compile(r"\{(request|reference|answer_a|answer_b|reply)\}")


@dataclass(frozen=True)
class JudgePrompt:
    """One prompt. `fenced` quotes the texts behind fences, `raw` leaves the model's chat template away.

    `lead` is what stands before the verdict in a reply that reasons first; `stop` ends a reply; `names` are the headings of
    the fences.
    """

    name: str
    text: str
    verdicts: dict[str, list[str]] = field(default_factory=lambda: LETTERS)
    names: dict[str, str] = field(default_factory=dict)
    fenced: bool = True
    raw: bool = False
    lead: str = ""
    stop: list[str] = field(default_factory=list)
    max_new_tokens: int = 32

    @property
    def needs_reference(self) -> bool:
        """Whether the judge is shown the reference."""
        return "{reference}" in self.text

    @property
    def words(self) -> dict[str, str]:
        """The word to be written for each verdict."""
        return {verdict: words[0] for verdict, words in self.verdicts.items()}

    def filled(self, texts: dict[str, str], as_json: bool = False, *, material: Material = str) -> str:
        """The prompt for `request`, `reference`, `answer_a` and `answer_b`; no text in it can forge a fence, a heading or a placeholder.

        Each text stands there as `material` gives it.
        """
        fence = fence_for(texts.values())

        def part(match: re.Match[str]) -> str:
            key = match[1]
            if key == "reply":
                return self.reply(as_json)
            if not self.fenced:
                return material(self._quoted(texts[key]))
            return f"{fence} {(NAMES | self.names)[key]}\n{material(texts[key])}\n{fence}"

        return _PLACEHOLDER.sub(part, self.text)

    def _quoted(self, text: str) -> str:
        """A text for a format without fences: a line that looks like a heading stands behind `> `, a tag in round brackets.

        A line ends wherever some reader may see its end, such as at a carriage return or U+2028.
        """
        if self._tags and self._tags.search(seen := as_it_looks(_ENDS.sub("\n", text))):
            text = self._tags.sub(r"(\1)", seen)
        return "".join("> " + line if _skeleton(line).startswith(self._headings) else line for line in text.splitlines(keepends=True))

    @cached_property
    def _headings(self) -> tuple[str, ...]:
        """What a line of a format without fences begins with, and a line of a text must not: a heading, a rule, a bracket, a label."""
        lines = [line.partition("{")[0].strip() for line in self.text.splitlines()]
        signs = {_skeleton(line.partition(":")[0]) for line in lines if re.match(r"[#*\[]", line)}
        return tuple(sorted(signs | {_skeleton(line) for line in lines if line.endswith(":")}))

    @cached_property
    def _tags(self) -> re.Pattern[str] | None:
        """A format's words in square brackets, such as `[/INST]`, which count wherever in a line they stand."""
        words = sorted(set(re.findall(r"\[(/?[A-Z]+)\]", self.text)))
        spaced = "|".join(r"\s*".join(map(re.escape, word)) for word in words)
        return re.compile(rf"\[\s*({spaced})\s*\]", re.IGNORECASE) if words else None

    def reply(self, as_json: bool = False) -> str:
        """What `{reply}` stands for."""
        words = self.words.items()
        # A word of several says itself what it means.
        choices = ", ".join(f'"{word}"' if " " in word else f"{word} ({MEANINGS[verdict]})" for verdict, word in words)
        if as_json:
            return f'Reply with a JSON object of one field, {{"verdict": …}}, whose value is one of: {choices}.'
        return f"Reply with one of these and nothing else: {choices}."

    def again(self) -> str:
        """What a judge is told whose reply was no verdict."""
        return f"That is none of the choices. Reply with exactly one of: {', '.join(self.words.values())}"

    def schema(self) -> dict[str, object]:
        """The reply as a JSON Schema."""
        verdict = {"type": "string", "enum": list(self.words.values())}
        return {"type": "object", "properties": {"verdict": verdict}, "required": ["verdict"], "additionalProperties": False}

    def parse(self, reply: str) -> str | None:
        """The verdict that a reply states, or None where it states none or two; see `VerdictReader`."""
        return self._reader.read(reply)

    @cached_property
    def _reader(self) -> VerdictReader:
        names = {verdict: (NAMES | self.names)[answer] for verdict, answer in (("A", "answer_a"), ("B", "answer_b"))} if self.fenced else {}
        # A word of several says itself what it means.
        told = "{reply}" in self.text and all(" " not in word for word in self.words.values())
        meanings = {verdict: MEANINGS[verdict] for verdict in self.verdicts} if told else {}
        return VerdictReader(self.verdicts, names, meanings, self.lead)


def _skeleton(line: str) -> str:
    """What a reader makes of a line's beginning, whatever spaces, capitals and spellings of its characters are."""
    return "".join(as_it_looks(line).casefold().split())


Filled = Annotated[str, msgspec.Meta(min_length=1)]
# A prompt is read by a model, so it is short.
MAX_BYTES = 1 << 20


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt file's fields and their types."""

    text: str
    verdicts: dict[str, list[str]] | None = None
    names: dict[str, str] | None = None
    fenced: bool = True
    raw: bool = False
    lead: str = ""
    stop: list[Filled] = []
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 32


def built_in() -> list[str]:
    """Names of the prompts that come with the package."""
    return stems(FOLDER)


def prompts_of(name: str) -> tuple[JudgePrompt, JudgePrompt]:
    """The prompts for a record with a reference and for one without: two by `auto`, else the same twice. Those of `auto` differ in their text alone.

    Raises:
        UsageError, DataError: as `load_prompt`.
    """
    if name == AUTO:
        return load_prompt(WITH_REFERENCE), load_prompt(WITHOUT)
    return (load_prompt(name),) * 2


def load_prompt(name: str) -> JudgePrompt:
    """The prompt of a built-in name, or of a file.

    Raises:
        UsageError: there is neither a prompt nor a file of that name.
        DataError: the file is no prompt.
    """
    return shipped_or_file(name, FOLDER, "--prompt", MAX_BYTES, _prompt, [AUTO])


def _prompt(path: Path, content: str) -> JudgePrompt:
    read = typed(toml_value(content), _File) if path.suffix == ".toml" else _File(text=content)
    for needed in ("{answer_a}", "{answer_b}"):
        if needed not in read.text:
            raise RecordError("text", f"expected {needed} in it, where the answer is to stand")
    if unknown := set(read.names or ()) - set(NAMES):
        raise RecordError("names", f"expected {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    verdicts = read.verdicts or LETTERS
    _check_words(verdicts)
    return JudgePrompt(path.stem, read.text, verdicts, read.names or {}, read.fenced, read.raw, read.lead, read.stop, read.max_new_tokens)


def _check_words(verdicts: dict[str, list[str]]) -> None:
    """Every verdict has words that are its own; of those to be written none begins another, which a judge by likelihood would never choose."""
    for verdict, words in verdicts.items():
        if verdict not in VERDICTS or not words or not all(map(plain, words)):
            raise RecordError(f"verdicts.{verdict}", f"expected one of {', '.join(VERDICTS)}, with at least one word")
    if not {"A", "B"} <= set(verdicts):
        raise RecordError("verdicts", "expected words for A and for B at least")
    counts = Counter(word for words in verdicts.values() for word in {plain(word) for word in words})
    written = {verdict: plain(words[0]) for verdict, words in verdicts.items()}
    for verdict, words in verdicts.items():
        for word in words:
            if counts[plain(word)] > 1:
                raise RecordError(f"verdicts.{verdict}", f"{word!r} stands for another verdict, too (letters' case, spaces and hyphens aside)")
        for other, longer in written.items():
            if other != verdict and longer.startswith(written[verdict]):
                raise RecordError(f"verdicts.{verdict}", f"{words[0]!r} begins the word of {other}, {verdicts[other][0]!r}")
