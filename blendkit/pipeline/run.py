"""A command's run from the outside: a stream in, the stage, a stream out, and what goes beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blendkit.errors import BlendkitError, DataError, RecordError, SkippedRecords, UsageError
from blendkit.models.attention_forms import attending
from blendkit.pipeline.engines import distributed
from blendkit.pipeline.engines.options import AUTO, EngineOptions
from blendkit.pipeline.plan import Plan
from blendkit.pipeline.runner import process
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.turns import turns_of, use_threads
from blendkit.records import verdicts_of
from blendkit.streams import FORCE, PLAIN
from blendkit.streams.counts import Counts
from blendkit.streams.files import Role, stdin_or, stdout_or
from blendkit.streams.fingerprint import MadeBy
from blendkit.streams.lines import MAX_LINE_BYTES, BadLine, Line, Reader
from blendkit.streams.manifest import Manifest
from blendkit.streams.output import Output
from blendkit.streams.progress import Progress
from blendkit.streams.rejects import Rejects, check_on_error
from blendkit.streams.resume import Remaining, recover
from blendkit.streams.shards import shard_of
from blendkit.streams.signals import raise_if_signalled
from blendkit.terminal_text import count_of, one_line, say, standing


@dataclass
class RunOptions:
    """The flags that every command shares."""

    command: str = ""
    input: str | None = None
    shard: str | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    output: str | None = None
    # None, or how: PLAIN, or FORCE over another run's output.
    resume: str | None = None
    # The values of the flags that decide records, for the output's fingerprint; None for one that has no --resume, or writes to no file.
    flags: dict[str, Any] | None = None
    on_error: str = "fail"
    rejects: str | None = None
    window: int | None = None
    batch_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    self_check: bool = True
    seed: int = 0
    manifest: str | None = None
    progress: str = "auto"
    quiet: bool = False
    debug: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    # The flag by which the command passes no record on before it has seen all, if any.
    whole_stream: str | None = None
    # Files of a command's own flags.
    files: list[Role] = field(default_factory=list)

    def check(self) -> None:
        """Raises UsageError for flags that do not go together."""
        self.engine.check()
        if self.resume and (not self.output or self.output == "-"):
            raise UsageError("--resume needs -o FILE: it adds the records that this file does not have yet")
        if self.whole_stream and self.resume:
            raise UsageError(
                f"{self.whole_stream}: the whole stream is settled at once, so --resume has no part to go on from; a second run takes answers from --cache"
            )
        if self.whole_stream and self.engine.beside:
            raise UsageError(f"{self.whole_stream}: one process looks at the whole stream, so it goes neither with --workers nor with --engine ray")
        if self.resume not in (None, PLAIN, FORCE):
            raise UsageError(f"--resume={self.resume}: expected --resume alone, or --resume=force")
        check_on_error(self.on_error, self.rejects)
        if self.progress not in ("auto", "bar", "json", "none"):
            raise UsageError(f"--progress {self.progress}: expected auto, bar, json or none")
        if self.window is not None and self.window < 1:
            raise UsageError(f"--window {self.window}: expected at least 1 record")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise UsageError(f"--batch-tokens {self.batch_tokens}: expected at least 1 token")

    def roles(self) -> list[Role]:
        """What every file is for."""
        files = [stdin_or(self.input), stdout_or(self.output), *self.files]
        files += [Role(flag, file, writes=True) for flag, file in (("--rejects", self.rejects), ("--manifest", self.manifest)) if file]
        # A shell's 2>&1 mixes records and messages on purpose; a file given with -o must not get messages.
        return files if files[1].file == 1 else [*files, Role("standard error", 2, writes=True)]

    def reader(self) -> Reader:
        """The input, or this process's part of it."""
        return Reader(self.input, shard_of(self.shard) if self.shard else None, self.max_line_bytes)


