"""Prompts for a small model: python drawn.py TRAIN.jsonl.gz POOL.jsonl.gz HELD.jsonl.gz > prompts.jsonl

Short instructions of the sets that relevance.py learns from, 1,500 to learn from and 160 held-out ones at most, in a drawn order.
"""

import random
import sys
from itertools import islice

import orjson
from relevance import answers, records_of

from blendkit.records import source_text

MOST = {"train": 1500, "held": 160}
# Characters of the instruction, and bytes of the line.
SHORT, LINE = 600, 500


def main(train: str, pool: str, held: str) -> None:
    """Writes them to stdout."""
    known = {source_text(record) for path in (train, held) for record in records_of(path)}
    found = {name: [answers(path, lambda record: record["set"])] for name, path in (("train", train), ("held", held))}
    found["train"].append(answers(pool, lambda record: None if source_text(record) in known else "pool"))
    for name, parts in found.items():
        asked = [(own_set, record) for part in parts for own_set, own in part.items() for x, (record, _) in own.items() if len(x) <= SHORT]
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
