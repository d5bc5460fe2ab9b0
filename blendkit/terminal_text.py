"""Text for a terminal. Control characters in a name, an answer or a server's message are shown, and the terminal does not obey them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

# Control characters (C0 with ESC, DEL, C1), line and paragraph separators, marks that change the direction of writing, halves of a surrogate pair.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COMMAND = re.compile(r"^\s*::")

# A longer message, in characters, is cut in its middle.
LONGEST = 4000


def shown(text: object) -> str:
    """A text as a terminal may have it: `\\x1b` in place of ESC, `\\u202e` in place of the character, and so on."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def listed(names: Iterable[str], most: int | None = None) -> str:
    """Names with commas between them, each once and `shown`, so that a line end in one of them is seen; `none` where there is none.

    Beyond `most` of them, only their number is said.
    """
    found = list(dict.fromkeys(names))
    rest = f" and {len(found) - most:,} more" if most is not None and len(found) > most else ""
    return (", ".join(map(shown, found[:most])) or "none") + rest


# What is counted, as `count_of` takes it: one of it, and several.
Counted = tuple[str, str]


def count_of(count: int, one: str, many: str = "") -> str:
    """`1 record` or `1,200 records`; `many` is the plural where it is no `s` behind the singular, such as with a verb: `record is`, `records are`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def one_line(text: object) -> str:
    """A text as one line; a very long one is cut in its middle."""
    line = " ".join(str(text).split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} […] {line[-LONGEST // 2 :]}"
    return shown(line)


def excerpt(text: str, longest: int) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * longest].split())
    return shown(line if len(line) <= longest and len(text) <= 4 * longest else f"{line[:longest]} […]")


def standing(text: str) -> str:
    """Each line `shown`; a line that a CI system would read as a command in its log (`::error::`) is escaped."""
    return "\n".join(_COMMAND.sub(r"\\x3a:", shown(line)) for line in text.split("\n"))


def say(message: str, command: str = "") -> None:
    """One line on stderr, under the command's name. All that blendkit tells a person outside of tables goes through here."""
    # In one piece, as several threads may speak.
    print(f"blendkit{f' {command}' if command else ''}: {one_line(message)}\n", end="", file=sys.stderr)
