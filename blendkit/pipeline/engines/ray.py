"""`--engine ray`: one Ray actor a model replica, on a running cluster or on one that is started here.

Ray places the actors; windows go out from this process, which holds at most two a worker, since standard input and
output are here.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from blendkit.errors import EndpointError, UsageError
from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.engines.pool import Pool, Worker, WorkerDied
from blendkit.pipeline.engines.worker import Answer, Asking, Served, pickled
from blendkit.pipeline.stage import Stage
from blendkit.terminal_text import count_of


class RayPool(Pool):
    """Actors that live as long as the pool. One that dies is replaced, on another node if its own is gone.

    Raises:
        UsageError: Ray is not installed, or the cluster has no room for all workers, so that some would wait for ever.
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
        cpus = options.cpus_per_worker if options.cpus_per_worker is not None else 1.0
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = [float(node.get("GPU", 0.0)) for node in nodes]
        share = options.gpus_per_worker if options.gpus_per_worker is not None else gpu_share(options.workers, sum(gpus))
        room = places([float(node.get("CPU", 0.0)) for node in nodes], gpus, cpus, share)
        if room < options.workers:
            self._leave()
            where = "this machine" if options.ray_address is None else f"the cluster at {options.ray_address}"
            raise UsageError(f"--workers {options.workers}: {where} has room for {count_of(room, 'worker')} of {cpus:g} CPUs and {share:g} GPUs")
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


def gpu_share(workers: int, gpus: float) -> float:
    """GPUs of each worker: a whole one where there are enough, else the equal share that places them all.

    Ray puts no worker on parts of two GPUs: three workers on two GPUs get half of one each, not two thirds.
    """
    if gpus < 1:
        return 0.0
    return 1.0 if workers <= gpus else 1 / math.ceil(workers / math.floor(gpus))


def places(cpus: list[float], gpus: list[float], cpu_share: float, gpu_share: float) -> int:
    """How many workers find their place on nodes with so many CPUs and GPUs; a node's GPUs are shared one by one."""
    total = 0
    for node_cpus, node_gpus in zip(cpus, gpus, strict=True):
        by_cpu = math.floor(node_cpus / cpu_share + 1e-9) if cpu_share else math.inf
        if gpu_share == 0:
            by_gpu: float = math.inf
        elif gpu_share <= 1:
            by_gpu = math.floor(node_gpus) * math.floor(1 / gpu_share + 1e-9)
        else:
            by_gpu = math.floor(node_gpus / gpu_share)
        room = min(by_cpu, by_gpu)
        if room == math.inf:
            return sys.maxsize
        total += int(room)
    return total


def _connect(ray: Any, options: EngineOptions) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, lets everything else on the machine run first
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
        # Ray's handler of SIGTERM would end the process before finished records are written.
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
