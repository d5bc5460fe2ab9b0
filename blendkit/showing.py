"""Words on a terminal: whatever a name, a text or a server's message holds, a screen shows it and obeys none of it."""

from __future__ import annotations

import re
import sys

# Control characters (C0 with ESC, DEL, C1), line and paragraph separators, everything that turns the direction of writing, halves of a surrogate pair.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OBEYED_IN_LINES = re.compile(_OBEYED.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


# Characters of a message that is shown whole.
LONGEST = 4000


def shown(text: object, lines: bool = False) -> str:
    """A text as a terminal may have it: `\\x1b` in place of ESC, `\\u202e` in place of the character, and so on; `lines` leaves line breaks in."""
    return (_OBEYED_IN_LINES if lines else _OBEYED).sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def one_line(text: object) -> str:
    """A message of any number of lines as one, for a terminal; of one that is very long its beginning and its end."""
    line = " ".join(str(text).split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} […] {line[-LONGEST // 2 :]}"
    return shown(line)


def say(message: str, command: str = "") -> None:
    """One line on stderr, under the command's name. All that blendkit tells a person outside of tables goes through here."""
    print(f"blendkit {command}: {one_line(message)}" if command else f"blendkit: {one_line(message)}", file=sys.stderr)
