"""Reads the verdict out of a judge's reply, by one rule: every place that states a verdict must state the same one.

A statement is structured output (also in a fence or in prose), a mark (`[[A]]`, `\\boxed{A}`, `<answer>A</answer>`), a label
(`Verdict: A`), a sentence that says who is better, or the verdict alone on a line or at the beginning, with an explanation
behind it. A mention ("reply with A, B, C or D", "a good answer …", "if the verdict is A") states nothing. Every pattern goes
through a text once, whatever the text is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from blendkit.generators.reasoning import behind_reasoning

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Line ends of every kind become one.
_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Tokens that end a turn, which some servers leave in.
_CONTROL = re.compile(r"<\|\w{1,40}\|>|</?s>")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*$", re.MULTILINE)
# A text in quotes on one line; one that does not end there takes the rest of the line, so that nothing is gone through twice.
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)++)("?)|[“„]([^”“\n]++)(”?)')
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_BULLET = re.compile(r"[*\-•+]\s|\d+[.)]\s")
# What may stand around a verdict without a meaning of its own.
_SIGNS = "\"'`*_()[]{}$“”‘’#"
_OPEN = rf"[\s{re.escape(_SIGNS)}]{{0,20}}"
_SHUT = r"[\"'`*_)\]}$”’]{0,20}"

_NOUN = r"(?:the[ ])?(?:answer|response|option|assistant|candidate|model|choice|output|completion|solution|reply)[ ]"
# "The correct answer is B" is about the request, so that `answer` must be the judge's own, or begin the line.
_LABEL = (
    r"\b(?:verdict|decision|judge?ment|winner|preference|(?:my|final|your)[ ](?:answer|choice)"
    r"|(?:better|best|preferred|superior|stronger|winning)[ ](?:answer|response|candidate|one|reply))\b"
    r"|^[\s\"'`*_#]{0,9}(?:answer|choice)(?=\W{0,20}[:=])"
)
_SAYS = r"(?:[ \t]{0,8}(?::|=|->|=>|→)|[ ](?:is|was|would[ ]be|goes[ ]to|must[ ]be)(?=\W)[ \t]{0,8}:?)"
_CHOOSES = r"\bI(?:[ ]would|'d|[ ]will|'ll|[ ]must)?[ ](?:choose|pick|select|prefer|vote[ ]for|go[ ]with)\b"
_BETTER = (
    r"(?:[ ](?:is|was)(?:[ ](?:clearly|slightly|marginally|much|far|significantly|definitely|overall|generally|therefore|thus|the)){0,3}"
    r"[ ](?:better|superior|best|preferable|stronger|winner)|[ ]wins)(?!\w)(?:[ ](?:overall|answer|response|one|choice|option|candidate)){0,2}"
)
_SO = (
    r"(?:(?:so|but|no|yes|wait|actually|however|rather|on[ ]second[ ]thought|conclusion"
    r"|thus|therefore|hence|overall|ultimately|finally|in[ ]conclusion|in[ ]summary|to[ ]conclude|on[ ]balance|in[ ]my[ ](?:opinion|view)"
    r"|I[ ](?:think|believe|conclude|find)(?:[ ]that)?)[,:]?[*_]{0,2}[ ]){0,3}"
)
_REASON = r",?\s+(?:because|since|as|due\s+to|for\s+being)\b"
_TURN = r"(?!\s*(?:but|although|though|however|only|except|if|when|unless|while|yet|or|and|in|at|not)\b)"
# What stands before a label in a sentence that only supposes, denies, or speaks of the request.
_SUPPOSES = re.compile(
    r"\b(?:if|whether|unless|would|could|might|may|suppose|assuming|say|says|saying)\b|(?:\b(?:not|never|no)|n't)\b[^,;]{0,40}$"
    r"|\b(?:correct|right|true|actual|expected|reference|gold)\s{1,8}$",
    re.IGNORECASE,
)
_LOOKED_BACK = 160
_LABELS_OF_FIELDS = r"(?:final[_ ])?(?:verdict|answer|choice|decision|winner|preference|judge?ment)"
_FIELD = re.compile(rf"""(["'])({_LABELS_OF_FIELDS})\1\s*:\s*(?:"((?:[^"\\]|\\.)*+)"|'((?:[^'\\]|\\.)*+)')""", re.IGNORECASE)
_CLASH = "\0"


class VerdictReader:
    """Reads replies to one prompt.

    `verdicts` are the words of each verdict; `names` are what the prompt calls the answers that are A and B, and `meanings`
    what it says that each word means. Behind a `lead`, the verdict must stand there.
    """

    def __init__(self, verdicts: Mapping[str, Sequence[str]], names: Mapping[str, str], meanings: Mapping[str, str], lead: str = "") -> None:
        self.lead = plain(lead)
        self._words = {plain(word): verdict for verdict, words in verdicts.items() for word in words}
        written = {plain(words[0]): verdict for verdict, words in verdicts.items()}
        for word, verdict in written.items():
            if verdict in meanings:
                # As the prompt itself lists the choices.
                self._words.setdefault(f"{word} ({plain(meanings[verdict])})", verdict)
        for verdict, name in names.items():
            for word in (plain(name), plain(name).rpartition(" ")[2]):
                self._words.setdefault(word, verdict)
        # In prose, a small letter may be a word of its own ("a tie").
        self._letters = {word for word in self._words if len(word) == 1 and word.isalpha()}
        spelled = "|".join(map(_spelling, sorted(self._words, key=len, reverse=True)))
        value = rf"(?P<noun>{_NOUN})?(?P<word>{spelled})(?!\w)"
        other = rf"{_OPEN}(?:{_NOUN})?(?:{spelled})(?!\w)"
        either = rf"\s*(?:,|/|&|\||\bor\b|\band\b|\bvs\b)[\s,]*(?:or\b|and\b)?{other}"
        goes_on = rf"\s*[—–]\s*(?!{other})|\s-+\s(?!{other})|{_REASON}|\s*\((?!{other})"
        self._value = _compiled(value)
        self._listed = _compiled(either)
        over = rf"\s+(?:over|rather\s+than)\b{other}"
        self._stated = _compiled(rf"{_OPEN}{value}(?:{_BETTER})?{_SHUT}(?:\s*$|[.!;](?!\w)|,\s{_TURN}(?!{other})|{over}|{goes_on})")
        self._begun = _compiled(rf"{_SHUT}(?:(?P<alone>[\s.!]*$)|[.)](?!\w)(?!\s*{other}\s*(?:[.)]|$))|(?P<colon>:)|{goes_on})")
        self._label = _compiled(rf"(?:{_LABEL}){_SHUT}{_SAYS}|{_CHOOSES}")
        self._marks = [
            _compiled(rf"\[\[\s*{value}\s*\]\](?!\s*(?:if|when|for|or|and|/|,|means?)\b)"),
            _compiled(rf"<(?P<tag>(?:final_)?(?:verdict|choice|decision|result))>\s*{value}\s*(?:</(?P=tag)>|$)"),
        ]
        # An answer that is judged may have had these, too, so they count at the beginning of a line and at the end of all.
        self._answers = [
            _compiled(rf"\\boxed\s{{0,4}}\{{\s{{0,4}}(?:\\\w{{1,12}}\s{{0,4}}\{{)?\s{{0,4}}{value}[\s}}]{{1,8}}"),
            _compiled(rf"<(?P<tag>(?:final_)?answer|output)>\s{{0,8}}{value}\s{{0,8}}(?:</(?P=tag)>|$)"),
        ]
        sides = [word for word, verdict in self._words.items() if verdict in ("A", "B") and "(" not in word]
        side = rf"(?P<noun>{_NOUN})?(?P<word>{'|'.join(map(_spelling, sorted(sides, key=len, reverse=True)))})(?!\w)"
        than = rf"(?:\s+than{other})?"
        tail = rf"{_SHUT}(?:\s*$|[.!;:](?!\w)|\s*[—–]|\s-+\s|{_REASON}|,{_TURN})"
        self._sentence = _compiled(rf"{_OPEN}{_SO}{_OPEN}{side}{_SHUT}{_BETTER}{than}{tail}")
        both = rf"(?:both|(?:both[ ]|the[ ]|the[ ]two[ ])?(?:answers|responses|candidates)|(?:{_NOUN})?A[ ]and[ ](?:{_NOUN})?B)"
        self._even = _compiled(rf"{_OPEN}{_SO}{both}[ ]are[ ](?:both[ ])?equally[ ](?P<how>good|bad){tail}") if set(meanings) > {"A", "B"} else None

    def read(self, reply: str) -> str | None:
        """The one verdict that the reply states, or None."""
        text = cleaned(reply)
        if not self.lead and (verdict := self._words.get(plain(text))) is not None:
            return verdict
        found = set(self._behind_leads(text)) if self.lead else self._stated_in(text)
        return found.pop() if len(found) == 1 and _CLASH not in found else None

    def _behind_leads(self, text: str) -> Iterator[str]:
        """The verdicts that stand behind a lead, on its line or the next one with something on it."""
        spelled = re.compile(_spelling(self.lead), re.IGNORECASE)
        for match in spelled.finditer(text):
            rest = text[match.end() : match.end() + 400].lstrip(" \t\n:")
            if verdict := self._at(self._stated, rest.partition("\n")[0]):
                yield verdict

    def _stated_in(self, text: str) -> set[str]:
        found, text = self._fields(text)
        # A quotation states nothing, unless it is a verdict in quotes.
        text = _QUOTED.sub(lambda match: self._unquoted(match, bool(found)), text)
        text = _FENCE.sub("", text)
        for mark in self._marks:
            found |= {self._verdict(match) for match in mark.finditer(text)}
        end = len(text.rstrip(_SIGNS + " \t\n.!"))
        for mark in self._answers:
            found |= {self._verdict(match) for match in mark.finditer(text) if match.end() >= end or _begins_line(text, match.start())}
        lines = [line for raw in text.split("\n") if (line := raw.strip())]
        found |= self._beginnings(lines)
        for line in lines:
            for sentence in _SENTENCES.split(line):
                found |= self._said(sentence, found)
                if len(found) > 1:
                    return found
        return found

    def _fields(self, text: str) -> tuple[set[str], str]:
        """What fields of JSON state, those named `verdict` before others; and the text without the fields."""
        first: set[str] = set()
        others: set[str] = set()
        for match in _FIELD.finditer(text):
            value = match[3] if match[3] is not None else match[4]
            read = self._whole(value)
            if "verdict" in match[2].lower():
                first.add(read or _CLASH)
            elif read:
                others.add(read)
        return first or others, _FIELD.sub(" ", text) if first or others else text

    def _unquoted(self, match: re.Match[str], structured: bool) -> str:
        inside = match[1] if match[1] is not None else match[3]
        if self._whole(inside):
            return match[0]
        closed = match[2] or match[4]
        return '" "' if closed or structured else match[0]

    def _beginnings(self, lines: list[str]) -> set[str]:
        """What lines state that are the verdict alone, or the first line begins with it. Lines that begin with different ones are a list, and state nothing."""
        begins: dict[bool, set[str]] = {True: set(), False: set()}
        states: dict[bool, set[str]] = {True: set(), False: set()}
        for number, line in enumerate(lines):
            if _BULLET.match(line):
                continue
            bare = line.lstrip(_SIGNS + " \t")
            head = self._value.match(bare)
            tail = self._begun.match(bare, head.end()) if head else None
            if head is None or tail is None:
                continue
            verdict, named = self._verdict(head), bool(head["noun"])
            alone = tail["alone"] is not None
            small = head["word"] in self._letters and not alone
            if small or (not alone and self._listed.match(bare, head.end() + 1)):
                continue
            begins[named].add(verdict)
            outer = number in (0, len(lines) - 1)
            if (alone and (outer or not named)) or (number == 0 and not (named and tail["colon"]) and not (tail["colon"] and not bare[tail.end() :].strip())):
                if number == 0 and tail["colon"] and self._other_with_colon(lines, verdict):
                    continue
                states[named].add(verdict)
        return {verdict for named in (True, False) if len(begins[named]) == 1 for verdict in states[named]}

    def _other_with_colon(self, lines: list[str], verdict: str) -> bool:
        """Whether another verdict, too, stands before a colon, as in a list within a line."""
        return any(self._verdict(match) != verdict for line in lines for match in self._value.finditer(line) if line[match.end() : match.end() + 1] == ":")

    def _said(self, sentence: str, known: set[str]) -> set[str]:
        """What a sentence says that labels a verdict, or says who is better."""
        found: set[str] = set()
        for label in self._label.finditer(sentence):
            stated = self._stated.match(sentence, label.end())
            if stated is None or self._small(stated, sentence):
                continue
            verdict = self._verdict(stated)
            if verdict in known or verdict in found:
                continue
            if not _SUPPOSES.search(sentence[max(0, label.start() - _LOOKED_BACK) : label.start()]):
                found.add(verdict)
        if (better := self._sentence.match(sentence)) is not None and better["word"] not in self._letters:
            found.add(self._verdict(better))
        if self._even is not None and (even := self._even.match(sentence)) is not None:
            found.add("tie-good" if even["how"].lower() == "good" else "tie-bad")
        return found

    def _small(self, match: re.Match[str], text: str) -> bool:
        """Whether it is a small letter with more than an end behind it."""
        return match["word"] in self._letters and bool(text[match.end("word") :].strip(_SIGNS + " \t.!"))

    def _at(self, pattern: re.Pattern[str], text: str) -> str | None:
        match = pattern.match(text)
        return self._verdict(match) if match is not None and not self._small(match, text) else None

    def _whole(self, text: str) -> str | None:
        """The verdict that a text is, all of it."""
        if (verdict := self._words.get(plain(text.strip(" \t\n.!")))) is not None:
            return verdict
        stripped = text.strip(_SIGNS + " \t\n.!")
        match = self._value.match(stripped)
        return self._verdict(match) if match is not None and _IS_BETTER.fullmatch(stripped, match.end()) else None

    def _verdict(self, match: re.Match[str]) -> str:
        return self._words[plain(match["word"])]


def plain(text: str) -> str:
    """A word or a few as they are compared: no capitals, no hyphens, one space, no look-alikes."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().replace("-", " ").split())


def _begins_line(text: str, place: int) -> bool:
    before = text[max(0, place - 8) : place].rstrip(_SIGNS + " \t")
    return not before or before.endswith("\n")


def cleaned(reply: str) -> str:
    """The answer behind reasoning that was left in, full-width letters as plain ones."""
    reply = behind_reasoning(reply)
    text = reply if reply.isascii() else unicodedata.normalize("NFKC", _INVISIBLE.sub("", reply)).replace("。", ".")
    return _ENDS.sub("\n", _CONTROL.sub(" ", text))


def _spelling(word: str) -> str:
    """A pattern of the plain word, with spaces and hyphens alike."""
    return r"[ \t\-]{1,8}".join(map(re.escape, word.split()))


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("[ ]", r"[ \t]{1,8}"), re.IGNORECASE)


_IS_BETTER = _compiled(rf"(?:{_BETTER})?")
