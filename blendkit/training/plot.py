"""`train --plot FILE`: the loss and the evaluation over the steps, from the log."""

from __future__ import annotations

from pathlib import Path

from blendkit.errors import OutputError
from blendkit.evaluation.report.ink import BLUE
from blendkit.evaluation.report.plots import drawing
from blendkit.training.state import log_rows

FIGURES = {"loss": "loss", "spearman": "Spearman × 100", "pair_accuracy": "pair accuracy, %", "oracle_rank": "mean oracle rank"}


def plot_log(folder: Path, path: str) -> None:
    """Draws one panel for each figure that the log has.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = log_rows(folder)
    columns = [column for column in FIGURES if any(column in row for row in rows)]
    with drawing() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(4.2 * len(columns), 3.2), layout="constrained")
        for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
            found = [(row["step"], row[column]) for row in rows if column in row]
            axes.plot(*zip(*found, strict=True), color=BLUE, marker="." if len(found) < 30 else None)
            axes.set_xlabel("step")
            axes.set_title(FIGURES[column])
            axes.grid(alpha=0.25)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise OutputError(f"--plot {path}: cannot write: {error.strerror}") from error
