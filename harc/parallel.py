"""Data-parallel calibration: every process holds a part of each domain's sequences; sums are all-reduced.

Without an initialised torch.distributed process group everything here is the identity.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part of a sequence."""
    rank, size = world()
    return list(items[rank::size])


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, the same bits in each of them."""
    if world()[1] == 1:
        return tensor
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    total = tensor.to(device, copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def barrier() -> None:
    """Waits for all processes."""
    if world()[1] > 1:
        distributed.barrier()
