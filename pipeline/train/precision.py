"""In which precision a head trains: of the products alone; weights, their updates, norms and losses stay float32.

`float32` is the reference. `tf32` rounds the factors of float32 products to 10 bits of mantissa on NVIDIA's tensor
cores. `bfloat16` is autocast: products of factors with 7 bits. The heads leave autocast where it would cost accuracy
(`dits_head.numerics.no_autocast`): pooling and cosines stay float32, so X-Pool alone gains from TF32 only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.errors import BadInput

PRECISIONS = ("float32", "tf32", "bfloat16")


def of_fabric(precision: str) -> Any:
    """Fabric's name for it."""
    return "bf16-mixed" if precision == "bfloat16" else "32-true"


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Float32 products in TF32 inside, where that is the precision. Raises BadInput for TF32 on a CPU."""
    if precision != "tf32":
        yield
        return
    require_tensor_cores(precision, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def require_tensor_cores(precision: str, device: torch.device) -> None:
    """Raises BadInput for TF32 on a CPU."""
    if precision == "tf32" and device.type != "cuda":
        raise BadInput(
            "--precision tf32: only NVIDIA GPUs multiply in TF32",
            expected="--device cuda",
            got=str(device),
            fix="give --precision float32, or bfloat16",
        )
