"""Tensor parallelism: divides one model among processes (Megatron-LM, arXiv 1909.08053).

Every process holds a part of the heads and of the feed-forward width of each layer and runs the same passes; the
outputs of attention and feed-forward are summed over the processes. torchrun starts them.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gram_fast.errors import BackendError


@dataclass(frozen=True)
class Processes:
    """Rank and size of a process group, or of one process alone, with its collective operations."""

    rank: int = 0
    count: int = 1

    def slice_of(self, size: int) -> slice:
        """Slice of a dimension of `size` that belongs to this process; `count` must divide `size`."""
        part = size // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def sum(self, part: Tensor) -> Tensor:
        """Sums a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(part)
        return part

    def least(self, number: int) -> int:
        """Minimum of a number over the processes."""
        if self.count == 1:
            return number
        numbers = torch.tensor([number])
        # gloo takes CPU tensors, NCCL tensors on this process's GPU.
        if dist.get_backend() == "nccl":
            numbers = numbers.cuda()
        dist.all_reduce(numbers, dist.ReduceOp.MIN)
        return int(numbers)

    def agreed(self, logits_L2: Tensor) -> Tensor:
        """Copies the first process's logits to all, in place: the next round's pairs must be equal everywhere."""
        if self.count > 1:
            dist.broadcast(logits_L2, 0)
        return logits_L2


ALONE = Processes()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Joins the processes that torchrun started -> the processes, and this one's device.

    `device`: cpu, or cuda for the GPU of the local rank. Makes the default process group where there is none; it is
    not destroyed here. Raises BackendError outside torchrun, and where a machine has fewer GPUs than processes.
    """
    if not dist.is_initialized() and ("RANK" not in os.environ or "WORLD_SIZE" not in os.environ):
        raise BackendError(
            "tensor_parallel=True: expected processes that torchrun started (torchrun --nproc-per-node N ...), got "
            "neither RANK nor WORLD_SIZE"
        )
    if device.type == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise BackendError(
                f"tensor_parallel=True: process {local_rank} of this machine has no GPU: there are {gpus}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size()), device
