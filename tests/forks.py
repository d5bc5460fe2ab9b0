"""`blendkit …` in a process of its own that is forked from one with the libraries loaded: seconds less than a start from nothing.

This file is the process that forks, too: it listens on a socket, and each connection brings a command's arguments and its three standard streams.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

from blendkit.cli import QUIET

# The libraries read these as they are loaded, or the system does.
READ_AT_START = ("HF_", "TRANSFORMERS", "TOKENIZERS", "OMP_", "MKL_", "ONEDNN", "TORCH", "PYTHONHASHSEED", "PYTHONWARNINGS", "LD_", "MALLOC", "SACREBLEU")
HEAVY = {"generate", "score", "pair", "fuse", "judge", "train"}
NETWORKS = ("bert", "roberta", "deberta_v2", "modernbert", "llama", "t5", "bart", "auto")


def _environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a command finds there; the first in this process has set what the others would set, too."""
    return QUIET | {name: value for name, value in env.items() if not name.startswith("PYTEST_")}


class Forks:
    """Starts the process that forks when it is first needed, and ends it with the context."""

    def __enter__(self) -> Forks:
        self._process = None
        self._starting = threading.Lock()
        return self

    def __exit__(self, *ending: object) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(30)
            self._folder.cleanup()

    def can(self, words: list[str], env: dict[str, str]) -> bool:
        """Whether a fork is the same as a new process: not where more processes are started, nor where a variable was set that is read at the start."""
        if (
            not hasattr(socket, "send_fds")
            or {"--workers", "--engine"} & set(words)
            or any("\udc80" <= letter <= "\udcff" for word in words for letter in word)
        ):
            return False
        self._start()
        changed = {name for name, _ in set(_environment(env).items()) ^ set(self._at_start.items())}
        return not any(name.startswith(READ_AT_START) for name in changed)

    def run(self, words: list[str], data: bytes, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[bytes]:
        """As `subprocess.run` with captured output."""
        ends = [os.pipe() for _ in range(3)]
        theirs, ours = [ends[0][0], ends[1][1], ends[2][1]], [ends[0][1], ends[1][0], ends[2][0]]
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout)
            link.connect(self._path)
            request = json.dumps({"argv": words, "cwd": os.getcwd(), "env": _environment(env)}).encode()
            socket.send_fds(link, [len(request).to_bytes(8)], theirs)
            link.sendall(request)
            for end in theirs:
                os.close(end)
            taken: dict[int, bytes] = {}
            threads = [threading.Thread(target=_give, args=(ours[0], data), daemon=True)]
            threads += [threading.Thread(target=_take, args=(end, taken), daemon=True) for end in ours[1:]]
            for thread in threads:
                thread.start()
            code = int(link.makefile().readline())
            for thread in threads:
                thread.join(timeout)
        return subprocess.CompletedProcess(["blendkit", *words], code, taken[ours[1]], taken[ours[2]])

    def _start(self) -> None:
        with self._starting:
            if self._process is not None:
                return
            self._folder = tempfile.TemporaryDirectory(prefix="forks")
            self._path, self._at_start = str(Path(self._folder.name) / "socket"), _environment()
            self._process = subprocess.Popen([sys.executable, __file__, self._path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._at_start)
            assert self._process.stdout.readline() == b"ready\n"


def _give(end: int, data: bytes) -> None:
    try:
        with open(end, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass


def _take(end: int, taken: dict[int, bytes]) -> None:
    with open(end, "rb") as file:
        taken[end] = file.read()


def _listen(path: str) -> None:
    from blendkit import cli

    cli.quiet_libraries()
    for command in cli.COMMANDS:
        cli.load(command)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        print("ready", flush=True)
        while door in (open_ := select.select([door, 0], [], [])[0]) or 0 not in open_:
            link, _ = door.accept()
            size, streams, _, _ = socket.recv_fds(link, 8, 3)
            request = json.loads(link.makefile("rb").read(int.from_bytes(size)))
            if HEAVY & set(request["argv"]):
                _load()
            if not os.fork():
                door.close()
                _attend(link, streams, request)
            for end in streams:
                os.close(end)
            link.close()


def _load() -> None:
    if "transformers" in sys.modules:
        return
    import blendkit

    for module in pkgutil.walk_packages(blendkit.__path__, "blendkit."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            # Triton, say, which torch has where there is a GPU.
            if (error.name or "").partition(".")[0] == "blendkit":
                raise
    for name in [*(f"transformers.models.{name}.modeling_{name}" for name in NETWORKS), "rouge_score.rouge_scorer", "sacrebleu", "aiohttp", "transformers"]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _attend(link: socket.socket, streams: list[int], request: dict) -> None:
    """One command in a fork, and its exit code to who asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        _be(link, streams, request)
    for end in streams:
        os.close(end)
    _, status = os.waitpid(child, 0)
    link.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _be(link: socket.socket, streams: list[int], request: dict) -> None:
    try:
        link.close()
        for number, end in enumerate(streams):
            os.dup2(end, number)
            os.close(end)
        # As Python opens them at its start.
        sys.stdin = sys.__stdin__ = open(0)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w")  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = ["blendkit", *request["argv"]]
        # Whatever stands in for a library there has not been loaded from elsewhere.
        sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
        gc.unfreeze()
        from blendkit.cli import main

        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


if __name__ == "__main__":
    _listen(sys.argv[1])
