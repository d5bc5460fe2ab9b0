"""The table of engines, and the flags that choose one and its workers."""

from __future__ import annotations

from dataclasses import dataclass

from blendkit.errors import UsageError
from blendkit.registry import Registry, Row

AUTO = "auto"
# A new engine is one file with a Pool, and one row here.
ENGINES = Registry(
    "blendkit.engines",
    {
        "local": Row("blendkit.pipeline.engines.local:ProcessPool", "this machine"),
        "ray": Row("blendkit.pipeline.engines.ray:RayPool", "actors of a Ray cluster"),
    },
)


@dataclass(frozen=True)
class EngineOptions:
    """`workers` model replicas, each of so many CPUs and GPUs; one local worker is this process itself."""

    engine: str = "local"
    workers: int = 1
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    # Of this process, where it computes itself: a number, or `auto`, which is all cores in turns with other stages.
    threads: str = AUTO

    def check(self) -> None:
        """Raises UsageError for flags that do not go together."""
        if self.engine not in ENGINES:
            raise ENGINES.unknown(self.engine, "--engine")
        if self.engine != "ray":
            for flag, value in (("--gpus-per-worker", self.gpus_per_worker), ("--ray-address", self.ray_address)):
                if value is not None:
                    raise UsageError(f"{flag} needs --engine ray")
        if self.threads != AUTO:
            if not self.threads.isascii() or not self.threads.isdigit() or len(self.threads) > 4 or not 1 <= int(self.threads) <= 1024:
                raise UsageError(f"--threads {self.threads}: expected auto, or a number from 1 to 1024")
            if self.beside:
                raise UsageError(f"--threads {self.threads}: this process computes nothing where others do; --cpus-per-worker says how many threads each takes")

    @property
    def beside(self) -> bool:
        """Whether the work is done outside this process."""
        return self.engine == "ray" or self.workers > 1
