"""blendkit check"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.pipeline.run import RunOptions, check_stream


@with_run_options("output", "resume", "window", "batch_tokens", "device", "dtype", "seed", "manifest", "progress", "on_error", "rejects")
def check(
    run: RunOptions,
    schema: Annotated[bool, typer.Option("--schema", help="Print the record's JSON Schema instead.")] = False,
    max_errors: Annotated[int, typer.Option(min=0, help="Stop after this many bad records; 0 reads to the end.")] = 100,
) -> None:
    """Validate a stream of records: every bad line is named, with the field and what was expected.

    Ends with 0 when all records are good, with 65 when any is bad.

    Example: blendkit check -i candidates.jsonl.gz
    """
    if schema:
        import orjson

        from blendkit.records import json_schema

        sys.stdout.write(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return
    check_stream(run, max_errors)
