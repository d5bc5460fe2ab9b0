"""`--engine local --workers N`: N processes of this machine, each with a model of its own; with GPUs, worker k takes GPU k."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from blendkit.pipeline.engines.options import EngineOptions
from blendkit.pipeline.engines.pool import Pool, Worker, WorkerDied
from blendkit.pipeline.engines.worker import Answer, Asking, Served, pickled
from blendkit.pipeline.stage import Stage
from blendkit.pipeline.turns import cores
from blendkit.streams.standard_streams import make_safe


class ProcessPool(Pool):
    """Processes that live as long as the pool; one that is killed is started anew."""

    def __init__(self, make: Callable[[], Stage], options: EngineOptions) -> None:
        self._pickled = pickled(make)
        self._threads = max(1, int(options.cpus_per_worker or len(cores()) // options.workers))
        super().__init__(make, options)

    def start(self, place: int) -> Worker:
        """A process that reads questions from a socket."""
        near, far = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": str(self._threads)}
        with far:
            command = [sys.executable, "-P", "-m", "blendkit.pipeline.engines.local", str(far.fileno()), str(place)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment, pass_fds=[far.fileno()])
        connection = Connection(near.detach())

        def ask(question: str, arguments: tuple[Any, ...]) -> Answer:
            try:
                connection.send((question, arguments))
                return connection.recv()  # type: ignore[no-any-return]
            except (EOFError, OSError) as error:
                raise WorkerDied(_ending(process)) from error

        def end() -> None:
            process.kill()
            process.wait()

        # Where the process has ended already, the first question to it raises WorkerDied.
        with suppress(OSError):
            connection.send_bytes(self._pickled)
        return Asking(ask, end)


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"by signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(connection: Connection, place: int) -> None:
    """Answers the questions of the pool until the connection ends."""
    # Ctrl-C reaches all processes of the terminal; the one that started this worker decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_safe()
    # Descriptor 1 is the standard error of the process that started this one.
    sys.stdout = sys.stderr
    try:
        served = Served(connection.recv_bytes())
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(place % torch.cuda.device_count())
        while True:
            connection.send(served.answer(*connection.recv()))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
