"""Where a command computes: a name resolved to a device, its free memory, blocks that halve when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import BadInput, UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def resolve_device(name: str = "auto") -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU of CUDA, else the CPU.

    Apple's GPU is not taken: it lacks the float64 of DITS's schedule.

    Raises:
        BadInput: The device cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device {name!r} cannot be used ({reason})", fix="give --device cpu, or auto") from None
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def free_bytes(device: torch.device) -> int:
    """Memory that is free on `device`."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def halving(work: Callable[[int], Result], size: int, least: int = 1) -> tuple[Result, int]:
    """Do `work(size)`, and again with half the size as long as the device is out of memory.

    Args:
        work: Takes a size, such as a number of rows; must leave nothing behind when it fails.
        size: The first size.
        least: The smallest one that is tried.

    Returns:
        What `work` gave, and the size that fitted.

    Raises:
        UserError: `least` does not fit either.
    """
    import torch

    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError as error:
            if size <= least:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"out of memory with the smallest block, of {least} ({reason})",
                    fix="free the device's memory, or give --device cpu",
                ) from None
        size = max(least, size // 2)
        torch.cuda.empty_cache()
        log.warning(f"out of memory: going on with blocks of {size}")
