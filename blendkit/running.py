"""A command's run from the outside: streams, resume, rejects, progress, manifest."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson

from blendkit.credentials import Secrets, in_urls
from blendkit.engines import EngineOptions, distributed
from blendkit.errors import DataError, OutputError, RecordError, SkippedRecords, UsageError
from blendkit.files import Role, stdin_or, stdout_or
from blendkit.jsonl import MAX_LINE_BYTES, BadLine, Line, Reader, Shard, Writer, raise_if_signalled
from blendkit.progress import Progress
from blendkit.records import verdicts_of
from blendkit.resuming import Remaining, recover
from blendkit.showing import one_line, say, standing
from blendkit.stage import Counts, Plan, Stage, process
from blendkit.version import VERSION


@dataclass
class RunOptions:
    """The flags that every command shares."""

    command: str = ""
    input: str | None = None
    shard: str | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    output: str | None = None
    resume: bool = False
    on_error: str = "fail"
    rejects: str | None = None
    window: int | None = None
    batch_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    manifest: str | None = None
    progress: str = "auto"
    quiet: bool = False
    debug: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    # Files of a command's own flags.
    files: list[Role] = field(default_factory=list)

    def check(self) -> None:
        """Raises UsageError for flags that do not go together."""
        self.engine.check()
        if self.resume and (not self.output or self.output == "-"):
            raise UsageError("--resume needs -o FILE: it adds the records that this file does not have yet")
        if self.rejects and self.on_error != "skip":
            raise UsageError("--rejects needs --on-error skip")
        if self.on_error not in ("fail", "skip"):
            raise UsageError(f"--on-error {self.on_error}: expected fail or skip")
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
        # Whoever sends records and messages to one place with 2>&1 wants that; in a file of records no message may land.
        return files if files[1].file == 1 else [*files, Role("standard error", 2, writes=True)]

    def reader(self) -> Reader:
        """The input, or this process's part of it."""
        return Reader(self.input, shard_of(self.shard) if self.shard else None, self.max_line_bytes)


# A scheduler's variables: this task's number, the number of the first task, how many tasks there are.
SCHEDULERS = {
    "slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    "k8s": ("JOB_COMPLETION_INDEX", "", ""),
}


def shard_of(spec: str) -> Shard:
    """(I, N) of `I/N`, I from 0; of `slurm` or `slurm/N`, inside a job array; of `k8s/N`, inside an indexed job.

    Raises:
        UsageError: there is no such part, or the scheduler's variable is not set.
    """
    number: int | None
    total: int | None
    first, mark, last = spec.partition("/")
    if first in SCHEDULERS:
        task, least, count = SCHEDULERS[first]
        number = _variable(task, spec) - (_variable(least, spec) if least in os.environ else 0)
        total = _number(last) if mark else _variable(count, spec) if count else None
    else:
        number, total = _number(first), _number(last)
    if number is None or not total or not 0 <= number < total:
        raise UsageError(f"--shard {spec}: expected I/N with I from 0 to N - 1, slurm, slurm/N or k8s/N")
    return number, total


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _variable(name: str, spec: str) -> int:
    number = _number(os.environ.get(name, ""))
    if number is None:
        raise UsageError(f"--shard {spec}: the variable {name} holds no number; the scheduler sets it for each task")
    return number


def run_stage(make: Callable[[], Stage], options: RunOptions) -> Stage:
    """Reads, runs the stage, writes; ends with a manifest where one was asked for. Returns the stage.

    Raises:
        BlendkitError: any of them, each with its exit code, after everything done is on disk.
    """
    options.check()
    reader = options.reader()
    remaining = Remaining(recover(options.output), reader.name) if options.resume and options.output else None
    stage = distributed(make, options.engine)
    lines: Iterator[Line | BadLine] = reader.records()
    if remaining is not None:
        lines = remaining.lines(lines)
    writer = Writer(options.output, append=options.resume)
    with Rejects(options, reader.name) as rejects, Progress(options, reader) as progress, Manifest(options, stage, reader.name) as manifest:

        def tick(counts: Counts) -> None:
            raise_if_signalled()
            progress.update(counts)

        plan = Plan(options.window or stage.window, options.batch_tokens or stage.batch_tokens, rejects.take, tick)
        manifest.counts = plan.counts
        try:
            for done in process(stage, lines, plan):
                if stage.passes_records:
                    writer.write(line.record for line in done)
                if remaining is not None:
                    remaining.wrote(done)
            if ending := stage.ending():
                writer.write_bytes(ending)
        finally:
            progress.close()
            stage.close()
            for warning in [*stage.warnings(), *(remaining.told() if remaining is not None else ())]:
                say(warning, options.command)
        writer.close()
    rejects.raise_if_any()
    return stage


class Rejects:
    """Where bad lines go: `--on-error fail` stops at the first, `skip` passes them to `--rejects FILE`."""

    def __init__(self, options: RunOptions, source: str) -> None:
        self.options, self.source, self.count = options, source, 0
        # Anew with --resume, too: what was skipped is not in the output, so that it is tried again.
        self._writer = Writer(options.rejects) if options.rejects else None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, *ending: object) -> None:
        if self._writer:
            self._writer.close()

    def take(self, bad: BadLine) -> None:
        """Raises DataError under `fail`; otherwise says so, and keeps line and reason."""
        message = f"{self.source}:{bad.number}: {bad.error}"
        if self.options.on_error == "fail":
            raise DataError(message)
        self.count += 1
        say(f"skipped {message}", self.options.command)
        if self._writer:
            self._writer.write([{"line": bad.number, "error": str(bad.error), "record": bad.raw.decode(errors="replace")}])

    def raise_if_any(self) -> None:
        """Raises SkippedRecords, so that a script can see that not all is there."""
        if self.count:
            where = f"they are in {self.options.rejects}" if self.options.rejects else "--rejects FILE keeps them"
            raise SkippedRecords(f"{self.count} bad records were skipped; {where}")


class Manifest:
    """`--manifest FILE`: what ran, on what, with which result; written however the run ends."""

    def __init__(self, options: RunOptions, stage: Stage | None, source: str) -> None:
        self.options, self.stage, self.source = options, stage, source
        self.counts = Counts()
        self._started = time.monotonic()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self.options.manifest:
            return
        seconds = time.monotonic() - self._started
        secrets = Secrets.of_process()
        content = {
            "blendkit": VERSION,
            "command": self.options.command,
            "arguments": [secrets.masked_whole(in_urls(argument)) for argument in sys.argv[1:]],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "input": self.source,
            "output": self.options.output or "<stdout>",
            "ended": "done" if kind is None else kind.__name__,
            "seed": self.options.seed,
            **(self.stage.describe() if self.stage else {}),
            "counts": asdict(self.counts),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }
        try:
            Path(self.options.manifest).write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        except OSError as failure:
            raise OutputError(f"{self.options.manifest}: cannot write: {failure.strerror}") from failure


def peak_memory() -> dict[str, int]:
    """Peak bytes of this process, and of the CUDA device if one was used."""
    scale = 1 if sys.platform == "darwin" else 1024
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


def seeded(seed: int, *parts: str) -> int:
    """A seed of its own for each thing that is named, the same on every machine and in every order of records."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def check_stream(options: RunOptions) -> None:
    """Names every bad line of a stream on stderr, then counts.

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
    if bad:
        raise DataError(f"{bad} of {good + bad} records are bad")
    if not options.quiet:
        say(f"{good} records, all good", "check")
