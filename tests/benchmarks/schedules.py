"""What fewer comparisons cost: schedules and prefilters against the full matrix, and against the oracle.

The full matrix is computed once (or read, where the input has it: `blendkit pair < dev.jsonl > paired.jsonl`); each
schedule then asks for its comparisons out of it, with the very code that `pair` and `rank` run. Needs records with
an oracle score a candidate.

    bin/bench schedules                       ../shared/data/dev.jsonl.gz, embedded ranker
    bin/bench schedules paired.jsonl          comparisons that are there already
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from blendkit.aggregate import matrix
from blendkit.rankers.prefilter import Prefilter
from blendkit.rankers.ranking import Ranking
from blendkit.rankers.schedules import make_schedule
from blendkit.seeding import seeded
from blendkit.streams.lines import Line, Reader

DEV = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "dev.jsonl.gz"
ROWS = [
    "full",
    "full --aggregate max-wins",
    "full --aggregate copeland",
    "full --aggregate bradley-terry",
    "full --aggregate elo",
    "single",
    "bubble",
    "bubble:3",
    "sort",
    "swiss:3",
    "swiss:4",
    "swiss:5",
    "swiss:6",
    "swiss:7",
    "active:15",
    "active:20",
    "active:25",
    "active:30",
    "active:38",
    "swiss:6 --aggregate bradley-terry",
    "swiss:6 --aggregate elo",
    "full --prefilter length:8",
    "full --prefilter length:6",
    "swiss:5 --prefilter length:8",
    "full --prefilter random:8",
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/bench schedules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="?", default=str(DEV))
    parser.add_argument("--oracle", default="gpt4_pref", help="the score of candidates that tells the true ranking")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", type=int, default=5, help="schedules that draw are run this often; the means are shown")
    parser.add_argument("--save", help="write the records with their full comparisons to this file")
    return parser.parse_args()


def full_records(options: argparse.Namespace) -> list[dict]:
    """The records, each with all comparisons."""
    import blendkit

    if not Path(options.input).is_file():
        sys.exit(f"{options.input} is not there: give a file of records whose candidates have scores.{options.oracle}")
    records = [line.record for line in Reader(options.input).records() if isinstance(line, Line)]
    if all(record.get("comparisons", {}).get("pairrm", {}).get("schedule") == "full" for record in records):
        return records
    done = []
    for number, record in enumerate(blendkit.pair(records, options.model), 1):
        print(f"\r{number} of {len(records)} records compared", end="", file=sys.stderr)
        done.append(record)
    print(file=sys.stderr)
    return done


def replay(record: dict, spec: str, prefilter: str | None, seed: int) -> dict:
    """The comparisons of a schedule, out of the full ones."""
    n = len(record["candidates"])
    known = {(i, j): logit for i, j, logit in record["comparisons"]["pairrm"]["pairs"]}
    chosen = list(range(n))
    if prefilter:
        keeping = Prefilter(prefilter, "cpu", "float32", seed).keep(record, chosen)
        try:
            works = next(keeping)
            while True:
                works = keeping.send([work.job.run([work.payload])[0] for work in works])
        except StopIteration as done:
            chosen = done.value
    schedule = make_schedule(spec)(len(chosen), random.Random(seeded(seed, "schedule", record["id"])))
    rows: list[list] = []
    found: dict = {"pairs": rows}
    try:
        pairs = next(schedule)
        while True:
            logits = [known[chosen[i], chosen[j]] for i, j in pairs]
            rows += [[chosen[i], chosen[j], logit] for (i, j), logit in zip(pairs, logits, strict=True)]
            pairs = schedule.send(logits)
    except StopIteration as done:
        if done.value is not None:
            found["order"] = [chosen[index] for index in done.value]
    return {**record, "comparisons": {"pairrm": found}, "ranks": {}}


def measured(records: list[dict], row: str, oracle: str, seed: int, full_tops: list[list[int]]) -> Iterator[tuple[float, ...]]:
    """A record's numbers: comparisons, of full; top-3 overlap, same top-1; oracle rank of the first, in the oracle's top 3, Spearman."""
    words = row.split()
    settings = dict(zip(words[1::2], words[2::2], strict=True))
    ranking = Ranking(aggregate=settings.get("--aggregate"))
    for record, full_top in zip(records, full_tops, strict=True):
        done = replay(record, words[0], settings.get("--prefilter"), seed)
        ranking.finish(done, [])
        (ranks,) = done["ranks"].values()
        n, top = len(ranks), done["top"]
        true = np.array([candidate["scores"][oracle] for candidate in record["candidates"]])
        # Ties of the oracle share the mean of their ranks.
        places = np.array([1 + (true > value).sum() + ((true == value).sum() - 1) / 2 for value in true])
        count = len(done["comparisons"]["pairrm"]["pairs"])
        agreement = spearmanr(ranks, places).statistic
        yield (
            count,
            count / (n * (n - 1)),
            len(set(top) & set(full_top)) / len(full_top),
            top[0] == full_top[0],
            places[top[0]],
            places[top[0]] <= 3,
            agreement,
        )


def interval(differences: np.ndarray) -> str:
    """The mean difference over records, and a bootstrap 95 % interval of it (2,000 resamples)."""
    if not differences.any():
        return "0"
    drawn = np.random.default_rng(0).integers(len(differences), size=(2000, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), (2.5, 97.5))
    return f"{differences.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    options = arguments()
    records = full_records(options)
    if options.save:
        from blendkit.streams.lines import Writer

        writer = Writer(options.save)
        writer.write(records)
        writer.close()
    for record in records:
        m = matrix(record["comparisons"]["pairrm"]["pairs"], len(record["candidates"]))
        if np.isnan(m).any():
            sys.exit(f"record {record['id']}: not all pairs are compared")
    full_tops = []
    for record in records:
        done = replay(record, "full", None, 0)
        Ranking().finish(done, [])
        full_tops.append(done["top"])
    table = Table(title=f"{len(records)} records, {options.seeds} seeds", title_justify="left")
    columns = ("schedule", "comparisons", "of full", "top-3 overlap", "same top-1", "oracle rank", "more than full", "oracle's top 3", "Spearman")
    for column in columns:
        table.add_column(column, justify="left" if column == "schedule" else "right", no_wrap=True)
    base = None
    for row in ROWS:
        drawn = not row.startswith("full") or "random" in row
        runs = [list(measured(records, row, options.oracle, seed, full_tops)) for seed in range(options.seeds if drawn else 1)]
        means = np.nanmean(np.array(runs, float), axis=0)  # [records, numbers]
        base = means[:, 4] if base is None else base
        count, share, overlap, first, rank, third, agreement = np.nanmean(means, axis=0)
        cells = (f"{count:.1f}", f"{share:.1%}", f"{overlap:.1%}", f"{first:.1%}", f"{rank:.2f}", interval(means[:, 4] - base), f"{third:.0%}")
        table.add_row(row, *cells, f"{100 * agreement:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
