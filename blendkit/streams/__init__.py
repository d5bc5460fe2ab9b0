"""What comes in and goes out: lines, files, resume, rejects, manifests, progress."""

import gc

# The values of `--resume`, here because the command line needs them before anything else.
PLAIN, FORCE = "plain", "force"


def collect_seldom() -> None:
    """Python's garbage collector runs less often from here on. For our own processes: the command and its workers, not a program that imports blendkit.

    Records are trees without cycles, and a window holds many small objects: Python would look through all of them again and again.
    """
    gc.set_threshold(200_000, 20, 100)
