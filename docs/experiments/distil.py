"""Scores of a teacher as labels: python distil.py NAME [SET] < PAIRED.jsonl > LABELLED.jsonl, records with full comparisons NAME.

A candidate's score `oracle` is half its MaxLogits: the mean logit by which the teacher has it before the record's
candidates, so that a difference of two scores is near the teacher's logit of that pair. `train ranker --loss soft` learns these.
SET becomes the set that the records belong to in a mixture.
"""

from __future__ import annotations

import sys

import orjson

from blendkit.aggregate import matrix, max_logits

name, *sets = sys.argv[1:]
for line in sys.stdin.buffer:
    record = orjson.loads(line)
    candidates = record["candidates"]
    if len(candidates) > 1:
        scores = max_logits(matrix(record.pop("comparisons")[name]["pairs"], len(candidates))) / 2
        record["candidates"] = [{**candidate, "scores": {"oracle": round(float(score), 4)}} for candidate, score in zip(candidates, scores, strict=True)]
        if sets:
            record["set"] = sets[0]
        sys.stdout.buffer.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
