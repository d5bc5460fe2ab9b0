"""blendkit: several LLMs in, one better answer out (LLM-Blender, Jiang, Ren and Lin, ACL 2023).

Every command of the shell is a function here, over iterables of records instead of JSON lines:

    ranked = blendkit.rank(blendkit.pair(records), top=3)

docs/python.md tells of each.
"""

from blendkit.api import evaluate, fuse, generate, judge, pair, rank, score, train_fuser, train_ranker
from blendkit.errors import (
    ArgumentError,
    BlendkitError,
    BlendkitWarning,
    CheckFailed,
    DataError,
    EndpointError,
    NoInputError,
    OutOfMemory,
    OutputError,
    RecordError,
    TooManyUnparsed,
    UsageError,
)
from blendkit.version import VERSION as __version__

__all__ = [
    "ArgumentError",
    "BlendkitError",
    "BlendkitWarning",
    "CheckFailed",
    "DataError",
    "EndpointError",
    "NoInputError",
    "OutOfMemory",
    "OutputError",
    "RecordError",
    "TooManyUnparsed",
    "UsageError",
    "__version__",
    "evaluate",
    "fuse",
    "generate",
    "judge",
    "pair",
    "rank",
    "score",
    "train_fuser",
    "train_ranker",
]
