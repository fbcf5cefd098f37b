"""The noise network eps(x, s, c): a DiT (Peebles & Xie 2023) on a single token.

Notation: N samples, D width, S time steps at once, C conditioning vectors of width D a sample.

Two facts make it cheap, and both are exact:

- Attention over one token has the softmax weight 1, so it is its value path `out(value(x))`, whatever the number of
  heads (the paper's 16 included). The query and key projections would never receive a gradient; they are left out.
- Without a condition the modulation depends on the time step alone: it is computed for all steps in one product
  (`modulation`) instead of once a sample and step, and enters as the affine part of the layer norm.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dits_head.numerics import no_autocast

EPS = 1e-6  # of DiT's layer norms
FREQUENCIES = 256  # width of the sinusoid

Modulation = list[tuple[Tensor, ...]]  # shifts, scales and gates of each layer, (D,) or (N, D)


def timestep_embedding(s: Tensor, width: int = FREQUENCIES, max_period: float = 10_000.0) -> Tensor:
    """(S,) steps -> (S, width): cos and sin of s at geometrically spaced frequencies (DiT's order: cosines first)."""
    half = width // 2
    frequency = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float64, device=s.device))
    angle = s.double()[:, None] * frequency  # (S, half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()  # (S, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; x (N, D), shift and scale (D,) for all samples or (N, D) for each."""
    if shift.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], 1 + scale, shift, EPS)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


class Block(nn.Module):
    """adaLN-zero block on one token: x + gate * attention(mod(x)), then x + gate * mlp(mod(x)).

    The gates start at zero, so that the block starts as the identity.
    """

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.adaLN = nn.Linear(dim, 6 * dim)
        for linear in (self.value, self.out, self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.value.weight, gain=0.5**0.5)  # DiT draws q, k and v as one (3 D, D) matrix
        _zero(self.adaLN)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = torch.addcmul(x, gate1, self.out(self.value(modulate(x, shift1, scale1))))  # (N, D)
        hidden = F.gelu(self.fc1(modulate(x, shift2, scale2)), approximate="tanh")  # (N, mlp_ratio * D)
        return torch.addcmul(x, gate2, self.fc2(hidden))  # (N, D)


class NoiseNetwork(nn.Module):
    """eps(x, s, c): (N, D) states -> (N, D), zero for every input at the start of training (as in DiT).

    `conditions` is the number C of vectors that join the time step's embedding: 0, 1 (t or v) or 2 (t and v).
    """

    def __init__(self, dim: int, *, blocks: int = 4, mlp_ratio: float = 4.0, conditions: int = 0) -> None:
        super().__init__()
        self.time1, self.time2 = nn.Linear(FREQUENCIES, dim), nn.Linear(dim, dim)
        for linear in (self.time1, self.time2):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.condition = nn.Linear(conditions * dim, dim) if conditions else None
        self.blocks = nn.ModuleList(Block(dim, mlp_ratio) for _ in range(blocks))
        self.final_adaLN = nn.Linear(dim, 2 * dim)
        self.final = nn.Linear(dim, dim)
        _zero(self.final_adaLN)
        _zero(self.final)

    @property
    def adaLNs(self) -> list[nn.Linear]:
        return [cast(Block, block).adaLN for block in self.blocks] + [self.final_adaLN]

    @no_autocast
    def modulation(self, s: Tensor, condition: Tensor | None = None) -> Modulation:
        """Shifts, scales and gates of every layer, one row for each of the steps `s` (S,).

        With `condition` (N, C * D), `s` is (N,) or (1,) and the rows belong to samples.
        """
        c = self.time2(F.silu(self.time1(timestep_embedding(s))))  # (S, D)
        if self.condition is not None:
            c = c + self.condition(condition)  # (N, D)
        c = F.silu(c)
        layers = [linear(c) for linear in self.adaLNs]  # (S or N, 6 D) ..., (S or N, 2 D)
        return [layer.chunk(layer.shape[-1] // c.shape[-1], dim=-1) for layer in layers]

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        for block, six in zip(self.blocks, modulation, strict=False):
            x = block(x, six)
        shift, scale = modulation[-1]
        return self.final(modulate(x, shift, scale))  # (N, D)


def step_modulations(modulation: Modulation) -> list[Modulation]:
    """S steps' modulation, (S, D) tensors -> each step's (D,), shared by all samples."""
    # unbind: its gradient is one stack, where indexing would fill a whole (S, D) for each row
    layers = [zip(*(tensor.unbind(0) for tensor in layer), strict=True) for layer in modulation]
    return [list(step) for step in zip(*layers, strict=True)]


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
