"""What a model thought before it answered: kept apart from the answer, and given room of its own.

Models write it between tags (`<think>`), in channels (gpt-oss), or servers give it in a field of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blendkit.errors import UsageError
from blendkit.generators.base import Completion, Prompt
from blendkit.generators.options import Sampling
from blendkit.terminal_text import count_of

# Each way in which a known model opens its reasoning, and closes it.
TAGS = {
    "<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>", "<reasoning>": "</reasoning>", "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]", "◁think▷": "◁/think▷",
}  # fmt: skip
# Tokens for reasoning beside those of the answer, by `--reasoning-effort`.
ROOM = {"none": 0, "low": 1024, "medium": 4096, "high": 16384}
EFFORTS = tuple(ROOM)
KEPT = ("field", "text", "none")

_OPEN = re.compile(r"\s*(" + "|".join(map(re.escape, TAGS)) + ")")
_CLOSE = re.compile("|".join(map(re.escape, TAGS.values())))
_FENCE = re.compile(r"^[ \t]*(```|~~~)", re.MULTILINE)
_LINE = re.compile(r"^[ \t]*(?:```|~~~|(?P<tag>" + "|".join(map(re.escape, TAGS)) + "))", re.MULTILINE)
# gpt-oss: `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`.
_CHANNEL = re.compile(
    r"(?:<\|start\|>\w*)?<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|\Z)", re.DOTALL
)


def behind_reasoning(reply: str) -> str:
    """What stands behind reasoning that was left in a judge's reply, whichever its tags and wherever they stand; nothing where it has no end."""
    for opening, closing in TAGS.items():
        _, found, behind = reply.rpartition(closing)
        reply = behind if found else "" if reply.lstrip().startswith(opening) else reply
    return reply


def apart(text: str, opened: bool = False) -> tuple[str, str | None]:
    """The answer, and the reasoning before it or None; `opened`: the prompt has already opened it.

    Reasoning stands at the beginning; more of it may follow at the beginning of lines. Without an end (the limit of
    tokens), all of it is reasoning and the answer is empty. An answer that speaks of such tags is left alone.
    """
    if "<|channel|>" in text[:200]:
        return _by_channel(text)
    if (opened and not _OPEN.match(text)) or _closes_alone(text):
        # The template has opened it, and the server, if it is one, has not taken it out.
        text = "<think>" + text
    thoughts: list[str] = []
    place = 0
    absent: set[str] = set()
    while (match := _OPEN.match(text, place)) is not None:
        end, place = _end(text, match.end(), TAGS[match[1]], absent)
        thoughts.append(text[match.end() : end])
    if not thoughts:
        return text, None
    answer, later = _without_later(text[place:])
    thoughts += later
    return answer.lstrip(), "\n\n".join(part for thought in thoughts if (part := thought.strip()))


def _end(text: str, start: int, close: str, absent: set[str]) -> tuple[int, int]:
    """Where reasoning ends and where the text goes on; any known end will do when its own is missing.

    Ends that are `absent` from here on are noted, so that no text is gone through again and again.
    """
    place = -1 if close in absent else text.find(close, start)
    if place >= 0:
        return place, place + len(close)
    absent.add(close)
    other = _CLOSE.search(text, start)
    return other.span() if other else (len(text), len(text))


def _closes_alone(text: str) -> bool:
    """Whether reasoning ends in the text that does not begin there: the tag stands alone on its line or ends one, in no code."""
    match = _CLOSE.search(text)
    if match is None:
        return False
    before, after = text[: match.start()], text[match.end() :]
    if any(tag in before for tag in TAGS) or len(_FENCE.findall(before)) % 2:
        return False
    # In prose about tags, quotes stand around it, and the sentence goes on.
    return before[-1:] not in ("`", "'", '"') and (not after or after[0] == "\n" or before.endswith("\n"))


