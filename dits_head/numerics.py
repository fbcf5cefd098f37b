"""Small things that several modules need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def no_autocast(function: Function) -> Function:
    """Run outside autocast: norms and cosines from Gram matrices lose their digits in half precision."""
    for device in ("cpu", "cuda"):
        function = torch.autocast(device, enabled=False)(function)
    return function


def normalise(x: Tensor) -> Tensor:
    """Unit L2 norm along the last dimension."""
    return F.normalize(x, dim=-1)


def tiles(length: int, size: int, device: torch.device) -> Iterator[tuple[slice, slice | Tensor]]:
    """Rows 0..length in tiles: the rows that are real, and exactly `size` rows, padded by repeating the last one."""
    for start in range(0, length, size):
        real = slice(start, min(start + size, length))
        full = real.stop - start == size
        yield real, real if full else torch.arange(start, start + size, device=device).clamp_(max=length - 1)
