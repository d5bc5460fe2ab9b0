"""blendkit data"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from blendkit.errors import DataError, RecordError, UsageError
from blendkit.records import Record, as_line
from blendkit.registry import nearest
from blendkit.sources import FORMS, PAIRS, TASKS
from blendkit.streams.files import Role, one_role_each, stdin_or, stdout_or
from blendkit.streams.lines import BadLine, Reader, Writer
from blendkit.terminal_text import count_of, say, shown

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Output = Annotated[str | None, typer.Option("-o", "--output", help="Write this file (.gz, .zst) instead of stdout.")]


@app.callback()
def data() -> None:
    """Get, build, count and convert data sets."""


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="mixinstruct, or mixinstruct:train, :val or :test.")],
    output: Output = None,
    source: Annotated[str | None, typer.Option("--from", help="A file of the data set instead of the hub.")] = None,
) -> None:
    """Stream the public MixInstruct as records, with the candidates of its eleven LLMs.

    Example: blendkit data pull mixinstruct:test | blendkit evaluate
    """
    from blendkit.sources.mixinstruct import pulled

    one_role_each([*([Role("--from", source)] if source else []), stdout_or(output)])
    data_set, _, split = name.partition(":")
    if data_set != "mixinstruct":
        raise UsageError(f"data pull {name}: expected mixinstruct; `blendkit data convert` reads other sets")
    _write(pulled(split or "train", source), output)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help=f"`mixinstruct`, or a task of the paper's appendix: {TASKS.explained()}.")],
    output: Annotated[str, typer.Option("-o", "--output", help="mixinstruct: a folder for train, val and test.jsonl.gz; a file otherwise.")],
    source: Annotated[
        list[str] | None, typer.Option("--source", help="NAME=FILE (or a hub id): where a source is. May be given several times.", show_default="the hub")
    ] = None,
    sizes: Annotated[str, typer.Option(help="mixinstruct: examples of train, val and test.")] = "100000,5000,5000",
    split: Annotated[str, typer.Option(help="The other sets: the split on the hub.")] = "test",
    seed: Annotated[int, typer.Option(help="mixinstruct: which examples, and in which split.")] = 0,
) -> None:
    """Build MixInstruct from its four sources, or a task of the paper's appendix; `generate` then adds candidates.

    Sources of mixinstruct: alpaca-gpt4, dolly-15k, gpt4all-laion and sharegpt, each in its published form.

    Example: blendkit data build mixinstruct --source sharegpt=sg.json -o mixinstruct/
    """
    from blendkit.sources.mixinstruct import SPLITS
    from blendkit.sources.mixinstruct import build as build_mixinstruct
    from blendkit.sources.reading import rows
    from blendkit.sources.tasks import read_task

    where = dict(_named(given) for given in source or [])
    outputs = [str(Path(output) / f"{split_name}.jsonl.gz") for split_name in SPLITS] if name == "mixinstruct" else [output]
    one_role_each([*(Role("--source", file) for file in where.values()), *(Role("-o", file, writes=True) for file in outputs)])
    if name in TASKS:
        _write(read_task(name, rows(where.get(name, TASKS[name].load().hub), split)), output)
        return
    if name != "mixinstruct":
        raise UsageError(f"data build {name}: expected one of mixinstruct, {', '.join(TASKS)}{nearest(name, ['mixinstruct', *TASKS])}")
    counts = sizes.split(",")
    if len(counts) != len(SPLITS) or not all(count.isdigit() and int(count) > 0 for count in counts):
        raise UsageError(f"--sizes {sizes}: expected three numbers, such as 100000,5000,5000")
    splits = build_mixinstruct(where, dict(zip(SPLITS, map(int, counts), strict=True)), seed, lambda line: say(line, "data"))
    Path(output).mkdir(parents=True, exist_ok=True)
    for file, records in zip(outputs, splits.values(), strict=True):
        _write(records, file)


@app.command()
def stats(
    input: Annotated[str | None, typer.Option("-i", "--input", help="Read this file (.gz, .zst) instead of stdin.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Count tokens of this tokenizer (a directory or a hub id).", show_default="words")] = None,
) -> None:
    """Print a stream's Table 1: examples of each source, and the mean length of x and of the reference, in words or tokens.

    The table goes to stderr, its rows to stdout as JSON lines. A record's source is its field `source`, or its id up to the last `/`.

    Example: blendkit data pull mixinstruct | blendkit data stats
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from blendkit.sources.stats import table_1

    one_role_each([stdin_or(input), stdout_or(None)])
    rows = table_1(_records(input), tokenizer)
    table = Table(title="Sources (as Table 1 of the paper)", title_justify="left", header_style="bold")
    unit = "words" if tokenizer is None else "tokens"
    for column in ("source", "examples", f"input {unit}", f"output {unit}", "candidates"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for row in rows:
        table.add_row(Text(shown(row["source"])), f"{row['examples']:,}", *(f"{row[key]:.1f}" for key in (f"input_{unit}", f"output_{unit}", "candidates")))
    Console(stderr=True, width=None if sys.stderr.isatty() else 120, highlight=False).print(table)
    _write(rows, None)


@app.command()
def convert(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to read with --from: files (.json, .jsonl, .csv, .parquet, .arrow, .gz, .zst) or hf:OWNER/NAME[:SPLIT].", show_default="stdin"
        ),
    ] = None,
    source: Annotated[str | None, typer.Option("--from", help=f"The form of the files: {FORMS.explained()}.", show_default="records")] = None,
    target: Annotated[str | None, typer.Option("--to", help="The form to write, one of those of --from.", show_default="records")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN: a column's name in the form; candidates=COLUMN may be given for several models.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="--to pairs: what says which is better: human, ranks:NAME, verdicts:JUDGE or a score.", show_default="the one that a record has"),
    ] = None,
    pairs: Annotated[str, typer.Option(help=f"--to pairs: {', '.join(PAIRS)}.")] = "best-worst",
    min_margin: Annotated[float, typer.Option(help="--to pairs: leave out those nearer than this in score, ranks or shares of verdicts won.")] = 0.0,
    as_messages: Annotated[bool, typer.Option("--as-messages", help="--to dpo, kto, sft: write lists of messages in place of texts.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A field for which a form has no place is an error; else it is counted and told.")] = False,
    split: Annotated[str, typer.Option(help="The split of a data set of the hub.")] = "train",
    on_error: Annotated[str, typer.Option(help="A bad row: `fail` stops, `skip` leaves it out and ends with 70.")] = "fail",
    rejects: Annotated[str | None, typer.Option(help="Where --on-error skip writes bad rows, with the reason.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write this file (.gz, .zst, .parquet, .arrow) instead of stdout.")] = None,
) -> None:
    """Read and write the forms of neighbours. What a form cannot hold is counted and told; docs/data.md lists what each form keeps.

    Example: blendkit data convert --from alpacaeval vicuna.json alpaca.json > candidates.jsonl
    """
    from blendkit.sources.converting import check_output, converted, parsed_map, stream
    from blendkit.sources.forms import Writing, read_form
    from blendkit.sources.preferences import PairOptions
    from blendkit.sources.reading import mapped, rows
    from blendkit.sources.rows import Losses, SourceRow
    from blendkit.streams.rejects import Rejects, check_on_error

    if source is None and (files or columns):
        source = "records"
    check_on_error(on_error, rejects)
    roles = [Role("the file", file) for file in files or [] if file != "-"] or [stdin_or(None)]
    one_role_each([*roles, stdout_or(output), *([Role("--rejects", rejects, writes=True)] if rejects else [])])
    check_output(target, output)
    writing, losses = Writing(PairOptions(label, pairs, min_margin), as_messages), Losses(strict)
    named = parsed_map(columns or [])
    with Rejects("data", "<stdin>", on_error == "skip", rejects) as bad:

        def faulty(row: SourceRow, error: RecordError) -> None:
            bad.take(BadLine(row.number, row.raw(), error), row.place)

        if source is None:
            records = stream(None, faulty)
        else:
            given = (row for path in files or ["-"] for row in rows(path, split, source == "csv"))
            records = read_form(source, mapped(given, named) if named else given, losses, faulty)
        _write_blocks(converted(records, target, writing, losses, faulty, lambda line: say(line, "data"), output), output)
    for line in [*losses.told(), *(count_of(count, *what) for what, count in writing.left_out.items() if count)]:
        say(line, "data")
    bad.raise_if_any()


def _named(given: str) -> tuple[str, str]:
    name, mark, where = given.partition("=")
    if not mark or not where:
        raise UsageError(f"--source {given}: expected NAME=FILE")
    return name, where


def _records(path: str | None) -> Iterator[Record]:
    reader = Reader(path)
    for line in reader.records():
        if isinstance(line, BadLine):
            raise DataError(f"{reader.name}:{line.number}: {line.error}")
        yield line.record


def _write(rows: Iterable[Any], output: str | None) -> None:
    _write_blocks(map(as_line, rows), output)


def _write_blocks(blocks: Iterator[bytes], output: str | None) -> None:
    # A fault that shows at once leaves a file that is there as it is.
    first = next(blocks, b"")
    writer = Writer(output)
    for block in itertools.chain([first] if first else (), blocks):
        writer.write_bytes(block)
    writer.close()