def _without_later(text: str) -> tuple[str, list[str]]:
    """The text without blocks of reasoning that begin a line outside of code (between tool calls, some think again), and these blocks."""
    parts, thoughts = [], []
    start, fenced = 0, False
    absent: set[str] = set()
    place = 0
    while (match := _LINE.search(text, place)) is not None:
        place = match.end()
        if match["tag"] is None:
            fenced = not fenced
        elif not fenced:
            parts.append(text[start : match.start("tag")])
            end, start = _end(text, place, TAGS[match["tag"]], absent)
            thoughts.append(text[place:end])
            place = start
    return "".join([*parts, text[start:]]), thoughts


def _by_channel(text: str) -> tuple[str, str | None]:
    """The `final` channel is the answer, and so is what stands before all channels; the rest is reasoning."""
    first = _CHANNEL.search(text)
    if first is None:
        return "", re.sub(r"<\|\w+\|>", "", text).strip()
    parts = [(match[1], match[2]) for match in _CHANNEL.finditer(text)]
    final = "\n\n".join(part.strip() for channel, part in parts if channel == "final")
    thoughts = "\n\n".join(part.strip() for channel, part in parts if channel != "final")
    return (text[: first.start()] + final).strip(), thoughts or None


def answer_begins(text: str) -> int:
    """Where the answer begins in a text whose reasoning may stand before it, in characters; 0 where there is none."""
    answer, reasoning = apart(text)
    if reasoning is None:
        return 0
    place = text.rfind(answer) if answer else len(text)
    # Where there is reasoning within the answer, its end counts.
    return place if place >= 0 else [match.end() for match in _CLOSE.finditer(text)][-1]


def joined(completion: Completion) -> str:
    """Reasoning and answer as one text, for `--keep-reasoning text`."""
    return f"<think>\n{completion.reasoning}\n</think>\n\n{completion.text}" if completion.reasoning else completion.text


def kept(completion: Completion, how: str) -> Completion:
    """The completion with its reasoning in its `field`, in the `text`, or nowhere (`none`)."""
    if how == "text":
        return replace(completion, text=joined(completion), reasoning=None)
    return replace(completion, reasoning=None) if how == "none" else completion


def check_reasoning(keep: str = "field", effort: str | None = None) -> None:
    """Raises UsageError for a word that is none of the choices."""
    if keep not in KEPT:
        raise UsageError(f"--keep-reasoning {keep}: expected one of {', '.join(KEPT)}")
    if effort is not None and effort not in EFFORTS:
        raise UsageError(f"--reasoning-effort {effort}: expected one of {', '.join(EFFORTS)}")


def starved(result: Completion | Exception) -> bool:
    """Whether the reasoning has taken all tokens, so that there is no answer."""
    return isinstance(result, Completion) and result.reasoned and result.finish_reason == "length" and not result.text.strip()


class Room:
    """Gives a model that reasons tokens for it, beside those for the answer (`Sampling.max_new_tokens`).

    With an effort these are as many as ROOM says. Without one they are none, until a reply shows that the model reasons and
    that reasoning took all: it is then asked again, as every later prompt is from the start, with `medium` room.
    """

    def __init__(self) -> None:
        self.given = 0

    def complete(
        self, ask: Callable[[list[Prompt], Sampling], list[Completion | Exception]], prompts: list[Prompt], sampling: Sampling
    ) -> list[Completion | Exception]:
        """What `ask` gives for the prompts, with as much room as is needed."""
        if sampling.effort is not None:
            return ask(prompts, _with_room(sampling, ROOM[sampling.effort]))
        before = self.given
        found = ask(prompts, _with_room(sampling, before))
        again = [place for place, result in enumerate(found) if starved(result)]
        if again and before < ROOM["medium"]:
            self.given = ROOM["medium"]
            for place, result in zip(again, ask([prompts[place] for place in again], _with_room(sampling, self.given)), strict=True):
                found[place] = result
        return found

    def warnings(self, spec: str) -> list[str]:
        """What a person should know at the end."""
        if not self.given:
            return []
        return [f"{spec} reasons before it answers: it was given {count_of(self.given, 'token')} more for that (--reasoning-effort says how many)"]

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"reasoning_room": self.given} if self.given else {}


def _with_room(sampling: Sampling, room: int) -> Sampling:
    return replace(sampling, max_new_tokens=sampling.max_new_tokens + room) if room else sampling
