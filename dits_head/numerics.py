"""Two small things that every module needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def float32(function: Function) -> Function:
    """Outside autocast: norms and cosines from Gram matrices lose their digits in half precision."""
    for device in ("cpu", "cuda"):
        function = torch.autocast(device, enabled=False)(function)
    return function


def normalise(x: Tensor) -> Tensor:
    """Unit L2 norm along the last dimension."""
    return F.normalize(x, dim=-1)
