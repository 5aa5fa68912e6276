"""The processes among which one model is divided: tensor parallelism (Megatron-LM, arXiv 1909.08053).

Every process holds a part of the heads and of the feed-forward width of each layer, and runs the same passes; the sums
behind attention and feed-forward go over all processes. torchrun starts them.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from gram_fast.errors import BackendError


@dataclass(frozen=True)
class Processes:
    """A process group seen from one of its members, or one process alone."""

    rank: int = 0
    count: int = 1

    def slice_of(self, size: int) -> slice:
        """This process's part of a dimension that `count` divides."""
        part = size // self.count
        return slice(self.rank * part, (self.rank + 1) * part)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(part)
        return part

    def least(self, number: int) -> int:
        """The least of the processes' numbers."""
        if self.count == 1:
            return number
        numbers = torch.tensor([number])
        # On the host's side of whatever backend: gloo takes CPU tensors, NCCL this process's GPU.
        if dist.get_backend() == "nccl":
            numbers = numbers.cuda()
        dist.all_reduce(numbers, dist.ReduceOp.MIN)
        return int(numbers)

    def agreed(self, logits_L2: Tensor) -> Tensor:
        """The first process's logits, in place: who meets whom next must never differ among processes."""
        if self.count > 1:
            dist.broadcast(logits_L2, 0)
        return logits_L2


ALONE = Processes()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Joins the processes that torchrun started -> them, and the device of this one.

    `device`: of type cuda, where every process takes the GPU of its local rank, or cpu. The default process group is
    made where there is none, and left to whoever ends the process. Raises BackendError outside torchrun, and where a
    machine has fewer GPUs than processes.
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
