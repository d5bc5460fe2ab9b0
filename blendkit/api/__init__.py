"""The stages as functions over iterables of records, and training. Models load when the first record is asked for.

What the command line has beyond these arguments is about its stream and its processes: files, resuming, progress, engines.
"""

from __future__ import annotations

from blendkit.api.asking import fuse, generate, judge
from blendkit.api.comparing import evaluate, pair, rank, score
from blendkit.training.api import train_fuser, train_ranker

__all__ = ["evaluate", "fuse", "generate", "judge", "pair", "rank", "score", "train_fuser", "train_ranker"]
