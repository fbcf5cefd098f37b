"""Gather rows of all devices, so that a contrastive loss sees the whole step's batch whatever the number of devices."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all devices in the order of their ranks, with gradients: (b, ...) -> (b * world, ...).

    Every device must hold as many rows, compute the same loss from what it gathers, and average the gradients of its
    parameters over the devices, as DistributedDataParallel does. Then the gradients of the parameters before and
    after this call are those of one device with the whole batch. Without a process group the rows come back as they
    are.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # type: ignore[no-any-return]


class _GatherRows(torch.autograd.Function):
    """The backward pass needs no communication: the loss is the same everywhere, so the gradient with respect to a
    device's own rows is the part of the gathered gradient that is its own. It is multiplied by the number of devices,
    because averaging the gradients of parameters that saw different rows divides their sum by it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.world, ctx.rank, ctx.count = dist.get_world_size(), dist.get_rank(), len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ctx.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        own = gradients[0][ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count]
        return own * ctx.world
