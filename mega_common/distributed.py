"""Training with several processes; with a single process these functions do nothing special.

Process r of W holds rows r*B … (r+1)*B - 1 of a global batch of W*B rows. Whatever depends on the whole batch is
computed from the whole batch in every process, so that W processes compute what a single one with W*B rows would.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def leave() -> None:
    """Stop working together, at the end of a training.

    The threads of Gloo have to end before the interpreter does, which may abort otherwise
    (https://github.com/pytorch/pytorch/issues/190489). They end with the last object that refers to their group.
    """
    if world_size() > 1:
        dist.barrier()  # nobody waits for a process that has left
        dist.destroy_process_group()
        gc.collect()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (M, …), M the same in all processes -> the rows of all processes (W*M, …), without gradient."""
    if world_size() == 1:
        return rows.detach()
    rows = rows.detach().contiguous()
    everyone = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(everyone, rows)
    return torch.cat(everyone)


def share_from_first(*values: Tensor) -> None:
    """Overwrite tensors in place with those of process 0."""
    if world_size() > 1:
        for value in values:
            dist.broadcast(value, src=0)


def gather_list(items: list) -> list:
    """The lists of all processes, concatenated."""
    if world_size() == 1:
        return items
    everyone: list = [None] * world_size()
    dist.all_gather_object(everyone, items)
    return [item for part in everyone for item in part]


def own_rows(rows: Tensor) -> Tensor:
    """Rows (W*M, …) of all processes -> those of this process (M, …)."""
    return rows.chunk(world_size())[rank()]


def draw_rows(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """This process's n rows of a random draw for all; `draw(m)` draws m rows with equal generators in all processes."""
    return own_rows(draw(world_size() * n))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is True.

    With several processes the number of such values is averaged over them. The mean of the results of all processes,
    and so of their gradients, is then the mean over the global batch, although these numbers differ.
    """
    count = mask.sum().to(values.dtype)
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return torch.where(mask, values, 0).sum() / count.clamp(min=1 / world_size())
