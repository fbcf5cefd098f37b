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
            reason = str(error).splitlines()[0]
        if size <= least:
            raise UserError(
                f"out of memory with the smallest block, of {least} ({reason})",
                fix="free the device's memory, or give --device cpu (a smaller --model where CLIP itself is too large)",
            )
        size = max(least, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning(f"out of memory: going on with blocks of {size}")


class FittingParts:
    """Applies a function to batches in the largest parts that have fitted the memory so far.

    `limit`: rows of a part, once a larger one did not fit; a run never asks for more again.
    """

    def __init__(self) -> None:
        self.limit: int | None = None

    def __call__(self, work: Callable[[torch.Tensor], Result], batch: torch.Tensor) -> list[Result]:
        """The results of all parts of `batch` (N, ...), in order. Raises UserError where one row does not fit."""
        parts: list[Result] = []
        first = 0
        while first < len(batch):
            size = min(self.limit or len(batch), len(batch) - first)
            part, fitted = halving(lambda rows, first=first: work(batch[first : first + rows]), size)  # type: ignore[misc]
            if fitted < size:
                self.limit = fitted
            parts.append(part)
            first += fitted
        return parts
