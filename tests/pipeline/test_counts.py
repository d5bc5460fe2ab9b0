"""What the whole pipe computes on docs/examples: shared work is done once, and a change that loses some of it is seen here."""

from __future__ import annotations

import json

from conftest import EXAMPLES

METRICS = ["bertscore", "bertscore-precision", "bertscore-recall", "mbr:bertscore", "cosine", "rouge2", "consensus2=mbr:rouge2", "length", "random"]
PANEL = ["judge", "-m", "a=embedded", "-m", "b=embedded"]
# Each command reads what the one before it wrote; behind it the works that its stage asked for, and those that were computed.
PIPE = [
    (["score", *(flag for metric in METRICS for flag in ("--metric", metric))], 1188, 864),
    # The embedded ranker's gate reads each record's x once.
    (["pair"], 12 + 300, 12 + 180),
    (["pair", "--name", "swiss", "--schedule", "swiss:3", "--prefilter", "mbr:4"], 12 + 120, 12 + 120),
    (["rank", "--by", "pairrm", "--top", "3"], 0, 0),
    (["fuse"], 88, 87),
    (["judge"], 148, 140),
    ([*PANEL, "--schedule", "swiss:2"], 592, 140),
    (["score", "--metric", "bleu", "--metric", "rouge2"], 144, 128),
]


def test_shared_work_is_done_once(called, tmp_path):
    source = EXAMPLES / "candidates.jsonl"
    found = []
    for number, (command, _, _) in enumerate(PIPE):
        out, manifest = tmp_path / f"{number}.jsonl", tmp_path / f"{number}.json"
        code, _, said = called(*command, "-i", source, "-o", out, "--manifest", manifest)
        assert code == 0, said
        counts = json.loads(manifest.read_text())["counts"]
        found.append((command, counts["works"], counts["computed"]))
        source = out
    assert found == PIPE
