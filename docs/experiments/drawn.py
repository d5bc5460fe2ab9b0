"""Prompts for a small model: python drawn.py TRAIN.jsonl.gz POOL.jsonl.gz HELD.jsonl.gz > prompts.jsonl

Short instructions of the sets that relevance.py learns from, in a drawn order: of 1,500 to learn from and 160 held-out ones those whose line is short, so
that a small model is asked for nothing that it has to read a page for.
"""

import random
import sys
from itertools import islice

import orjson
from relevance import parts_of

MOST = {"train": 1500, "held": 160}
# Characters of the instruction, and bytes of the line.
SHORT, LINE = 600, 500


def main(train: str, pool: str, held: str) -> None:
    """Writes them to stdout."""
    for name, part in zip(MOST, parts_of(train, pool, held), strict=True):
        asked = [(own_set, record) for own_set, own in part.items() for x, (record, _) in own.items() if len(x) <= SHORT]
        random.Random(0).shuffle(asked)
        for number, (own_set, record) in enumerate(islice(asked, MOST[name])):
            row = {"id": f"{name}/{number}", "set": own_set, "instruction": record["instruction"], "input": record.get("input") or ""}
            line = orjson.dumps(row)
            if len(line) < LINE:
                sys.stdout.buffer.write(line + b"\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
