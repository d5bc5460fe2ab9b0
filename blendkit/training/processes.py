"""The processes of one training: this one alone, or those that `torchrun` starts.

Each process holds a whole copy of the model and takes its share of a step's examples. Nothing here shards a model.
"""

from __future__ import annotations

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from blendkit.errors import UsageError
from blendkit.models.loading import choose_device
from blendkit.terminal_text import count_of

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
# What `accelerate launch` sets for a model that is to be cut into pieces.
SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def process_count() -> int:
    """How many processes train together, as `torchrun` says in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_process() -> bool:
    """Whether this process writes the checkpoint, the log and the state."""
    return process_count() == 1 or os.environ["RANK"] == "0"


def training_device(name: str) -> torch.device:
    """The device of this process; of several processes on GPUs, each has one of its own.

    Raises:
        UsageError: there is no such device, or not one for every process; or a sharded model was asked for.
    """
    for variable in SHARDING:
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UsageError(f"{variable} is set, and blendkit shards no model: every process trains a whole copy; start it with torchrun")
    device = choose_device(name)
    count = process_count()
    if count == 1 or device.type == "cpu":
        return device
    if device.type == "mps" or ":" in name:
        raise UsageError(f"--device {name}: one device for {count_of(count, 'process', 'processes')}; try --device {'cpu' if device.type == 'mps' else 'cuda'}")
    place = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    return choose_device(f"cuda:{place}")


@dataclass(frozen=True)
class Processes:
    """What the loop asks of the processes; with one process, all of it does nothing."""

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.index == 0

    def joined(self, model: nn.Module) -> nn.Module:
        """The model with its gradients summed over the processes and divided by their number."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # An encoder's pooler, say, has no part in the loss.
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None, find_unused_parameters=True)

    def without_exchange(self, network: Any) -> AbstractContextManager[None]:
        """Within it, gradients add up in this process and do not travel."""
        return nullcontext() if self.count == 1 else network.no_sync()

    def total(self, value: float | torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values, the same bits in each of them; a whole number stays one."""
        import torch

        found = torch.as_tensor(value, device=self.device)
        if self.count > 1:
            found = found.clone()
            torch.distributed.all_reduce(found)
        return found

    def gathered(self, value: T) -> list[T]:
        """Every process's value, in the order of the processes."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        self.gathered(None)


def processes_on(device: torch.device) -> Processes:
    """The processes of a training, connected; the connection stays for the next training in the same processes."""
    if process_count() == 1:
        return Processes(device)
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(distributed.destroy_process_group)
    return Processes(device, distributed.get_rank(), distributed.get_world_size())
