"""What a chat template cannot write, said otherwise: a `system` role, turns that do not alternate, contents that are no strings.

What a template can do is found by trying it on conversations of our own, once, and never by a model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from blendkit.errors import RecordError
from blendkit.models.text_tokenizer import TextTokenizer

Messages = Sequence[dict[str, Any]]
# Texts that no template writes by itself; digits, because a template may turn a text into capitals.
FIRST, SECOND, THIRD = "7315902846", "4862950371", "9270641385"
INSTRUCTIONS = ("system", "developer")


class Conversations:
    """Writes conversations by a tokenizer's chat template, as it is or in the nearest form that the template takes."""

    def __init__(self, texts: TextTokenizer) -> None:
        self.texts = texts
        self._changed: set[str] = set()
        # What was found of the template.
        self._known: dict[str, bool] = {}

    def text(self, messages: Messages, **variables: Any) -> str:
        """The conversation with the opening of the model's turn behind it, for `TextTokenizer.read`.

        Raises:
            RecordError: the template refuses the conversation in every form.
            NoInputError: the template is broken.
        """
        fitting, changes = self._fitting(messages)
        try:
            found = self._written(fitting, **variables)
        except RecordError:
            # Such as a system message in the midst of a conversation.
            plain, changes = joined(folded(messages)), {"system", "turns"}
            if plain == list(fitting):
                raise
            found = self._written(plain, **variables)
        self._changed |= changes
        return found

    def warnings(self, name: str) -> list[str]:
        """What had to be said otherwise."""
        told = {
            "system": "has no system role: the system message stands at the head of the user's turn",
            "developer": "has no developer role: its messages are system messages",
            "turns": "takes no two turns of one role in a row: such turns are joined",
        }
        return [f"the chat template of {name} {said}" for key, said in told.items() if key in self._changed]

    def turn_end(self) -> set[int]:
        """The special token that the template writes behind an answer, if it does: what ends an answer, whatever the configuration says."""
        try:
            whole = self._written([{"role": "user", "content": FIRST}, {"role": "assistant", "content": SECOND}], add_generation_prompt=False)
        except RecordError:
            return set()
        behind = whole.rpartition(SECOND)[2].lstrip() if SECOND in whole else ""
        special = {str(token): number for number, token in self.texts.tokenizer.added_tokens_decoder.items() if token.special}
        found = max((token for token in special if behind.startswith(token)), key=len, default=None)
        return {special[found]} if found else set()

    def _fitting(self, messages: Messages) -> tuple[list[dict[str, Any]], set[str]]:
        """The messages as the template takes them, and what was changed."""
        found, changes = list(messages), set()
        roles = {message["role"] for message in found}
        if "developer" in roles and not self.takes_role("developer"):
            found = [message | {"role": "system"} if message["role"] == "developer" else message for message in found]
            changes.add("developer")
        if any(message["role"] == "system" for message in found) and not self.takes_role("system"):
            found = folded(found)
            changes.add("system")
        repeated = {one["role"] for one, other in pairwise(found) if one["role"] == other["role"]}
        if any(not self._takes_repeated(role) for role in sorted(repeated & {"user", "assistant"})):
            found = joined(found)
            changes.add("turns")
        return found, changes

    def _written(self, messages: Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        if self._as_parts():
            messages = [
                message | {"content": [{"type": "text", "text": message["content"]}]} if isinstance(message.get("content"), str) else message
                for message in messages
            ]
        return self.texts.chat(messages, add_generation_prompt=add_generation_prompt, **variables)

    def _shows(self, messages: Messages, write: Callable[[Messages], str]) -> bool:
        """Whether a conversation of our own is written with all of its texts."""
        try:
            text = write(messages)
        except RecordError:
            return False
        return all(probe in text for probe in (FIRST, SECOND, THIRD) if any(probe in str(message["content"]) for message in messages))

    def _found(self, what: str, look: Callable[[], bool]) -> bool:
        if what not in self._known:
            self._known[what] = look()
        return self._known[what]

    def takes_role(self, role: str) -> bool:
        """Whether the template writes a message of this role before the user's."""
        messages = [{"role": role, "content": FIRST}, {"role": "user", "content": SECOND}]
        return self._found(f"role {role}", lambda: self._shows(messages, self._written))

    def _takes_repeated(self, role: str) -> bool:
        before = [] if role == "user" else [{"role": "user", "content": THIRD}]
        messages = [*before, {"role": role, "content": FIRST}, {"role": role, "content": SECOND}]
        return self._found(f"repeated {role}", lambda: self._shows(messages, self._written))

    def _as_parts(self) -> bool:
        """Whether a content must be a list of parts, as for models that see pictures."""

        def write(messages: Messages) -> str:
            return self.texts.chat(messages, add_generation_prompt=True)

        def shown(content: Any) -> bool:
            return self._shows([{"role": "user", "content": content}], write)

        return self._found("parts", lambda: not shown(FIRST) and shown([{"type": "text", "text": FIRST}]))


def folded(messages: Messages) -> list[dict[str, Any]]:
    """Each system message at the head of the user's turn that follows, a blank line behind it; a last one becomes a turn of the user."""
    found: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in INSTRUCTIONS:
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            found.append(message | {"content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            found.append(message)
    return [*found, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else found


def joined(messages: Messages) -> list[dict[str, Any]]:
    """Turns of one role in a row as one turn, with blank lines between."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] and isinstance(found[-1]["content"], str) and isinstance(message["content"], str):
            found[-1] = found[-1] | {"content": found[-1]["content"] + "\n\n" + message["content"]}
        else:
            found.append(dict(message))
    return found
