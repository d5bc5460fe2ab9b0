"""`--engine ray`: one Ray actor a model replica, on a running cluster or on one that is started here.

Ray places the actors; windows go out from this process, which holds at most two a worker, since standard input and
output are here.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from blendkit.engines import EngineOptions
from blendkit.engines.pool import Pool, Worker, WorkerDied
from blendkit.engines.remote import Answer, Asking, Served, pickled
from blendkit.errors import EndpointError, UsageError
from blendkit.stage import Stage


class RayPool(Pool):
    """Actors that live as long as the pool; one that dies is replaced, on another node where that one is gone.

    Raises:
        UsageError: Ray is not installed, or the cluster started here has not what the workers need.
        EndpointError: no cluster at --ray-address.
    """

    def __init__(self, make: Callable[[], Stage], options: EngineOptions) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--engine ray needs Ray: pip install 'blendkit[ray]'") from error
        self._ray, self._pickled, self._ours = ray, pickled(make), not ray.is_initialized()
        if self._ours:
            _connect(ray, options)
        gpus = float(ray.cluster_resources().get("GPU", 0.0))
        cpus = options.cpus_per_worker if options.cpus_per_worker is not None else 1.0
        share = options.gpus_per_worker if options.gpus_per_worker is not None else min(1.0, gpus / options.workers)
        if options.ray_address is None and share * options.workers > gpus:
            self._leave()
            raise UsageError(f"--workers {options.workers} --gpus-per-worker {share:g}: this machine has {gpus:g} GPUs")
        self._actor = ray.remote(num_cpus=cpus, num_gpus=share, max_restarts=0)(Served)
        super().__init__(make, options)

    def start(self, place: int) -> Worker:
        """An actor, wherever Ray has room for it."""
        ray = self._ray
        actor: Any = self._actor.remote(self._pickled)

        def ask(question: str, arguments: tuple[Any, ...]) -> Answer:
            try:
                return ray.get(actor.answer.remote(question, arguments))  # type: ignore[no-any-return]
            except ray.exceptions.RayActorError as error:
                raise WorkerDied(" ".join(str(error).split())[:200]) from error

        return Asking(ask, lambda: ray.kill(actor))

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        super().close()
        self._leave()

    def _leave(self) -> None:
        if self._ours:
            self._ray.shutdown()


def _connect(ray: Any, options: EngineOptions) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: behind everything else on the machine
    settings: dict[str, Any] = {"address": options.ray_address}
    if options.ray_address is None:
        # A local cluster has the CPUs that were asked for, so that every worker finds its place.
        asked = math.ceil(options.workers * (options.cpus_per_worker if options.cpus_per_worker is not None else 1.0))
        settings = {"address": "local", "num_cpus": max(os.cpu_count() or 1, asked), "include_dashboard": False}
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EndpointError(f"--ray-address {options.ray_address}: no Ray cluster: {error}") from error
    finally:
        # Ray takes SIGTERM for itself; what is done would not be flushed.
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
