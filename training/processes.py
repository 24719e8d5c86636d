"""Data-parallel training: what the processes that `torchrun` starts share with each other.

Every process holds the whole data set and the same random generator, draws the same batch and takes
its shard of it, so that N processes learn what one would: gradients are averaged over the whole
batch. Only batch normalisation sees each shard separately. The first process evaluates and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch import distributed as dist

from training.errors import UsageError


class Processes:
    """One of `size` processes. With a size of 1 no method changes or sends anything."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.is_first = rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        return batch[self.rank :: self.size]

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages gradients over the processes."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def total(self, *values: float, device: torch.device) -> list[float]:
        """Return the sum of each value over the processes."""
        if self.size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        return totals.tolist()

    def highest(self, values: Tensor, device: torch.device) -> Tensor:
        """Return the highest of each value over the processes, on the CPU."""
        if self.size == 1 or not len(values):
            return values
        maxima = values.to(device)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.cpu()

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Replace the batch statistics of a network by those of the first process."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def broadcast(self, value: float, device: torch.device) -> float:
        """Return the first process's value."""
        return self.total(value if self.is_first else 0.0, device=device)[0]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the other processes if `torchrun` started this one, until the end of the block."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: under `torchrun` each has its own GPU."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"torchrun started at least {index + 1} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs; start one per GPU, or add --device cpu."
        )
    return torch.device("cuda", index)


def is_first() -> bool:
    """Whether this process prints and writes; also valid before `joined`."""
    return os.environ.get("RANK", "0") == "0"
