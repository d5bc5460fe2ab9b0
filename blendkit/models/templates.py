"""Chat templates: programs that a checkpoint brings. Jinja's sandbox keeps them from files and code; here they also end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blendkit.errors import BlendkitError, NoInputError, RecordError
from blendkit.terminal_text import count_of

# Seconds that a template may take; a good one needs a millisecond.
SECONDS = 10.0
LARGEST = 64 << 20
# How much more memory than before the process may take meanwhile, in bytes.
MEMORY = 1 << 30
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class _Endless(BaseException):
    """Ends a template. It is no Exception, so that no handler in between catches it."""


def rendered(tokenizer: Any, messages: list[dict[str, Any]], preamble: str = "", **options: Any) -> str:
    """The messages as the tokenizer's chat template writes them, with what a template `preamble` before it defines.

    Raises:
        NoInputError: the template is broken, or needs more time or memory than any good one does.
        RecordError: it refuses these messages.
    """
    from jinja2 import TemplateSyntaxError

    name = tokenizer.name_or_path
    several = tokenizer.chat_template
    if isinstance(several, dict) and "default" not in several:
        raise NoInputError(f"{name} has several chat templates ({', '.join(map(str, several))[:200]}) and none called default")
    try:
        template = tokenizer.get_chat_template()
    except Exception as error:
        raise NoInputError(f"{name} has no chat template to use: {_short(error)}") from error
    # A template adds these to its texts, which without a value is an error; a token that there is not is no text.
    absent = {key: "" for key in SPECIAL if getattr(tokenizer, key, None) is None}
    try:
        with _limited():
            text = str(tokenizer.apply_chat_template(messages, chat_template=preamble + template, tokenize=False, **absent, **options))
    except BlendkitError:
        raise
    except _Endless as error:
        raise NoInputError(f"the chat template of {name} does not end: {error}") from None
    except (MemoryError, OverflowError, RecursionError) as error:
        raise NoInputError(f"the chat template of {name} does not end: {type(error).__name__} {error}") from error
    except TemplateSyntaxError as error:
        raise NoInputError(f"the chat template of {name} is broken: line {error.lineno}: {_short(error)}") from error
    except Exception as error:
        raise RecordError("", f"the chat template of {name} does not take these messages: {_short(error)}") from error
    if len(text) > LARGEST:
        raise NoInputError(f"the chat template of {name} writes {count_of(len(text), 'character')}")
    return text


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _limited() -> Iterator[None]:
    """Stops Python code of this thread that runs too long or takes too much memory; unlike a signal it does so in any thread.

    It looks at every line; one single operation, such as a product of a string and a number, is not stopped in its midst.
    """
    until = time.monotonic() + SECONDS
    most = _peak() + MEMORY

    def look(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > until:
            raise _Endless(f"it was still running after {SECONDS:g} seconds")
        if _peak() > most:
            raise _Endless(f"it took more than {MEMORY >> 20} MB of memory")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _peak() -> int:
    """Peak bytes of this process; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
