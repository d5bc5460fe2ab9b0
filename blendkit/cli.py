"""The typer app: a table of commands, each loaded when it is called or shown."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from blendkit.credentials import Secrets
from blendkit.errors import BlendkitError, Interrupted, OutOfMemory, OutputError, UsageError, out_of_memory
from blendkit.registry import nearest
from blendkit.streams import PLAIN, collect_seldom
from blendkit.streams.signals import catch_signals, raise_if_signalled
from blendkit.streams.standard_streams import ReaderGone, make_safe, say_warnings
from blendkit.terminal_text import say, standing
from blendkit.version import VERSION

# In the order of the pipe. A new command is a file in commands/ with a function of its name, and a line here.
COMMANDS = ("generate", "score", "pair", "rank", "fuse", "judge", "evaluate", "merge", "train", "data", "check")

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_VERBOSITY": "error"}

# The class that typer's errors have, which lies in click or in typer itself, by typer's version.
CALLED_WRONGLY: Any = typer.BadParameter.__base__


class Command(TyperCommand):
    """One command, whose `--resume` may stand alone or have a value behind `=`, which typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives a bare `--resume` its value."""
        return super().parse_args(ctx, [f"--resume={PLAIN}" if argument == "--resume" else argument for argument in args])


class LazyGroup(TyperGroup):
    """Commands by name from `blendkit.commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            raise UsageError(f"no such command: {cmd_name}{nearest(cmd_name, COMMANDS)}")
        return load(cmd_name)


def load(name: str) -> Any:
    """The command object of one name."""
    module = import_module(f"blendkit.commands.{name}")
    if hasattr(module, "app"):
        group = typer.main.get_command(module.app)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, cls=Command)(getattr(module, name))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True, context_settings={"help_option_names": ["-h", "--help"]}
)


def _version(value: bool) -> None:
    if value:
        print(f"blendkit {VERSION}")
        raise typer.Exit


@app.callback()
def blendkit(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """One answer better than any single LLM's: compare, rank, fuse and judge candidates in a shell pipe.

    Every command reads records as JSON lines on stdin and writes them on stdout:

    blendkit generate -m A -m B < prompts.jsonl | blendkit pair | blendkit rank --top 3 | blendkit fuse | blendkit judge | blendkit evaluate

    Exit codes: 0 done, 1 a fault of blendkit, 2 wrong usage, 3 a check of evaluate does not hold, 65 bad data, 66 no such input or model, 69 an endpoint
    cannot be reached, 70 some records were skipped or too many verdicts not read, 74 cannot write, 75 out of memory or workers killed again and again,
    130 interrupted, 143 ended by SIGTERM.
    """


def main() -> None:
    """The console script: runs a command, and turns what went wrong into one line and an exit code."""
    make_safe()
    catch_signals()
    collect_seldom()
    quiet_libraries()
    say_warnings()
    if foreign := next((argument for argument in sys.argv[1:] if not _is_utf8(argument)), None):
        _say("", f"{os.fsencode(foreign).decode(errors='backslashreplace')!r} is not UTF-8: names go into records and reports, which are")
        _leave(UsageError.exit_code)
    command = next((argument for argument in sys.argv[1:] if argument in COMMANDS), "")
    code = 0
    try:
        _run()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BlendkitError as error:
        _say(command, str(error))
        code = error.exit_code
    except ReaderGone:
        # The reader has closed the pipe: nothing is wrong.
        pass
    except Interrupted as interrupt:
        _say(command, "interrupted; what was done is written")
        code = interrupt.exit_code
    except Exception as error:
        if out_of_memory(error):
            _say(command, f"not enough memory: {type(error).__name__} {error}; what was done is written")
            code = OutOfMemory.exit_code
        else:
            _say(command, f"internal error: {type(error).__name__}: {error} (see it whole with --debug; please report it)")
            code = 1
    _leave(code)


def quiet_libraries() -> None:
    """Model libraries chat on stderr, where only progress and warnings of ours belong. To be called before they are imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU OpenMP's idle threads look for work some 20 ms long before they sleep, and keep other processes from the cores: half a millisecond is enough.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _run() -> None:
    try:
        # What it gives back is the code of a typer.Exit, or whatever the command returned.
        found = app(prog_name="blendkit", standalone_mode=False)
        # A help text or a table that cannot be written is an error, too.
        sys.stdout.flush()
        sys.exit(found if isinstance(found, int) else 0)
    except CALLED_WRONGLY as error:
        message = error.format_message()
        if message and "\n" not in message:
            place = error.ctx.command_path if error.ctx else "blendkit"
            raise UsageError(f"{message[0].lower()}{message[1:].rstrip('.')}; see {place} --help") from error
        # The command was called alone: that shows its help, here or already.
        print(standing(message), end="\n" if message else "", flush=True)
        sys.exit(UsageError.exit_code)
    except Exception:
        # A C extension may turn the interrupt into an exception of its own.
        raise_if_signalled()
        raise


def _is_utf8(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _say(command: str, message: str) -> None:
    # Keys are masked in every message, whoever made it.
    masked = Secrets.of_process().masked
    message = masked(message)
    if "--debug" in sys.argv:
        sys.stderr.write(standing(masked(traceback.format_exc())))
    say(message, command)


def _leave(code: int) -> None:
    # Threads of model libraries and a closed stdout must not add their own words at the end.
    for stream in (sys.stderr, sys.stdout):
        with suppress(OSError, OutputError, ReaderGone):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