def run_stage(make: Callable[[], Stage], options: RunOptions) -> Stage:
    """Reads, runs the stage, writes; ends with a manifest where one was asked for. Returns the stage.

    Raises:
        BlendkitError: any of them, each with its exit code, after everything done is on disk.
    """
    options.check()
    reader = options.reader()
    remaining = Remaining(recover(options.output), reader.name) if options.resume and options.output else None

    def attending_as_asked() -> Stage:
        with attending(options.attention, options.self_check) as how:
            stage = make()
        stage.attending = how
        return stage

    threads = options.engine.threads
    if threads != AUTO:
        use_threads(int(threads))
    stage = distributed(attending_as_asked, options.engine)
    if threads != AUTO:
        # By now torch is loaded where it is needed, and takes more threads than there are cores, too.
        use_threads(int(threads))
    if not options.quiet and stage.attending:
        for line in stage.attending.lines():
            say(line, options.command)
    lines: Iterator[Line | BadLine] = reader.records()
    try:
        # What models are costs reading their weights, so that it is asked where a file keeps it.
        run = None if options.flags is None else MadeBy.of(options.command, options.flags, stage.describe().get("models", {}))
        if remaining is not None:
            assert run is not None, "a command that resumes says which flags decide its records"
            lines = remaining.lines(lines)
            for line in remaining.earlier.check(run, options.resume == FORCE):
                say(line, options.command)
    except BlendkitError:
        stage.close()
        raise
    output = Output(options.output, run if stage.passes_records else None, remaining)
    progress = Progress(options.command, "none" if options.quiet else options.progress, reader.total_bytes())
    known = {"command": options.command, "input": reader.name, "output": options.output or "<stdout>", "seed": options.seed}

    def tick(counts: Counts) -> None:
        raise_if_signalled()
        progress.update(counts)

    rejects = Rejects(options.command, reader.name, options.on_error == "skip", options.rejects)

    def skip(bad: BadLine) -> None:
        rejects.take(bad)
        stage.skipped(f"{reader.name}:{bad.number}", str(bad.error))
        output.skip(bad)

    plan = Plan(options.window or stage.in_flight, options.batch_tokens or stage.batch_tokens, skip, tick, turn=turns_of(options.device, threads))
    progress.update(plan.counts)  # what is in hand shows before the first batch is done
    with rejects, progress, Manifest(options.manifest, known, plan.counts, stage.described):
        try:
            for done in stage.passing(process(stage, lines, plan)):
                if stage.passes_records:
                    output.write(done)
            if ending := stage.ending():
                output.write_bytes(ending)
        finally:
            progress.close()
            plan.close()
            stage.close()
            for warning in stage.warnings():
                say(warning, options.command)
            # Also where the run was cut short: what was done again is worth as much as what was added.
            output.close()
            for line in output.told():
                say(line, options.command)
    fault = account.fault() if (account := stage.account()) else None
    for note in getattr(fault, "__notes__", ()):
        say(note, options.command)
    skipped = [problem for problem in (rejects.problem(), remaining.still_skipped() if remaining else None) if problem]
    if fault is None and skipped:
        fault = SkippedRecords(skipped.pop())
    for problem in skipped:
        say(problem, options.command)
    if fault is not None:
        raise fault
    return stage


def check_stream(options: RunOptions, max_errors: int = 0) -> None:
    """Names every bad line of a stream on stderr, then counts. After `max_errors` of them it stops; 0 goes on to the end.

    Raises:
        DataError: at least one line is bad.
    """
    reader = options.reader()
    good = bad = 0
    for line in reader.records():
        if isinstance(line, Line):
            try:
                verdicts_of(line.record)
                good += 1
                continue
            except RecordError as error:
                line = BadLine(line.number, line.raw, error)
        bad += 1
        print(standing(one_line(f"{reader.name}:{line.number}: {line.error}")), file=sys.stderr)
        if bad == max_errors:
            raise DataError(f"{bad:,} of the first {count_of(good + bad, 'record')} {'is' if bad == 1 else 'are'} bad; --max-errors 0 reads on")
    if bad:
        raise DataError(f"{bad:,} of {count_of(good + bad, 'record')} {'is' if bad == 1 else 'are'} bad")
    if not options.quiet:
        say(f"{count_of(good, 'record')}, all good", "check")
