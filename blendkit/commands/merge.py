"""blendkit merge"""

from __future__ import annotations

from typing import Annotated

import typer

from blendkit.commands.options import with_run_options
from blendkit.pipeline.run import RunOptions, run_stage
from blendkit.pipeline.stage import Stage


@with_run_options("resume", "device", "dtype", "batch_tokens", "seed", "shard", reads={"parts": "PARTS"})
def merge(
    run: RunOptions,
    parts: Annotated[list[str], typer.Argument(help="The outputs of all shards (.gz, .zst).", show_default=False)],
) -> None:
    """Join the outputs of shards in the order of the original, which stdin is.

    Every record of the original must be in one part, and none twice; 65 is the exit code otherwise, and says where.

    Example: blendkit merge part-*.jsonl < prompts.jsonl > all.jsonl
    """

    def make() -> Stage:
        from blendkit.pipeline.merging import Merging

        return Merging(parts, run.max_line_bytes)

    run_stage(make, run)
