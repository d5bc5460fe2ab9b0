"""Where a stage's windows are worked on beside this process: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from blendkit.pipeline.engines.options import ENGINES, EngineOptions
from blendkit.pipeline.stage import Stage


def distributed(make: Callable[[], Stage], options: EngineOptions) -> Stage:
    """The stage that `make` makes, worked on by the engine: each worker makes one of its own.

    Raises:
        UsageError: the engine needs a package that is not installed.
        BlendkitError: what making the stage raises, such as NoInputError for a model that is not there.
    """
    if not options.beside:
        return make()
    from blendkit.pipeline.engines.pool import Distributed

    return Distributed(ENGINES[options.engine].load()(make, options))
