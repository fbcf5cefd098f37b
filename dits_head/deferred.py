"""Linear layers that one forward pass uses many times, as the sampler does at every step.

Autograd would form a weight's gradient anew for each use, from N rows, and add the results up: S small matrix products
and S passes over a gradient of the weight's size. Here each use only notes its inputs and its output's gradient, and
the product is formed from the rows of many uses at once. The same sums in another order; no second derivative.

Notation: N rows a use, I and O input and output width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 512  # noted rows after which the product is formed: enough to be efficient, little to keep


class SharedLinear(nn.Linear):
    """nn.Linear; inside `shared_uses` its gradient is gathered as the module's text says."""

    _book: _Book | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self._book is None else _Use.apply(x, self._book.anchor, self._book)


@contextmanager
def shared_uses(*modules: nn.Module) -> Iterator[None]:
    """Gather the gradients of every SharedLinear in `modules` over the uses made in this context."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, SharedLinear)]
    if torch.is_grad_enabled():
        for layer in layers:
            layer._book = _Book(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer._book = None


class _Book:
    """One layer's notes: weight and bias as the uses read them, the rows noted so far, what earlier rows gave."""

    def __init__(self, layer: SharedLinear) -> None:
        device = layer.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
        self.weight, self.bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.formed: tuple[Tensor, Tensor] | None = None
        # Every use depends on the anchor, so that autograd calls _Collect after the last of them.
        self.anchor = _Collect.apply(layer.weight, layer.bias, self)

    def note(self, x: Tensor, gradient: Tensor) -> None:
        self.inputs.append(x)
        self.gradients.append(gradient)
        if sum(map(len, self.inputs)) >= ROWS:
            self.form()

    def form(self) -> None:
        if self.inputs:
            gradient = torch.cat(self.gradients)  # (S * N, O)
            product = (gradient.T @ torch.cat(self.inputs)).float()  # (O, I)
            bias = gradient.float().sum(0)  # (O,)
            formed = self.formed
            self.formed = (product, bias) if formed is None else (formed[0].add_(product), formed[1].add_(bias))
            self.inputs, self.gradients = [], []

    def collect(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The gradients of weight and bias over all uses noted; the book is empty again."""
        self.form()
        formed, self.formed = self.formed, None
        return formed or (None, None)


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, book: _Book) -> Tensor:
        ctx.book = book
        ctx.set_materialize_grads(False)
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        return *ctx.book.collect(), None


class _Use(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, book: _Book) -> Tensor:
        x = x.to(book.weight.dtype)
        ctx.save_for_backward(x)
        ctx.book = book
        return F.linear(x, book.weight, book.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        gradient = gradient.to(ctx.book.weight.dtype)
        if ctx.needs_input_grad[1]:
            ctx.book.note(ctx.saved_tensors[0], gradient)
        return gradient @ ctx.book.weight if ctx.needs_input_grad[0] else None, None, None
